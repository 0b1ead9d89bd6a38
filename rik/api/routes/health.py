"""What stands outside `/api/v0`: health, metrics, and the documents that describe this API."""

from __future__ import annotations

from rik.api.operations import API, GET, JSON, Call, Handler, Operation, Outcome, Reply, encode
from rik.api.schemas import ANYTHING
from rik.api.service import Service
from rik.errors import Unavailable
from rik.model import document

METRICS_TEXT = "text/plain; version=0.0.4; charset=utf-8"
_OK = {
    "type": "object",
    "properties": {"status": {"const": "ok"}},
    "required": ["status"],
    "additionalProperties": False,
}


async def healthz(service: Service, call: Call) -> Reply:
    return encode({"status": "ok"})


async def readyz(service: Service, call: Call) -> Reply:
    if service.closing.is_set():
        raise Unavailable("the server is shutting down")
    if not service.session.connected:
        raise Unavailable("the scheduler is not connected; what is shown may be old")
    return encode({"status": "ok"})


async def workload_schema(service: Service, call: Call) -> Reply:
    return Reply(200, document.schema(), JSON)


def operations(metrics: Handler, openapi: Handler) -> tuple[Operation, ...]:
    """The two that need more than the service are given by whoever has it."""
    return (
        Operation(
            "healthz",
            GET,
            "/healthz",
            "The process answers.",
            "health",
            healthz,
            outcomes={200: Outcome("It does.", _OK)},
        ),
        Operation(
            "readyz",
            GET,
            "/readyz",
            "Requests can be served: the scheduler is connected.",
            "health",
            readyz,
            outcomes={200: Outcome("They can.", _OK)},
        ),
        Operation(
            "metrics",
            GET,
            "/metrics",
            "Metrics in the text format of Prometheus.",
            "health",
            metrics,
            outcomes={200: Outcome("The metrics.", media_type=METRICS_TEXT)},
        ),
        Operation(
            "openapi",
            GET,
            "/openapi.json",
            "This document.",
            "documents",
            openapi,
            outcomes={200: Outcome("OpenAPI 3.1.", ANYTHING)},
        ),
        *(
            Operation(
                f"workload-schema{suffix}",
                GET,
                f"{prefix}/workloads/schema-v1.json",
                "The JSON Schema of workload documents.",
                "documents",
                workload_schema,
                outcomes={200: Outcome("JSON Schema 2020-12.", ANYTHING)},
            )
            for prefix, suffix in (("", ""), (API, ".api"))
        ),
    )

"""Workloads: list, create, delete, and their instances."""

from __future__ import annotations

import msgspec

from rik.api.operations import API, GET, POST, Call, Operation, Outcome, Parameter, Reply, encode
from rik.api.schemas import TEXT, array, ref
from rik.api.service import Service
from rik.errors import BadRequest


class NamedBody(msgspec.Struct, frozen=True):
    """What is meant, by its id or its name."""

    id: str | None = None
    name: str | None = None
    uid: str | None = None

    def identity(self) -> str:
        """Raises BadRequest when there is none."""
        wanted = self.id or self.name or self.uid
        if not wanted:
            raise BadRequest('the request\'s body must name what is meant: {"id": …} or {"name": …}')
        return wanted


NAMED_BODY = {
    "type": "object",
    "properties": {"id": TEXT, "name": TEXT},
    "anyOf": [{"required": ["id"]}, {"required": ["name"]}],
}


async def list_workloads(service: Service, call: Call) -> Reply:
    return encode(service.list_workloads())


async def create_workload(service: Service, call: Call) -> Reply:
    data = await call.bytes()
    return encode(await service.create_workload(data, call.media_type, dry_run=bool(call.query["dryRun"])))


async def delete_workload(service: Service, call: Call) -> Reply:
    body = await call.json(NamedBody)
    await service.delete_workload(body.identity())
    return Reply(204)


async def workload_instances(service: Service, call: Call) -> Reply:
    found = service.workload_instances(call.path["workload"])
    return encode({"instances": found}) if found else Reply(204)


OPERATIONS = (
    Operation(
        "workloads.list",
        GET,
        f"{API}/workloads.list",
        "Every workload, oldest first.",
        "workloads",
        list_workloads,
        outcomes={200: Outcome("The workloads.", array(ref("WorkloadEntry")))},
    ),
    Operation(
        "workloads.create",
        POST,
        f"{API}/workloads.create",
        "Keep a workload; nothing is deployed by that. JSON whatever the Content-Type, YAML by its media type.",
        "workloads",
        create_workload,
        parameters=(Parameter("dryRun", "boolean", "Only check the document."),),
        body={"type": "object", "description": "A workload document: see /workloads/schema-v1.json."},
        outcomes={200: Outcome('Its id ("" with dryRun), and what is odd about the document.', ref("Created"))},
    ),
    Operation(
        "workloads.delete",
        POST,
        f"{API}/workloads.delete",
        "Forget a workload and destroy its instances.",
        "workloads",
        delete_workload,
        body=NAMED_BODY,
        outcomes={204: Outcome("It is gone; its instances are being stopped.", media_type="")},
    ),
    Operation(
        "workloads.instances",
        GET,
        f"{API}/workloads.instances/{{workload}}",
        "The instances of one workload, oldest first, each with its spec.",
        "workloads",
        workload_instances,
        outcomes={
            200: Outcome(
                "The instances.",
                {
                    "type": "object",
                    "properties": {"instances": {**array(ref("InstanceWithSpec")), "minItems": 1}},
                    "required": ["instances"],
                    "additionalProperties": False,
                },
            ),
            204: Outcome("It has none.", media_type=""),
        },
    ),
)

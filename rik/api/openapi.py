"""The OpenAPI 3.1 document, made from the same table of operations as the routes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import rik
from rik.api.operations import JSON_LINES, PROBLEM, WEBSOCKET, Operation, Outcome, Parameter
from rik.api.schemas import SCHEMAS, STATUS, ref

# What any call may answer beside its own outcomes.
_ERRORS = {
    400: "The request is malformed; the detail says where.",
    403: "The Origin is foreign, or the Host unknown.",
    404: "There is no such object.",
    405: "The route does not answer to this method.",
    409: "The name is taken, or the object is in a state that forbids it.",
    413: "The body is too large.",
    426: "The call is a websocket.",
    500: "A bug of RIK's; the detail names the incident in its log.",
    503: "Right request, wrong moment; `Retry-After` says when to try again.",
}
_PROBLEM: dict[str, Any] = {PROBLEM: {"schema": ref("Problem")}}


def openapi_document(operations: Sequence[Operation]) -> dict[str, Any]:
    """Websockets stand among the paths as GET with the answer 101 and the mark `x-websocket`."""
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        method = "get" if operation.method == WEBSOCKET else operation.method.lower()
        entry = paths.setdefault(operation.path, {})
        if method in entry:  # the same path as text and as a websocket
            entry[method]["x-websocket"] = operation.summary
            entry[method]["responses"]["101"] = {"description": operation.summary}
        else:
            entry[method] = _operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "RIK",
            "version": rik.__version__,
            "description": "Containers and microVMs side by side under one API. Names are accepted wherever ids are.",
        },
        "jsonSchemaDialect": "https://json-schema.org/draft/2020-12/schema",
        "paths": paths,
        "components": {"schemas": SCHEMAS},
    }


def _operation(operation: Operation) -> dict[str, Any]:
    names = [part[1:-1] for part in operation.path.split("/") if part.startswith("{")]
    described: dict[str, Any] = {
        "operationId": operation.id,
        "summary": operation.summary,
        "tags": [operation.tag],
        "parameters": [
            *({"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names),
            *map(_parameter, operation.parameters),
        ],
        "responses": {
            **{str(status): _outcome(outcome) for status, outcome in operation.outcomes.items()},
            **{
                str(status): {"description": text, "content": _PROBLEM}
                for status, text in _ERRORS.items()
                if status not in operation.outcomes
            },
        },
    }
    if operation.method == WEBSOCKET:
        described["x-websocket"] = operation.summary
    if operation.body is not None:
        described["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": operation.body}},
        }
    return described


def _outcome(outcome: Outcome) -> dict[str, Any]:
    if not outcome.media_type:
        return {"description": outcome.description}
    media = outcome.media_type.partition(";")[0]
    schema = outcome.schema if outcome.schema is not None else {"type": "string"}
    content = {media: {"schema": schema}}
    if outcome.lines is not None:
        content[JSON_LINES] = {"schema": {**outcome.lines, "description": "Of each line."}}
    return {"description": outcome.description, "content": content}


def _parameter(parameter: Parameter) -> dict[str, Any]:
    schema: dict[str, Any]
    match parameter.kind:
        case "texts":
            schema = {"type": "array", "items": {"type": "string"}}
        case "statuses":
            schema = {"type": "array", "items": STATUS}
        case "integer":
            schema = {"type": "integer", "minimum": parameter.minimum}
        case "boolean":
            schema = {"type": "boolean"}
        case _:
            schema = {"type": "string"}
    return {
        "name": parameter.name,
        "in": "query",
        "required": parameter.required,
        "description": parameter.description,
        "schema": schema,
    }

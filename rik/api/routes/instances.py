"""Instances: list, get, create, delete, stats, explain, and the websocket that watches them."""

from __future__ import annotations

import msgspec
import trio

from rik.api.filters import Filter
from rik.api.operations import (
    API,
    GET,
    POST,
    WEBSOCKET,
    Call,
    Operation,
    Outcome,
    Parameter,
    Reply,
    Socket,
    encode,
)
from rik.api.routes.workloads import NAMED_BODY, NamedBody
from rik.api.schemas import INTEGER, TEXT, array, ref
from rik.api.service import Service
from rik.api.streams import CLOSE_GOING_AWAY
from rik.api.watch import Watch
from rik.errors import BadRequest
from rik.model.limits import MAX_REPLICAS

CONTINUE_HEADER = "Rik-Continue"

FILTERS = (
    Parameter("status", "statuses", "Only those of this status; several with commas, or given repeatedly."),
    Parameter("workload", "text", "Only those of this workload (id or name)."),
    Parameter("node", "text", "Only those on this node (id or name)."),
    Parameter("namespace", "text", "Only those of this namespace."),
)


class CreateInstancesBody(msgspec.Struct, frozen=True):
    """`workload_id` is an id or a name; so is `workload`, for those who write it that way."""

    workload_id: str | None = None
    workload: str | None = None
    name: str | None = None
    replicas: int | None = None


def _filter(call: Call) -> Filter:
    query = call.query
    return Filter(query["status"], query["workload"] or "", query["node"] or "", query["namespace"] or "")


async def list_instances(service: Service, call: Call) -> Reply:
    page = service.list_instances(_filter(call), call.query["limit"], call.query["continue"] or "")
    return encode(page.entries, headers={CONTINUE_HEADER: page.following} if page.following else {})


async def get_instance(service: Service, call: Call) -> Reply:
    return encode(await service.show_instance(call.path["instance"]))


async def create_instances(service: Service, call: Call) -> Reply:
    body = await call.json(CreateInstancesBody)
    workload = body.workload_id or body.workload
    if not workload:
        raise BadRequest('the request\'s body must name a workload: {"workload_id": …}')
    replicas = 1 if body.replicas is None else body.replicas
    return encode(await service.create_instances(workload, body.name or "", replicas), status=201)


async def delete_instance(service: Service, call: Call) -> Reply:
    body = await call.json(NamedBody)
    await service.delete_instance(body.identity())
    return Reply(204)


async def instance_stats(service: Service, call: Call) -> Reply:
    return encode(await service.instance_stats(call.path["instance"]))


async def explain_instance(service: Service, call: Call) -> Reply:
    return encode(await service.explain_instance(call.path["instance"]))


async def watch_instances(service: Service, call: Call, socket: Socket) -> None:
    wanted, since, batch = _filter(call), call.query["since"], bool(call.query["batch"])
    await socket.accept()
    watch = Watch(service.hub, wanted, socket.send, service.closing, batch=batch)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_discard, socket)
        await watch.run(since)
        nursery.cancel_scope.cancel()
    await socket.close(CLOSE_GOING_AWAY)


async def _discard(socket: Socket) -> None:
    """A watcher has nothing to say; reading it shows that it is there."""
    while True:
        await socket.receive()


OPERATIONS = (
    Operation(
        "instances.list",
        GET,
        f"{API}/instances.list",
        f"Instances, oldest first. With `limit`, the header `{CONTINUE_HEADER}` holds the token for the rest, if any.",
        "instances",
        list_instances,
        parameters=(
            *FILTERS,
            Parameter("limit", "integer", "At most so many.", minimum=1),
            Parameter("continue", "text", "Go on where this token was given."),
        ),
        outcomes={200: Outcome("The instances.", array(ref("InstanceEntry")))},
    ),
    Operation(
        "instances.get",
        GET,
        f"{API}/instances.get/{{instance}}",
        "One instance in full: the listed one, else that name's latest post-mortem; a uid finds exactly one.",
        "instances",
        get_instance,
        outcomes={200: Outcome("The instance.", ref("Instance"))},
    ),
    Operation(
        "instances.create",
        POST,
        f"{API}/instances.create",
        "Deploy a workload.",
        "instances",
        create_instances,
        body={
            "type": "object",
            "properties": {
                "workload_id": TEXT,
                "workload": TEXT,
                "name": TEXT,
                "replicas": {**INTEGER, "minimum": 1, "maximum": MAX_REPLICAS, "default": 1},
            },
            "anyOf": [{"required": ["workload_id"]}, {"required": ["workload"]}],
        },
        outcomes={201: Outcome("The names of the new instances.", {**array(TEXT), "minItems": 1})},
    ),
    Operation(
        "instances.delete",
        POST,
        f"{API}/instances.delete",
        "Stop an instance and remove it from the list; its post-mortem stays.",
        "instances",
        delete_instance,
        body=NAMED_BODY,
        outcomes={204: Outcome("Accepted, durably; the stopping takes its time.", media_type="")},
    ),
    Operation(
        "instances.stats",
        GET,
        f"{API}/instances.stats/{{instance}}",
        "What the instance uses at this moment.",
        "instances",
        instance_stats,
        outcomes={200: Outcome("Its use.", ref("Stats"))},
    ),
    Operation(
        "instances.explain",
        GET,
        f"{API}/instances.explain/{{instance}}",
        "Why the instance is where it is, or has no place yet.",
        "instances",
        explain_instance,
        outcomes={200: Outcome("The decision.", ref("Explanation"))},
    ),
    Operation(
        "instances.watch",
        WEBSOCKET,
        f"{API}/instances.watch",
        "Every change of a matching instance, in order, each once: text frames of JSON (schema WatchFrame).",
        "instances",
        socket=watch_instances,
        parameters=(
            *FILTERS,
            Parameter("since", "integer", "Resume after this revision."),
            Parameter("batch", "boolean", "Changes in batches, coalesced in time."),
        ),
        outcomes={101: Outcome("The websocket is open.", media_type="")},
    ),
)

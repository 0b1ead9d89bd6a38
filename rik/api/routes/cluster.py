"""Nodes, events, and the cluster as a whole."""

from __future__ import annotations

from rik.api.operations import API, GET, Call, Operation, Outcome, Parameter, Reply, encode
from rik.api.schemas import array, ref
from rik.api.service import MAX_EVENTS_SINCE, Service
from rik.model.public import render_event


async def list_nodes(service: Service, call: Call) -> Reply:
    return encode(service.list_nodes())


async def get_node(service: Service, call: Call) -> Reply:
    return encode(service.show_node(call.path["node"]))


async def audit_node(service: Service, call: Call) -> Reply:
    return encode(await service.audit_node(call.path["node"]))


async def doctor_node(service: Service, call: Call) -> Reply:
    return encode(await service.doctor_node(call.path["node"]))


async def list_events(service: Service, call: Call) -> Reply:
    query = call.query
    events = await service.list_events(query["instance"] or "", query["since"] or 0, query["limit"])
    return encode([render_event(event) for event in events])


async def cluster_info(service: Service, call: Call) -> Reply:
    return encode(service.cluster_info())


OPERATIONS = (
    Operation(
        "nodes.list",
        GET,
        f"{API}/nodes.list",
        "Every node, by name.",
        "nodes",
        list_nodes,
        outcomes={200: Outcome("The nodes.", array(ref("NodeEntry")))},
    ),
    Operation(
        "nodes.get",
        GET,
        f"{API}/nodes.get/{{node}}",
        "One node.",
        "nodes",
        get_node,
        outcomes={200: Outcome("The node.", ref("Node"))},
    ),
    Operation(
        "nodes.audit",
        GET,
        f"{API}/nodes.audit/{{node}}",
        "Every resource on the node's host that RIK made, with its owner; an orphan has none.",
        "nodes",
        audit_node,
        outcomes={200: Outcome("The resources.", ref("Audit"))},
    ),
    Operation(
        "nodes.doctor",
        GET,
        f"{API}/nodes.doctor/{{node}}",
        "What works on the node's host, tried for real, and why the rest does not.",
        "nodes",
        doctor_node,
        outcomes={200: Outcome("The checks.", ref("Doctor"))},
    ),
    Operation(
        "events.list",
        GET,
        f"{API}/events.list",
        "What happened, oldest first.",
        "events",
        list_events,
        parameters=(
            Parameter("instance", "text", "Only this instance's, by name or uid; it may be gone."),
            Parameter("since", "integer", "Only those after this revision."),
            Parameter("limit", "integer", "Only so many of the latest.", minimum=1, maximum=MAX_EVENTS_SINCE),
        ),
        outcomes={200: Outcome("The events.", array(ref("Event")))},
    ),
    Operation(
        "cluster.info",
        GET,
        f"{API}/cluster.info",
        "The cluster as a whole.",
        "cluster",
        cluster_info,
        outcomes={200: Outcome("The cluster.", ref("ClusterInfo"))},
    ),
)

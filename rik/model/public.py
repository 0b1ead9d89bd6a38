"""Records as the API shows them: the contract's `<instance>`, workloads, nodes and events. Pure.

Every function returns plain data (dicts, lists, strings, numbers) that is ready for JSON. Times become RFC 3339 in UTC
with milliseconds. What is unknown is null where it would be a time, a number or an object, and "" where it is text.
"""

from __future__ import annotations

import time
from typing import Any

from rik.errors import Refused
from rik.model.change import RecordedEvent
from rik.model.instance import ContainerState, ImageUse, Instance, LogLine, Port, Progress, Reason, Status, Transition
from rik.model.node import Capability, Node
from rik.model.resources import Resources, parse_cpu_millis, parse_memory_bytes
from rik.model.workload import FUNCTION, Workload


def render_time(at: int | None) -> str | None:
    """Milliseconds since the epoch as `2026-01-31T12:00:00.000Z`; None and 0 as None."""
    if not at:
        return None
    seconds, millis = divmod(at, 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{millis:03d}Z"


def render_instance(record: Instance, progress: Progress | None = None) -> dict[str, Any]:
    """The summary: without `spec`, `history` and `log_tail`. `progress` is the live one, if any."""
    reason, message = explain_status(record)
    live = progress if record.status in (Status.PENDING, Status.CREATING) else None
    return {
        "id": record.name,
        "uid": record.uid,
        "name": record.name,
        "kind": record.kind,
        "namespace": record.namespace,
        "workload_id": record.workload_id,
        "workload": record.workload,
        "status": record.status.value,
        "reason": reason,
        "message": message,
        "node": record.node,
        "stale_since": render_time(record.stale_since),
        "created_at": render_time(record.created_at),
        "updated_at": render_time(record.updated_at),
        "step": live.step if live else record.step,
        "progress": render_progress(live) if live else None,
        "containers": [_container(container) for container in record.containers],
        "ip": record.ip,
        "ports": [_port(port) for port in record.ports],
        "enforced": dict(record.enforced),
        "revision": record.revision,
    }


def render_instance_with_spec(record: Instance, progress: Progress | None = None) -> dict[str, Any]:
    """The summary and its `spec`: what `workloads.instances` shows."""
    return {**render_instance(record, progress), "spec": render_spec(record)}


def render_instance_in_full(record: Instance, progress: Progress | None = None) -> dict[str, Any]:
    """Everything: what `instances.get` and the frame of a final status show."""
    return {
        **render_instance_with_spec(record, progress),
        "decision": record.decision,
        "images": [render_image_use(image) for image in record.images],
        "history": [_transition(transition) for transition in record.history],
        "log_tail": [_log_line(line) for line in record.log_tail],
    }


def render_progress(progress: Progress) -> dict[str, Any]:
    """How far a step has come; `layers` is null where no image is being brought."""
    layers = {"done": progress.layers_done, "total": progress.layers_total} if progress.layers_total else None
    return {
        "done": progress.done,
        "total": progress.total,
        "unit": progress.unit,
        "layers": layers,
        "seconds": round(progress.seconds, 1),
    }


def render_image_use(image: ImageUse) -> dict[str, Any]:
    """An image as an instance was given it."""
    return {
        "reference": image.reference,
        "digest": image.digest,
        "containers": list(image.containers),
        "origin": image.origin,
        "cached": image.cached,
        "layers": image.layers,
        "pulled_layers": image.pulled_layers,
        "pulled_bytes": image.pulled_bytes,
        "size_bytes": image.size_bytes,
        "seconds": round(image.seconds, 3),
        "pulled_at": render_time(image.pulled_at),
        "exposed_ports": list(image.exposed_ports),
        "dropped": dict(image.dropped),
        "labels": dict(image.labels),
    }


def explain_status(record: Instance) -> tuple[str, str]:
    """Reason and message. Lost contact is derived here and never stored over what was observed."""
    if record.stale_since is None or record.status.final:
        return record.reason, record.message
    sentence = (
        f"node {record.node} has not been heard of since {render_time(record.stale_since)}; "
        f"{record.status.value} is what was last known"
    )
    return Reason.NODE_UNREACHABLE.value, f"{sentence}: {record.message}" if record.message else sentence


def render_spec(record: Instance) -> dict[str, Any]:
    """The instance's spec; a Function's `exposure` is filled in with the port it got."""
    if record.kind != FUNCTION or not record.ports:
        return record.spec
    port = record.ports[0]
    exposure = {"port": port.port, "targetPort": port.target_port, "type": port.type}
    return {**record.spec, "function": {**(record.spec.get("function") or {}), "exposure": exposure}}


def render_workload(record: Workload) -> dict[str, Any]:
    """An entry of `workloads.list`: the document with `replicas` and `spec.containers` filled in."""
    document = record.document
    spec = document.get("spec") or {}
    spec = {**spec, "containers": spec.get("containers") or []}
    value = {**document, "replicas": document.get("replicas") or 1, "spec": spec}
    return {"id": record.id, "name": record.name, "value": value}


def render_node(record: Node, allocated: Resources, instances: int) -> dict[str, Any]:
    """A node; `allocated` is what its `instances` (those that are not final) have asked for together."""
    return {
        "id": record.id,
        "name": record.name,
        "status": record.status.value,
        "roles": list(record.roles),
        "labels": dict(record.labels),
        "runtimes": [_capability(capability) for capability in record.capabilities],
        "capacity": _resources(record.capacity),
        "allocated": _resources(allocated),
        "instances": instances,
        "heartbeat_at": render_time(record.heartbeat_at),
        "version": record.version,
        "boot_id": record.boot_id,
        "cordoned": record.cordoned,
        "metrics": dict(record.metrics),
    }


def render_event(recorded: RecordedEvent) -> dict[str, Any]:
    """An entry of `events.list`."""
    event = recorded.event
    return {
        "revision": recorded.revision,
        "at": render_time(recorded.at),
        "namespace": event.namespace,
        "object": event.object,
        "node": event.node,
        "type": event.type,
        "reason": event.reason,
        "message": event.message,
    }


def render_refusal(refusal: Refused) -> list[dict[str, str]]:
    """The `errors` of a problem document."""
    return [{"pointer": error.pointer, "message": error.message} for error in refusal.errors]


def requested_resources(record: Instance) -> Resources:
    """What the instance asks for, from its (checked) spec."""
    wanted = record.spec.get("resources") or {}
    return Resources(
        cpu_millis=parse_cpu_millis(wanted["cpu"]) if wanted.get("cpu") is not None else 0,
        memory_bytes=parse_memory_bytes(wanted["memory"]) if wanted.get("memory") is not None else 0,
        pids=int(wanted.get("pids") or 0),
    )


def _container(state: ContainerState) -> dict[str, Any]:
    return {
        "name": state.name,
        "image": state.image,
        "state": state.state,
        "exit_code": state.exit_code,
        "signal": state.signal,
        "oom_killed": state.oom_killed,
        "started_at": render_time(state.started_at),
        "ended_at": render_time(state.ended_at),
    }


def _port(port: Port) -> dict[str, Any]:
    return {
        "port": port.port,
        "targetPort": port.target_port,
        "protocol": port.protocol,
        "type": port.type,
        "address": port.address,
    }


def _transition(transition: Transition) -> dict[str, Any]:
    return {"status": transition.status.value, "at": render_time(transition.at), "message": transition.message}


def _log_line(line: LogLine) -> dict[str, Any]:
    return {"container": line.container, "stream": line.stream, "at": render_time(line.at), "line": line.line}


def _capability(capability: Capability) -> dict[str, Any]:
    return {
        "name": capability.runtime,
        "ok": capability.ok,
        "reason": capability.reason,
        "kinds": list(capability.kinds),
        "limits": dict(capability.limits),
    }


def _resources(resources: Resources) -> dict[str, int]:
    return {"cpu_millis": resources.cpu_millis, "memory_bytes": resources.memory_bytes, "pids": resources.pids}

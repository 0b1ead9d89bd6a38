"""Records as the API shows them."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from rik.model.change import Event, RecordedEvent
from rik.model.instance import ContainerState, ImageUse, Instance, LogLine, Port, Progress, Status, Transition
from rik.model.node import Capability, Node
from rik.model.public import (
    render_event,
    render_instance,
    render_instance_in_full,
    render_instance_with_spec,
    render_node,
    render_time,
    render_workload,
    requested_resources,
)
from rik.model.resources import Resources
from rik.model.workload import Workload

AT = 1_767_225_600_007
AT_TEXT = "2026-01-01T00:00:00.007Z"
DIGEST = "sha256:" + "1" * 64


def record(**fields: Any) -> Instance:
    values: dict[str, Any] = {
        "uid": "0123456789abcdefghjk",
        "name": "cobra-citer-1923",
        "kind": "Pod",
        "namespace": "default",
        "workload_id": "w1",
        "workload": "hello",
        "spec": {"containers": [{"name": "main", "image": "host"}]},
        "created_at": AT,
        "updated_at": AT,
    }
    return Instance(**{**values, **fields})


@pytest.mark.parametrize(
    ("at", "text"),
    [(AT, AT_TEXT), (1, "1970-01-01T00:00:00.001Z"), (0, None), (None, None), (AT + 993, "2026-01-01T00:00:01.000Z")],
)
def test_times_are_rfc3339_in_utc_with_milliseconds(at: int | None, text: str | None) -> None:
    """Times are RFC 3339 in UTC with milliseconds; what has not happened is null."""
    assert render_time(at) == text


def test_a_summary_leaves_out_what_is_large() -> None:
    """Lists and frames carry an instance without spec, history and log_tail, which the full form adds."""
    shown = render_instance(record())
    full = render_instance_in_full(record())
    assert not {"spec", "history", "log_tail"} & set(shown)
    assert {"spec", "history", "log_tail"} <= set(full)
    assert {key: full[key] for key in shown} == shown
    assert set(render_instance_with_spec(record())) - set(shown) == {"spec"}


def test_the_full_form_holds_what_the_contract_lists() -> None:
    """Every field of the contract is there, with id and name the same."""
    shown = render_instance_in_full(
        record(
            status=Status.FAILED,
            reason="ContainerExited",
            message="container main exited with code 3",
            node="n1",
            ip="10.0.0.2",
            step="start",
            revision=9,
            decision="the only node",
            history=(Transition(Status.FAILED, AT, "exited"),),
            containers=(ContainerState("main", "host", "exited", 3, None, False, AT, AT),),
            ports=(Port(45000, 8080, "TCP", "NodePort", "127.0.0.1"),),
            enforced={"cpu": True, "memory": "no writable cgroup"},
            images=(
                ImageUse(
                    "alpine:3",
                    DIGEST,
                    ("main",),
                    "docker.io",
                    False,
                    3,
                    2,
                    10,
                    20,
                    1.25,
                    AT,
                    ("80/tcp",),
                    {},
                    {"a": "b"},
                ),
            ),
            log_tail=(LogLine("main", "stderr", AT, "boom"),),
        )
    )
    assert shown == {
        "id": "cobra-citer-1923",
        "uid": "0123456789abcdefghjk",
        "name": "cobra-citer-1923",
        "kind": "Pod",
        "namespace": "default",
        "workload_id": "w1",
        "workload": "hello",
        "spec": {"containers": [{"name": "main", "image": "host"}]},
        "status": "Failed",
        "reason": "ContainerExited",
        "message": "container main exited with code 3",
        "node": "n1",
        "stale_since": None,
        "created_at": AT_TEXT,
        "updated_at": AT_TEXT,
        "step": "start",
        "progress": None,
        "history": [{"status": "Failed", "at": AT_TEXT, "message": "exited"}],
        "containers": [
            {
                "name": "main",
                "image": "host",
                "state": "exited",
                "exit_code": 3,
                "signal": None,
                "oom_killed": False,
                "started_at": AT_TEXT,
                "ended_at": AT_TEXT,
            }
        ],
        "ip": "10.0.0.2",
        "ports": [{"port": 45000, "targetPort": 8080, "protocol": "TCP", "type": "NodePort", "address": "127.0.0.1"}],
        "enforced": {"cpu": True, "memory": "no writable cgroup"},
        "revision": 9,
        "decision": "the only node",
        "images": [
            {
                "reference": "alpine:3",
                "digest": DIGEST,
                "containers": ["main"],
                "origin": "docker.io",
                "cached": False,
                "layers": 3,
                "pulled_layers": 2,
                "pulled_bytes": 10,
                "size_bytes": 20,
                "seconds": 1.25,
                "pulled_at": AT_TEXT,
                "exposed_ports": ["80/tcp"],
                "dropped": {},
                "labels": {"a": "b"},
            }
        ],
        "log_tail": [{"container": "main", "stream": "stderr", "at": AT_TEXT, "line": "boom"}],
    }
    msgspec.json.encode(shown)


def test_a_silent_node_is_told_without_hiding_what_was_known() -> None:
    """While its node is silent an instance keeps its status and says NodeUnreachable, and since when."""
    shown = render_instance(record(status=Status.RUNNING, node="n1", stale_since=AT, message="all is well"))
    assert (shown["status"], shown["reason"], shown["stale_since"]) == ("Running", "NodeUnreachable", AT_TEXT)
    assert "n1" in shown["message"] and AT_TEXT in shown["message"] and "all is well" in shown["message"]


def test_a_final_status_keeps_its_own_reason() -> None:
    """What has ended is not unreachable any more, whatever its node does."""
    shown = render_instance(record(status=Status.FAILED, reason="NodeLost", message="gone", stale_since=AT))
    assert (shown["reason"], shown["message"]) == ("NodeLost", "gone")


@pytest.mark.parametrize("status", [Status.PENDING, Status.CREATING])
def test_live_progress_is_shown_during_creation(status: Status) -> None:
    """Step and progress are the live ones while an instance is being created."""
    shown = render_instance(record(status=status, step="queued"), Progress("pull", 43, 100, "bytes"))
    assert shown["step"] == "pull"
    assert shown["progress"] == {"done": 43, "total": 100, "unit": "bytes", "layers": None, "seconds": 0.0}


def test_progress_of_an_image_is_in_bytes_layers_and_seconds() -> None:
    """A pull shows how many layers are complete and how long it has taken."""
    live = Progress("pull", 43, 100, "bytes", layers_done=2, layers_total=6, seconds=1.26)
    shown = render_instance(record(status=Status.CREATING), live)["progress"]
    assert shown == {"done": 43, "total": 100, "unit": "bytes", "layers": {"done": 2, "total": 6}, "seconds": 1.3}


def test_progress_ends_with_creation() -> None:
    """Late progress does not show on what runs."""
    shown = render_instance(record(status=Status.RUNNING, step="start"), Progress("pull", 43, 100, "bytes"))
    assert (shown["step"], shown["progress"]) == ("start", None)


def test_a_functions_exposure_is_filled_in() -> None:
    """A Function's spec says which port it got, and the record itself is not changed by that."""
    spec = {"containers": [], "function": {"execution": {"rootfs": "https://x/y.tar"}}}
    function = record(kind="Function", spec=spec, ports=(Port(45123, 8080),))
    shown = render_instance_with_spec(function)["spec"]
    assert shown["function"]["exposure"] == {"port": 45123, "targetPort": 8080, "type": "NodePort"}
    assert shown["function"]["execution"] == {"rootfs": "https://x/y.tar"}
    assert "exposure" not in spec["function"]


def test_a_workload_is_shown_normalised() -> None:
    """A listed document has replicas and containers, also when it was written without."""
    document = {"apiVersion": "v1", "kind": "Function", "name": "f", "spec": {"function": {}}}
    shown = render_workload(Workload("w1", "f", "default", document, AT))
    assert shown["id"] == "w1"
    assert shown["value"]["replicas"] == 1
    assert shown["value"]["spec"]["containers"] == []


def test_a_node_tells_capacity_and_what_is_taken() -> None:
    """A node shows its runtimes with their reasons, its capacity, and what is allocated of it."""
    node = Node(
        "id1", "n1", capabilities=(Capability("process", False, "no namespaces"),), capacity=Resources(2000, 1, 2)
    )
    shown = render_node(node, Resources(500, 0, 0), 3)
    assert shown["runtimes"] == [{"name": "process", "ok": False, "reason": "no namespaces", "kinds": [], "limits": {}}]
    assert shown["capacity"] == {"cpu_millis": 2000, "memory_bytes": 1, "pids": 2}
    assert (shown["allocated"]["cpu_millis"], shown["instances"], shown["heartbeat_at"]) == (500, 3, None)


def test_an_event_has_the_contracts_fields() -> None:
    """An event is {revision, at, namespace, object, node, type, reason, message}."""
    event = Event("instance/a", "Warning", "Killed", "it was killed", "default", "n1", "uid")
    assert render_event(RecordedEvent(7, AT, event)) == {
        "revision": 7,
        "at": AT_TEXT,
        "namespace": "default",
        "object": "instance/a",
        "node": "n1",
        "type": "Warning",
        "reason": "Killed",
        "message": "it was killed",
    }


def test_requested_resources_come_from_the_spec() -> None:
    """What an instance asks for is read from its document's quantities; nothing asked is nothing."""
    asked = record(spec={"resources": {"cpu": "500m", "memory": "64Mi", "pids": 10}})
    assert requested_resources(asked) == Resources(500, 64 * 2**20, 10)
    assert requested_resources(record()) == Resources()

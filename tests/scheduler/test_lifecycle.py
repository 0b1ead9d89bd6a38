"""What becomes of an instance, decided without a clock, a store or a link."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from rik.messages import Report
from rik.model.instance import FOLLOWERS, ContainerState, Instance, Status, Transition
from rik.model.workload import parse_spec
from rik.scheduler import lifecycle
from rik.scheduler.lifecycle import Step

AT = 1_700_000_000_000
SPEC = {"containers": [{"name": "main", "image": "host", "command": ["true"]}], "stopGraceSeconds": 5}
TYPED = parse_spec("Pod", SPEC)


def instance(status: str = "Running", **fields: Any) -> Instance:
    base = Instance(
        uid="u1",
        name="web",
        kind="Pod",
        namespace="default",
        workload_id="w1",
        workload="hello",
        spec=SPEC,
        created_at=AT,
        updated_at=AT,
        status=Status(status),
        node="alpha",
        node_id="n1",
        placed_at=AT,
        deadline_at=AT + 1000,
        history=(Transition(Status(status), AT),),
    )
    return msgspec.structs.replace(base, **fields)


def report(*statuses: str, at: int = AT + 50, **fields: Any) -> Report:
    passed = tuple(Transition(Status(status), at, f"it is {status}") for status in statuses)
    return Report("u1", 1, 1, Status(statuses[-1]), passed, **fields)


def told(steps: list[Step]) -> list[str]:
    return [
        step.kind if step.kind == "postmortem" else step.op if step.op == "delete" else step.value.status.value
        for step in steps
    ]


@pytest.mark.parametrize(
    ("before", "reported", "expected"),
    [
        ("Creating", ["Creating"], []),
        ("Creating", ["Running"], ["Running"]),
        ("Creating", ["Creating", "Running"], ["Running"]),
        ("Creating", ["Running", "Terminated"], ["Running", "Terminated", "postmortem"]),
        ("Creating", ["Running", "Destroying", "Failed"], ["Running", "Destroying", "Failed", "postmortem"]),
        ("Creating", ["Destroying"], ["Destroying"]),
        ("Creating", ["Failed"], ["Failed", "postmortem"]),
        ("Running", ["Creating"], []),
        ("Running", ["Creating", "Running"], []),
        ("Running", ["Creating", "Running", "Failed"], ["Failed", "postmortem"]),
        ("Destroying", ["Running"], []),
        ("Destroying", ["Running", "Terminated"], ["Terminated", "postmortem"]),
        ("Failed", ["Running"], []),
        ("Terminated", ["Failed"], []),
        ("Running", ["Pending"], []),
    ],
)
def test_reports(before: str, reported: list[str], expected: list[str]) -> None:
    """A report's statuses are taken over in order, as far as they can follow; what is late or repeated is dropped."""
    assert told(lifecycle.observe(instance(before), TYPED, report(*reported, reason=""), AT + 100)) == expected


def test_status_only_moves_forward() -> None:
    """No report, whatever it says, leads to a status that cannot follow."""
    for before in Status:
        for first in Status:
            for second in Status:
                record = instance(before.value)
                for step in lifecycle.observe(record, TYPED, report(first.value, second.value), AT + 100):
                    if step.kind == "instance":
                        assert step.value.status == record.status or step.value.status in FOLLOWERS[record.status]
                        record = step.value


def test_what_was_observed_changes_without_a_status() -> None:
    """A container that exits while others run is a change of its own, and a repetition of it is none."""
    exited = (ContainerState("main", "host", "exited", exit_code=0),)
    [step] = lifecycle.observe(instance(), TYPED, report("Running", containers=exited), AT + 100)
    assert step.value.containers == exited and len(step.value.history) == 1 and step.event is None
    assert lifecycle.observe(step.value, TYPED, report("Running", containers=exited), AT + 200) == []


def test_a_failing_pod_is_destroying_with_its_reason() -> None:
    """While the siblings are stopped the reason is already there; the deadline is the grace and 30 s more."""
    [step] = lifecycle.observe(
        instance(), TYPED, report("Destroying", reason="ContainerExited", message="exit 3"), AT + 100
    )
    assert (step.value.status, step.value.reason) == ("Destroying", "ContainerExited")
    assert step.value.deadline_at == AT + 50 + 35_000
    assert step.event is not None and step.event.type == "Warning"


def test_times_of_a_wrong_clock_are_kept_in_order() -> None:
    """A worker's clock that is ahead or behind never makes a history that goes backwards or into the future."""
    early = lifecycle.observe(instance(), TYPED, report("Failed", at=AT - 9999), AT + 100)
    late = lifecycle.observe(instance(), TYPED, report("Failed", at=AT + 9999), AT + 100)
    assert early[0].value.history[-1].at == AT
    assert late[0].value.history[-1].at == AT + 100


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        ("Pending", ["Terminated", "postmortem", "delete"]),
        ("Creating", ["Destroying"]),
        ("Running", ["Destroying"]),
        ("Destroying", ["Destroying"]),
        ("Failed", ["delete"]),
        ("Terminated", ["delete"]),
    ],
)
def test_delete(before: str, expected: list[str]) -> None:
    """What has no node or is final goes at once; what runs is stopped first; asking twice changes nothing."""
    steps = lifecycle.delete(instance(before), TYPED, AT + 100)
    assert told(steps) == expected
    if len(steps) == 1 and steps[0].op == "put":
        assert steps[0].value.deleted
        assert lifecycle.delete(steps[0].value, TYPED, AT + 200) == []


@pytest.mark.parametrize(
    ("status", "reason", "expected"),
    [
        ("Terminated", "", "Terminated"),
        ("Failed", "ContainerExited", "Terminated"),
        ("Failed", "Killed", "Terminated"),
        ("Failed", "DestroyFailed", "Failed"),
        ("Failed", "NodeLost", "Failed"),
    ],
)
def test_the_end_of_what_was_deleted(status: str, reason: str, expected: str) -> None:
    """Terminated whatever the exit code, but for what went wrong with the deletion; then the record is removed."""
    steps = lifecycle.end(instance("Destroying", deleted=True), Status(status), reason, "so it was", AT)
    assert told(steps) == [expected, "postmortem", "delete"]
    assert bool(steps[0].value.reason) == (expected == "Failed")
    assert steps[1].value == steps[0].value


@pytest.mark.parametrize(
    ("before", "fields", "reason", "words"),
    [
        ("Pending", {"node": "", "node_id": "", "message": "needs 2 GiB"}, "Unschedulable", ["needs 2 GiB", "600 s"]),
        ("Creating", {"step": "pull"}, "DeadlineExceeded", ["'pull'", "node alpha"]),
        ("Creating", {}, "DeadlineExceeded", ["never said how far"]),
        ("Destroying", {}, "DestroyFailed", ["node alpha", "rik audit"]),
        (
            "Destroying",
            {"reason": "ContainerExited", "message": "exit 3"},
            "DestroyFailed",
            ["ContainerExited: exit 3"],
        ),
    ],
)
def test_deadlines(before: str, fields: dict[str, Any], reason: str, words: list[str]) -> None:
    """A deadline that passes ends the status with a reason and a sentence that says how far it had come."""
    steps = lifecycle.expire(instance(before, **fields), AT + 119_000 if before == "Creating" else AT + 600_000)
    assert told(steps) == ["Failed", "postmortem"]
    assert steps[0].value.reason == reason
    for word in words[:1] if before == "Pending" else words:
        assert word in steps[0].value.message


def test_running_has_no_deadline() -> None:
    """Nothing ends a running instance but itself, its node, or a delete."""
    assert lifecycle.expire(instance(), AT + 10**9) == []
    assert lifecycle.backstop_at(instance(deadline_at=0), 45, 45) == 0


@pytest.mark.parametrize(
    ("before", "fields", "status", "reason"),
    [
        ("Running", {}, "Failed", "StoppedWithoutStatus"),
        ("Creating", {}, "Failed", "StoppedWithoutStatus"),
        ("Destroying", {"deleted": True}, "Terminated", ""),
        ("Destroying", {"reason": "OutOfMemory", "message": "killed"}, "Failed", "OutOfMemory"),
        ("Destroying", {}, "Failed", "StoppedWithoutStatus"),
    ],
)
def test_missing_from_the_inventory(before: str, fields: dict[str, Any], status: str, reason: str) -> None:
    """What its worker no longer holds ends with what is known of it."""
    last = lifecycle.miss(instance(before, **fields), AT)[0].value
    assert (last.status, last.reason) == (status, reason)


def test_lost_contact_is_beside_the_status() -> None:
    """Going stale and coming back leave the status and its history alone."""
    [stale] = lifecycle.go_stale(instance(), AT + 10, AT + 20)
    assert (stale.value.status, stale.value.stale_since, len(stale.value.history)) == ("Running", AT + 10, 1)
    assert lifecycle.go_stale(stale.value, AT + 30, AT + 30) == []
    [back] = lifecycle.come_back(stale.value, AT + 40)
    assert back.value.stale_since is None
    assert lifecycle.come_back(back.value, AT + 50) == []
    assert lifecycle.go_stale(instance("Failed"), AT, AT) == []


def test_the_assignment_says_all_that_a_worker_needs() -> None:
    """The creating deadline is absolute, and the order is addressed to the journal's identity."""
    told_worker = lifecycle.assignment(instance("Creating"), TYPED)
    assert told_worker.creating_deadline_at == AT + 600_000
    assert (told_worker.uid, told_worker.node_id, told_worker.spec) == ("u1", "n1", SPEC)

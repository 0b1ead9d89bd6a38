"""The read model and the filters, by themselves."""

from __future__ import annotations

import msgspec
import pytest

from rik.api.filters import Filter
from rik.api.gate import Gate
from rik.api.view import View
from rik.messages import Committed, LiveProgress, Snapshot
from rik.model.change import DELETE, INSTANCE, NODE, PUT, Change
from rik.model.instance import Instance, Progress, Status
from rik.model.node import NodeStatus
from rik.settings import ApiSettings
from tests.api.scheduler import NODE_A, NOW, instance


def put(record: Instance, revision: int, before: Instance | None = None) -> Change:
    return Change(
        INSTANCE, PUT, record.uid, msgspec.structs.replace(record, revision=revision), NOW, before, None, revision
    )


def test_changes_that_a_snapshot_held_are_passed_over() -> None:
    """What comes twice, by a snapshot and again, is applied once."""
    view = View(10)
    view.reset(Snapshot(5, (), (instance(1, Status.FAILED),), ()))
    view.apply(Committed((put(instance(1), 4), put(instance(2), 6))))
    assert view.instances[instance(1).uid].status is Status.FAILED
    assert (view.revision, [frame.change.revision for frame in view.recent]) == (6, [6])


def test_only_the_latest_changes_are_kept() -> None:
    """The changes after `floor` are all there, and no more than may be kept."""
    view = View(3)
    view.apply(Committed(tuple(put(instance(number), number) for number in range(1, 8))))
    assert view.floor == 4
    assert [frame.change.revision for frame in view.since(view.floor)] == [5, 6, 7]
    assert [frame.change.revision for frame in view.since(6)] == [7]
    assert list(view.since(7)) == []


def test_a_new_instance_may_take_the_name_of_one_that_is_leaving() -> None:
    """Removing an instance does not hide another one that has its name by now."""
    view = View(10)
    old, new = instance(1, name="same"), instance(2, name="same")
    view.apply(Committed((put(old, 1), put(new, 2), Change(INSTANCE, DELETE, old.uid, old, NOW, old, None, 3))))
    found = view.instance("same", "default")
    assert found is not None and found.uid == new.uid
    assert view.instance(old.uid, "default") is None
    assert [record.uid for record in view.instances_of("workload-id")] == [new.uid]


def test_progress_belongs_to_creation() -> None:
    """Progress of what runs, or is not known, is dropped; leaving creation ends it."""
    view = View(10)
    live = LiveProgress(instance(1).uid, Progress("pull", 1, 2))
    assert not view.take_progress(live)
    view.apply(Committed((put(instance(1, Status.CREATING), 1),)))
    assert view.take_progress(live) and not view.take_progress(live)
    view.apply(Committed((put(instance(1), 2),)))
    assert view.progress == {} and not view.take_progress(live)


def test_of_two_nodes_of_one_name_the_ready_one_is_meant() -> None:
    """A reinstalled host leaves a silent node of the same name, which its id still finds."""
    view = View(10)
    old = msgspec.structs.replace(NODE_A, id="old", status=NodeStatus.NOT_READY, created_at=NOW + 9)
    view.apply(
        Committed(
            (Change(NODE, PUT, "old", old, NOW, revision=1), Change(NODE, PUT, NODE_A.id, NODE_A, NOW, revision=2))
        )
    )
    assert view.node("node-a") is NODE_A
    assert view.node("old") is old
    assert view.node("nope") is None


def test_a_summary_is_rendered_once_until_it_changes() -> None:
    """Lists and watchers share one rendering of an instance, which its next change replaces."""
    view = View(10)
    view.apply(Committed((put(instance(1), 1),)))
    first = view.summary(view.instances[instance(1).uid])
    assert bytes(first) == bytes(view.summary(view.instances[instance(1).uid]))
    view.apply(Committed((put(instance(1, Status.FAILED), 2),)))
    assert b'"Failed"' in bytes(view.summary(view.instances[instance(1).uid]))


@pytest.mark.parametrize(
    ("before", "after", "shown"),
    [(Status.PENDING, Status.RUNNING, PUT), (Status.RUNNING, Status.FAILED, DELETE),
     (Status.RUNNING, Status.RUNNING, PUT), (Status.PENDING, Status.CREATING, None)],
)  # fmt: skip
def test_a_filter_shows_put_and_delete(before: Status, after: Status, shown: str | None) -> None:
    """Put when it matches afterwards, delete when it matched only before, nothing otherwise."""
    change = put(instance(1, after), 2, instance(1, before))
    assert Filter(statuses=frozenset({Status.RUNNING})).shows(change) == shown


@pytest.mark.parametrize(
    ("host", "server", "known"),
    [("192.0.2.7:5000", "192.0.2.7", True), ("192.0.2.8", "192.0.2.7", False), ("10.0.0.1", "192.0.2.7", False),
     ("evil.example", "192.0.2.7", False), ("[2001:db8::1]:5000", "2001:db8::1", True),
     ("localhost", "192.0.2.7", True)],
)  # fmt: skip
def test_the_address_a_connection_came_in_on_is_a_good_host(host: str, server: str, known: bool) -> None:
    """A server on all addresses answers to each of them by number, and to no foreign name."""
    scope = {"headers": [(b"host", host.encode())], "server": (server, 5000), "scheme": "http"}
    assert (Gate(ApiSettings(host="0.0.0.0")).refusal(scope) is None) == known

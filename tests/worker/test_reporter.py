"""What is told, in which order, and how often."""

from __future__ import annotations

from rik.messages import Report
from rik.model.instance import Status, Transition
from rik.worker.reporter import Reporter


def report(uid: str, *statuses: Status) -> Report:
    return Report(uid, 0, 0, statuses[-1], tuple(Transition(status, 1) for status in statuses))


async def test_later_reports_have_higher_numbers() -> None:
    """Every report carries the worker's epoch and a number above all before it."""
    reporter = Reporter(3)
    reporter.tell(report("a", Status.CREATING))
    reporter.tell(report("b", Status.CREATING))
    (a, b) = reporter.inventory()
    assert (a.epoch, b.epoch) == (3, 3)
    reporter.tell(report("a", Status.CREATING, Status.RUNNING))
    assert reporter.inventory()[0].sequence > b.sequence > a.sequence


async def test_only_what_is_unknown_is_told() -> None:
    """Statuses that were acknowledged are not told again; those that came since are, all of them."""
    reporter = Reporter(1)
    reporter.tell(report("a", Status.CREATING))
    first = reporter.inventory()[0]
    reporter.tell(report("a", Status.CREATING, Status.RUNNING))
    reporter.tell(report("a", Status.CREATING, Status.RUNNING, Status.DESTROYING))
    assert reporter.acknowledge({"a": first.sequence}) == []
    latest = reporter.inventory()[0]
    assert [t.status for t in latest.transitions] == [Status.RUNNING, Status.DESTROYING]
    assert reporter.unacknowledged()
    reporter.acknowledge({"a": latest.sequence})
    assert reporter.inventory()[0].transitions == ()


async def test_a_final_report_is_known_once_it_is_acknowledged_itself() -> None:
    """The acknowledgement of an earlier report says nothing of the final one."""
    reporter = Reporter(1)
    reporter.tell(report("a", Status.CREATING))
    early = reporter.inventory()[0]
    reporter.tell(report("a", Status.CREATING, Status.FAILED))
    assert reporter.acknowledge({"a": early.sequence, "unknown": 9}) == []
    final = reporter.inventory()[0]
    assert reporter.acknowledge({"a": final.sequence}) == ["a"]
    assert not reporter.unacknowledged()
    reporter.forget("a")
    assert reporter.inventory() == ()

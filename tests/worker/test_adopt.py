"""What a restart makes of what it finds."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from rik.errors import StartupError
from rik.messages import Assignment, Forget, Report, Run, Stop
from rik.model.instance import Status, Transition
from rik.runtime.base import Observed
from rik.worker.adopt import first_report, plan
from rik.worker.journal import Entry, Phase
from rik.worker.plan import Action
from tests.worker.harness import Site
from tests.worker.pretend import PretendedPublisher

ABSENT = Observed("absent")
LIVING = Observed("running")
ENDED = Observed("ended")


def entry(phase: Phase, *statuses: Status, stop: Stop | None = None) -> Entry:
    transitions = tuple(Transition(status, 1) for status in statuses or (Status.CREATING,))
    report = Report("a", 0, 0, transitions[-1].status, transitions)
    return Entry(Assignment("a", "a", "default", "w", "Pod", {}, 0, ""), "fake", report, phase, stop)


@pytest.mark.parametrize(
    ("phase", "observed", "stop", "rebooted", "action"),
    [
        (Phase.ACCEPTED, ABSENT, None, False, Action.CREATE),
        (Phase.ACCEPTED, ABSENT, Stop("a"), False, Action.STOP),
        (Phase.STARTING, LIVING, None, False, Action.WATCH),
        (Phase.STARTING, ENDED, None, False, Action.WATCH),
        (Phase.STARTING, ABSENT, None, False, Action.END),
        (Phase.RUNNING, LIVING, None, False, Action.WATCH),
        (Phase.RUNNING, ENDED, None, False, Action.WATCH),
        (Phase.RUNNING, Observed("failing"), None, False, Action.WATCH),
        (Phase.RUNNING, ABSENT, None, False, Action.END),
        (Phase.STOPPING, LIVING, Stop("a"), False, Action.STOP),
        (Phase.STOPPING, ABSENT, Stop("a"), False, Action.STOP),
        (Phase.REMOVING, ABSENT, None, False, Action.REMOVE),
        (Phase.REMOVING, ABSENT, None, True, Action.REMOVE),
        (Phase.ACCEPTED, ABSENT, None, True, Action.END),
        (Phase.RUNNING, ABSENT, None, True, Action.END),
        (Phase.STOPPING, ABSENT, Stop("a"), True, Action.END),
    ],
)
def test_plan(phase: Phase, observed: Observed, stop: Stop | None, rebooted: bool, action: Action) -> None:
    """Every phase and every sight of it leads to one plan."""
    decided = plan(entry(phase, stop=stop), observed, rebooted)
    assert decided.action is action
    if action is Action.END:
        assert decided.ending is not None
        assert decided.ending.reason == ("NodeRestarted" if rebooted else "StoppedWithoutStatus")


def test_a_final_status_is_not_said_before_it_is_true() -> None:
    """What was about to be said Failed is said to be what it was before, until nothing is left of it."""
    removing = entry(Phase.REMOVING, Status.CREATING, Status.RUNNING, Status.FAILED)
    assert first_report(removing).status is Status.RUNNING
    assert [t.status for t in first_report(removing).transitions] == [Status.CREATING, Status.RUNNING]


async def test_living_instances_are_adopted(autojump_clock: MockClock) -> None:
    """What runs through a crash of RIK is Running afterwards, started once, and its real end is told."""
    publisher = PretendedPublisher()
    site = Site(publisher=publisher)
    async with site.running():
        env = {"FAKE_RUN_SECONDS": "100", "FAKE_EXIT_CODE": "4"}
        assignment = site.assignment("a", env, ports=[{"port": 0, "targetPort": 80}])
        await site.scheduler.run(assignment)
        running = await site.scheduler.until("a", Status.RUNNING)
    publisher.published.clear()
    await trio.sleep(10)
    async with site.running(welcome=False):
        hello = await site.scheduler.hello(1)
        assert (hello.epoch, [r.status for r in hello.inventory]) == (2, [Status.RUNNING])
        assert hello.inventory[0].sequence > 0
        await site.scheduler.welcome(Run(assignment))
        await trio.sleep(1)
        assert publisher.published["a"] == running.ports, "the same port again"
        final = await site.scheduler.final("a")
        assert (final.status, final.reason, final.containers[0].exit_code) == (Status.FAILED, "ContainerExited", 4)
        assert final.epoch == 2
    assert site.environment.steps.count("worker.start.done") == 1


async def test_what_ended_while_rik_was_down_is_explained(autojump_clock: MockClock) -> None:
    """An instance that ended during the absence has its true exit code and time."""
    site = Site()
    async with site.running():
        await site.scheduler.run(site.assignment("a", {"FAKE_RUN_SECONDS": "20", "FAKE_EXIT_CODE": "9"}))
        await site.scheduler.until("a", Status.RUNNING)
    await trio.sleep(500)
    async with site.running():
        final = await site.scheduler.final("a")
        assert final.message == "container `c0` exited with code 9 after 20.0 s"


async def test_what_vanished_says_so(autojump_clock: MockClock) -> None:
    """What ran and is gone without a trace is Failed StoppedWithoutStatus."""
    site = Site()
    async with site.running():
        await site.scheduler.run(site.assignment("a"))
        await site.scheduler.until("a", Status.RUNNING)
    site.machine.reboot()
    async with site.running():
        assert (await site.scheduler.final("a")).reason == "StoppedWithoutStatus"


async def test_a_reboot_is_told_apart(autojump_clock: MockClock) -> None:
    """What ran when the host went down is Failed NodeRestarted; what comes later is not."""
    site = Site()
    async with site.running():
        await site.scheduler.run(site.assignment("a"))
        await site.scheduler.until("a", Status.RUNNING)
    site.machine.reboot()
    site.boot_id = "boot-2"
    async with site.running():
        assert (await site.scheduler.final("a")).reason == "NodeRestarted"
        await site.scheduler.run(site.assignment("b"))
        await site.scheduler.until("b", Status.RUNNING)
    async with site.running(welcome=False):
        assert [r.status for r in (await site.scheduler.hello(2)).inventory] == [Status.RUNNING]


async def test_a_half_made_instance_is_made_again(autojump_clock: MockClock) -> None:
    """A creation that was cut off before anything was executed goes on after the restart."""
    site = Site()
    async with site.running():
        await site.scheduler.run(site.assignment("a", {"FAKE_PREPARE_SECONDS": "10"}))
        await trio.sleep(5)
    async with site.running(welcome=False):
        await site.scheduler.hello(1)
        await site.scheduler.welcome(Run(site.assignment("a")))
        await site.scheduler.until("a", Status.RUNNING)
        assert site.machine.live() == ["a"]


async def test_a_start_that_was_cut_off_is_never_repeated(autojump_clock: MockClock) -> None:
    """When it is not known whether commands were executed they are not executed again."""
    site = Site()
    async with site.running():
        await site.scheduler.run(site.assignment("a", {"FAKE_START_SECONDS": "10"}))
        await trio.sleep(5)
    async with site.running():
        final = await site.scheduler.final("a")
        assert final.reason == "StoppedWithoutStatus"
        assert "not executed again" in final.message
        assert site.machine.live() == []


async def test_an_interrupted_stop_goes_on(autojump_clock: MockClock) -> None:
    """A deletion that was cut off is carried on without being asked again."""
    site = Site()
    async with site.running():
        await site.scheduler.run(site.assignment("a", {"FAKE_STOP_SECONDS": "8"}))
        await site.scheduler.until("a", Status.RUNNING)
        await site.scheduler.stop("a")
        await site.scheduler.until("a", Status.DESTROYING)
    async with site.running(welcome=False):
        assert [r.status for r in (await site.scheduler.hello(1)).inventory] == [Status.DESTROYING]
        assert (await site.scheduler.final("a")).status is Status.TERMINATED
        assert site.machine.live() == []


async def test_a_final_report_survives_until_acknowledged(autojump_clock: MockClock) -> None:
    """How an instance ended is told again after a restart, unless the scheduler has said that it knows."""
    site = Site()
    site.scheduler.acknowledges = False
    async with site.running():
        env = {"FAKE_RUN_SECONDS": "1", "FAKE_EXIT_CODE": "5", "FAKE_LOG_LINES": "2"}
        await site.scheduler.run(site.assignment("a", env))
        first = await site.scheduler.final("a")
    site.scheduler.latest.clear()
    async with site.running(welcome=False):
        await site.scheduler.hello(1)
        await site.scheduler.welcome(Run(site.assignment("a")))
        again = await site.scheduler.final("a")
        assert (again.reason, again.message, again.containers, again.log_tail) == (
            first.reason,
            first.message,
            first.containers,
            first.log_tail,
        )
        await site.scheduler.forget("a")
        await trio.sleep(1)
        assert site.memory.entries() == {}


async def test_unwanted_instances_are_stopped(autojump_clock: MockClock) -> None:
    """What the scheduler does not name in its welcome is stopped, and dropped once it is forgotten."""
    site = Site()
    async with site.running():
        await site.scheduler.run(site.assignment("a"))
        await site.scheduler.run(site.assignment("b"))
        await site.scheduler.until("a", Status.RUNNING)
        await site.scheduler.until("b", Status.RUNNING)
    async with site.running(welcome=False):
        await site.scheduler.hello(1)
        await site.scheduler.welcome(Run(site.assignment("a")), Forget("b"))
        await trio.sleep(5)
        assert site.machine.live() == ["a"]
        assert list(site.memory.entries()) == ["a"]


async def test_orphans_are_swept(autojump_clock: MockClock) -> None:
    """What carries this host's name and is in no journal is removed at the start; what is owned stays."""
    site = Site()
    async with site.running():
        await site.scheduler.run(site.assignment("a"))
        await site.scheduler.until("a", Status.RUNNING)
    from rik.runtime.fakemachine import Facts

    site.machine.put(Facts(site.assignment("stray"), started_at=1))
    async with site.running():
        assert site.machine.live() == ["a"]


async def test_a_missing_runtime_refuses_to_start(autojump_clock: MockClock) -> None:
    """A worker that cannot look after what it owns says so instead of losing it."""
    from rik.runtime.fake import FakeRuntime

    site = Site()
    async with site.running():
        await site.scheduler.run(site.assignment("a"))
        await site.scheduler.until("a", Status.RUNNING)

    class Other(FakeRuntime):
        name = "other"

    site.runtimes = [Other(site.environment)]
    with pytest.RaisesGroup(pytest.RaisesExc(StartupError, match="fake"), flatten_subgroups=True):
        async with site.running():
            pass
    assert list(site.memory.entries()) == ["a"]

"""What the fake runtime adds to the contract that `tests/conformance` checks: its script, its machine, its size."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from rik.errors import InstanceFailure
from rik.link.local import stream_pair
from rik.messages import Assignment, Attach, ReadLogs
from rik.model.instance import Progress, Status
from rik.runtime.base import Pod
from rik.runtime.fake import FakeMachine, FakeRuntime
from tests.worker.harness import Site
from tests.worker.pretend import PretendedEnvironment


def pod(uid: str, *envs: dict[str, str], **spec: Any) -> Pod:
    containers = [
        {"name": f"c{i}", "image": "host", "env": [{"name": k, "value": v} for k, v in env.items()]}
        for i, env in enumerate(envs or ({},))
    ]
    return Pod.of(Assignment(uid, uid, "default", "w", "Pod", {"containers": containers, **spec}, 0, "j"))


def ignore(progress: Progress) -> None:
    pass


async def run(runtime: FakeRuntime, given: Pod) -> None:
    await runtime.prepare(given, ignore)
    await runtime.start(given)


async def test_the_clock_decides(autojump_clock: MockClock) -> None:
    """Everything follows from the facts and the time: two sights at one time agree, whoever looks."""
    environment = PretendedEnvironment()
    machine = FakeMachine()
    await run(FakeRuntime(environment, machine), pod("a", {"FAKE_RUN_SECONDS": "10", "FAKE_EXIT_CODE": "2"}))
    other = FakeRuntime(environment, machine)
    assert (await other.observe("a")).phase == "running"
    await trio.sleep(10)
    observed = await other.observe("a")
    assert (observed.phase, observed.containers[0].exit_code) == ("ended", 2)
    assert observed.failure is not None
    assert observed.failure.reason == "ContainerExited"


async def test_a_directory_keeps_the_machine(tmp_path: Path) -> None:
    """With a directory what ran is found again by another process."""
    environment = PretendedEnvironment()
    await run(FakeRuntime(environment, FakeMachine(tmp_path)), pod("a"))
    later = FakeRuntime(environment, FakeMachine(tmp_path))
    assert (await later.observe("a")).phase == "running"
    await later.stop("a", 1)
    await later.remove("a")
    assert await FakeRuntime(environment, FakeMachine(tmp_path)).inventory() == []


async def test_every_reason_can_be_asked_for(autojump_clock: MockClock) -> None:
    """FAKE_FAIL gives its reason at the verb that was chosen, as often as was chosen."""
    runtime = FakeRuntime(PretendedEnvironment())
    given = pod("a", {"FAKE_FAIL": "DestroyFailed", "FAKE_FAIL_AT": "stop", "FAKE_FAIL_TIMES": "1"})
    await run(runtime, given)
    with pytest.raises(InstanceFailure) as failed:
        await runtime.stop("a", 0)
    assert (failed.value.reason, failed.value.container) == ("DestroyFailed", "c0")
    await runtime.stop("a", 0)
    assert (await runtime.observe("a")).phase == "ended"


async def test_functions_have_scripts_too(autojump_clock: MockClock) -> None:
    """A function reads its script from its command."""
    function = {"execution": {"rootfs": "https://example.org/x", "command": ["FAKE_RUN_SECONDS=3", "FAKE_EXIT_CODE=1"]}}
    given = Pod.of(Assignment("f", "f", "default", "w", "Function", {"function": function}, 0, "j"))
    runtime = FakeRuntime(PretendedEnvironment())
    await run(runtime, given)
    ended = await runtime.wait("f", lambda observed: None)
    assert (ended.containers[0].name, ended.containers[0].exit_code) == ("function", 1)


async def test_lines_come_with_time(autojump_clock: MockClock) -> None:
    """FAKE_LOG_SECONDS spreads the lines, and following sees them as they come."""
    runtime = FakeRuntime(PretendedEnvironment())
    await run(runtime, pod("a", {"FAKE_LOG_LINES": "5", "FAKE_LOG_SECONDS": "2", "FAKE_RUN_SECONDS": "20"}))
    seen = []
    async for batch in runtime.logs(ReadLogs("a", follow=True)):
        seen += [(round(trio.current_time()), line.line) for line in batch]
    assert seen == [(0, "line 0"), (2, "line 1"), (4, "line 2"), (6, "line 3"), (8, "line 4")]


async def test_attached_input_comes_back(autojump_clock: MockClock) -> None:
    """FAKE_CAT echoes attached input and exits with its end."""
    runtime = FakeRuntime(PretendedEnvironment())
    await run(runtime, pod("a", {"FAKE_CAT": "1"}))
    ours, theirs = stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(runtime.attach, Attach("a"), theirs)
        await ours.send(b"\x00hello")
        assert await ours.receive() == b"\x01hello"
        await ours.send(b"\x00")
        assert await ours.receive() == b'\x03{"exit": 0}'
    assert (await runtime.observe("a")).phase == "ended"


@pytest.mark.slow
async def test_a_thousand_instances_are_small(autojump_clock: MockClock) -> None:
    """An instance with its supervisor, its journal entry and its reports takes less than 30 KB."""
    site = Site()
    async with site.running():
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        for number in range(1_000):
            await site.scheduler.run(site.assignment(f"u{number}"))
        for number in range(1_000):
            await site.scheduler.until(f"u{number}", Status.RUNNING)
        site.scheduler.reports.clear()
        site.scheduler.progress.clear()
        each = (tracemalloc.get_traced_memory()[0] - before) / 1_000
        tracemalloc.stop()
        print(f"{each:.0f} bytes an instance")
        assert each < 30_000

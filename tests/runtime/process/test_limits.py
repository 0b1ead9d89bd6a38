"""Limits: enforced where a cgroup can be written, and otherwise recorded as not enforced, and why."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from rik.linux.cgroups import Cgroups
from rik.messages import Exec
from tests.conftest import Require

from .conftest import Bench, Frames, container, script

pytestmark = pytest.mark.require("user-namespaces", reason="pods are made of them")


@pytest.fixture
def cgroup(require: Require) -> None:
    found = Cgroups.find("00000000")
    found.close()
    present = not found.reasons
    require("cgroup", reason=f"limits need one: {found.reasons}", present=present, expected_in_ci=False)


async def test_what_is_not_enforced_says_why(bench: Bench) -> None:
    """Each limit asked for is enforced, or recorded with the reason; the others are said not to be asked for."""
    _, observed = await bench.start(container("a", "sleep", "60"), resources={"memory": "64Mi", "cpu": 0.5})
    assert {"memory", "cpu"} <= set(observed.enforced)
    assert observed.enforced["pids"] == "no limit was asked for"
    capability = await bench.runtime.probe()
    for limit in ("memory", "cpu"):
        held = observed.enforced[limit]
        assert held is True or "cgroup" in str(held)
        assert (held is True) == (capability.limits[limit] is True)


async def test_out_of_memory(bench: Bench, cgroup: None) -> None:
    """A container over the pod's memory is killed, and that is the reason given, with the limit."""
    _, ended = await bench.run(
        container("greedy", "python3", "-c", "x = bytearray(200 << 20)"),
        container("other", "sleep", "60"),
        resources={"memory": "48Mi"},
    )
    assert ended.failure is not None
    assert (ended.failure.reason, ended.failure.container) == ("OutOfMemory", "greedy")
    assert "48 MiB" in ended.failure.message
    assert [state.oom_killed for state in ended.containers] == [True, False]
    assert ended.containers[0].signal == "SIGKILL"


async def test_limits_bind_jointly(bench: Bench, cgroup: None) -> None:
    """The containers of a pod share its memory: together they may not use more than it has."""
    greedy = "import time; x = bytearray(40 << 20); print('up', flush=True); time.sleep(60)"
    pod, _ = await bench.start(
        container("a", "python3", "-c", greedy), container("b", "python3", "-c", greedy), resources={"memory": "64Mi"}
    )
    ended = await bench.runtime.wait(pod.uid, lambda observed: None)
    assert ended.failure is not None
    assert ended.failure.reason == "OutOfMemory"


async def test_processes_are_limited(bench: Bench, cgroup: None) -> None:
    """A pod can have as many processes as it was given and no more; looking into it by exec goes on working."""
    program = (
        "import os, time\n"
        "try:\n"
        "    while True:\n"
        "        if os.fork() == 0: time.sleep(60)\n"
        "except OSError: print('full', flush=True)\n"
        "time.sleep(60)\n"
    )
    pod, _ = await bench.start(container("a", "python3", "-c", program), resources={"pids": 10})
    await bench.until_said(pod, "full")
    assert [item.pids for item in await bench.runtime.stats(pod.uid)] == [10]
    frames = Frames()
    await bench.runtime.exec(Exec(pod.uid, ("sh", "-c", "echo in; (true) || echo no more")), frames)
    assert frames.text(1).startswith("in")
    assert "fork" in frames.text(2)
    assert (await bench.runtime.observe(pod.uid)).phase == "running"


async def test_cpu_is_limited(bench: Bench, cgroup: None) -> None:
    """A pod gets no more processor time than it was given."""
    pod, _ = await bench.start(script("a", "while :; do :; done"), resources={"cpu": 0.2})
    before = (await bench.runtime.stats(pod.uid))[0].cpu_seconds
    await trio.sleep(1)
    after = (await bench.runtime.stats(pod.uid))[0].cpu_seconds
    assert before is not None
    assert after is not None
    assert after - before < 0.4


async def test_stats(bench: Bench) -> None:
    """What a container uses is known with cgroups and without."""
    program = (
        "import time\nx = bytearray(20 << 20)\nfor _ in range(3_000_000): pass\nprint('up', flush=True)\ntime.sleep(60)"
    )
    pod, _ = await bench.start(container("a", "python3", "-c", program), container("b", "sleep", "60"))
    await bench.until_said(pod, "up")
    stats: dict[str, Any] = {item.name: item for item in await bench.runtime.stats(pod.uid)}
    assert set(stats) == {"a", "b"}
    assert stats["a"].memory_bytes > 20 << 20
    assert stats["a"].cpu_seconds > 0.02
    assert stats["b"].memory_bytes < 20 << 20
    assert stats["a"].pids >= 1
    assert stats["a"].network_rx_bytes is not None
    await bench.runtime.stop(pod.uid, 0)
    assert await bench.runtime.stats(pod.uid) == []


async def test_one_process(bench: Bench, cgroup: None) -> None:
    """A pod that was given one process can have one: what RIK needs itself is not counted."""
    pod, observed = await bench.start(container("a", "sleep", "60"), resources={"pids": 1})
    assert observed.phase == "running"
    assert [item.pids for item in await bench.runtime.stats(pod.uid)] == [1]

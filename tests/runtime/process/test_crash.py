"""Nothing is lost or left behind, whoever is killed, and whenever."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from rik.errors import InstanceFailure
from rik.linux.identity import command_line, processes, stat_fields
from rik.linux.idmap import IdMap, Unavailable
from rik.messages import Exec
from rik.runtime.base import Observed
from rik.runtime.process import channel, states
from rik.runtime.process.layout import Layout, is_supervised

from .conftest import Bench, Frames, container, make_pod, script

pytestmark = pytest.mark.require("user-namespaces", reason="pods are made of them")

_CRASHING = """
import sys, trio
from pathlib import Path
from rik.environment import SystemEnvironment
from rik.images.store import ImageStore
from rik.linux.identity import command_line, processes, stat_fields
from rik.linux.idmap import detect
from rik.messages import Assignment
from rik.runtime.base import Pod
from rik.runtime.process.layout import Layout
from rik.runtime.process.runtime import ProcessRuntime

async def main(data_dir, host_id, uid, bind, verb):
    idmap = detect()
    images = ImageStore(Path(data_dir) / "images", host_id, idmap)
    runtime = ProcessRuntime(
        SystemEnvironment(), Layout(Path(data_dir), host_id), images, idmap, bind_to_process=bind == "bind"
    )
    command = ["/bin/sh", "-c", "echo started; exec sleep 600"]
    spec = {"containers": [{"name": "a", "image": "host", "command": command}], "resources": {"pids": 50}}
    pod = Pod.of(Assignment(uid, "web-1", "default", "web", "Pod", spec, 0, ""))
    async with runtime.open():
        await runtime.prepare(pod, lambda progress: None)
        await runtime.start(pod)
        if verb == "remove":
            await runtime.remove(uid)
        print("running", flush=True)
        await trio.sleep_forever()

trio.run(main, *sys.argv[1:])
"""


async def _first_process(bench: Bench, uid: str) -> int:
    """The supervisor's pid."""
    identity = states.supervisor(bench.runtime.layout.pod(uid))
    assert identity is not None
    await trio.lowlevel.checkpoint()
    return identity.pid


async def test_supervisor_killed(bench: Bench) -> None:
    """When the supervisor is killed everything dies with it, and that is said, not made up."""
    seen: list[Observed] = []
    pod, _ = await bench.start(container("a", "sleep", "600"), script("b", "setsid sleep 601 & sleep 602"))
    os.kill(await _first_process(bench, pod.uid), signal.SIGKILL)
    ended = await bench.runtime.wait(pod.uid, seen.append)
    assert ended.phase == "ended"
    assert ended.failure is not None
    assert ended.failure.reason == "SupervisorLost"
    assert "exit codes are not known" in ended.failure.message
    assert [(state.state, state.exit_code) for state in ended.containers] == [("exited", None), ("exited", None)]
    assert not [item for item in await bench.runtime.inventory() if item.kind == "process"]
    await bench.runtime.remove(pod.uid)
    assert await bench.runtime.inventory() == []


async def test_stopped_supervisor_is_not_waited_for(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A supervisor that does not answer is not waited for when its pod is to be removed."""
    pod, _ = await bench.start(container("a", "sleep", "600"))
    os.kill(await _first_process(bench, pod.uid), signal.SIGSTOP)
    await bench.runtime.remove(pod.uid)
    assert await bench.runtime.inventory() == []


async def test_first_process_of_a_container_killed(bench: Bench) -> None:
    """When somebody kills a container's first process the container was killed, and its sibling is stopped."""
    pod, _ = await bench.start(container("a", "sleep", "600"), container("b", "sleep", "600"))
    parent = await _first_process(bench, pod.uid)
    children = [pid for pid in processes() if (fields := stat_fields(pid)) is not None and int(fields[1]) == parent]
    os.kill(min(children), signal.SIGKILL)
    ended = await bench.runtime.wait(pod.uid, lambda observed: None)
    assert ended.failure is not None
    assert (ended.failure.reason, ended.failure.container) == ("Killed", "a")


async def test_adoption(bench: Bench) -> None:
    """The next RIK finds a pod running, with its output, reaches into it, and sees its end."""
    pod, first = await bench.start(script("a", "echo before; sleep 0.4; echo after; exit 3"))
    another = bench.another()
    async with another.open():
        assert await another.observe(pod.uid) == first
        frames = Frames()
        await another.exec(Exec(pod.uid, ("echo", "hello")), frames)
        assert frames.text(1) == "hello\n"
        ended = await another.wait(pod.uid, lambda observed: None)
    assert ended.containers[0].exit_code == 3
    assert (await bench.text(pod)).split() == ["before", "after"]


async def test_ended_while_nobody_looked(bench: Bench) -> None:
    """A pod that ended while RIK was down is explained as if it had not been; the pod rule was followed."""
    pod, _ = await bench.start(script("a", "sleep 0.1; exit 7"), container("b", "sleep", "600"))
    with trio.fail_after(10):
        while is_supervised(bench.runtime.layout.pod(pod.uid)):
            await trio.sleep(0.02)
    another = bench.another()
    async with another.open():
        ended = await another.observe(pod.uid)
        assert await another.wait(pod.uid, lambda observed: None) == ended
    assert ended.failure is not None
    assert (ended.failure.reason, ended.failure.container) == ("ContainerExited", "a")
    assert [(state.exit_code, state.signal) for state in ended.containers] == [(7, None), (143, "SIGTERM")]


def _spawn(bench: Bench, step: str, uid: str, verb: str, bind: str) -> subprocess.Popen[bytes]:
    """A RIK that is killed at a step of its own (or not: "" is no step), run to that point."""
    command = [sys.executable, "-c", _CRASHING, str(bench.data_dir), bench.host_id, uid, bind, verb]
    path = os.pathsep.join(filter(None, (os.getcwd(), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "RIK_CRASH_AT": step, "PYTHONPATH": path}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    return process


async def _crash(bench: Bench, step: str, uid: str, verb: str = "start", bind: str = "") -> subprocess.Popen[bytes]:
    return await trio.to_thread.run_sync(_spawn, bench, step, uid, verb, bind)


_PREPARING = ["directory", "images", "cgroups", "spec"]
_STARTING = ["locked", "listening", "launched"]
_REMOVING = ["processes", "cgroups", "files"]


@pytest.mark.parametrize(
    "step",
    [f"process.prepare.{name}" for name in _PREPARING]
    + [f"process.start.{name}" for name in _STARTING]
    + [f"process.remove.{name}" for name in _REMOVING],
)
async def test_killed_at_every_step(bench: Bench, step: str) -> None:
    """RIK killed between any two steps leaves what the next one recognises, makes use of, and removes whole."""
    pod = make_pod(script("a", "echo started; exec sleep 600"), resources={"pids": 50})
    process = await _crash(bench, step, pod.uid, "remove" if ".remove." in step else "start")
    assert process.wait(10) == -signal.SIGKILL
    assert process.stdout is not None
    process.stdout.close()
    runtime = bench.runtime
    observed = await runtime.observe(pod.uid)
    if step == "process.start.launched":
        assert observed.phase == "running"
        await bench.until_said(pod, "started")
    else:
        assert observed.phase in ("absent", "ended")
    if ".prepare." in step:
        await runtime.prepare(pod, lambda progress: None)
        assert (await runtime.start(pod)).phase == "running"
    left = {(item.kind, item.name) for item in await runtime.inventory()}
    assert all(item.owner == pod.uid for item in await runtime.inventory())
    swept = {(item.kind, item.name) for item in await runtime.sweep(frozenset())}
    assert swept == left
    assert await runtime.inventory() == []


async def test_swept_only_when_nobody_owns_it(bench: Bench) -> None:
    """The sweep leaves alone what somebody owns, and what belongs to another RIK."""
    pod, _ = await bench.start(container("a", "sleep", "600"))
    assert await bench.runtime.sweep(frozenset({pod.uid})) == []
    assert (await bench.runtime.observe(pod.uid)).phase == "running"
    other = Bench(bench.data_dir.parent / "other", bench.idmap)
    other.data_dir.mkdir(mode=0o700)
    async with other.open():
        assert await other.runtime.inventory() == []
        assert await other.runtime.sweep(frozenset()) == []
    assert (await bench.runtime.observe(pod.uid)).phase == "running"


async def test_demo_dies_with_its_rik(data_dir: Path, idmap: IdMap | Unavailable) -> None:
    """Pods bound to their RIK die with it, however it dies, and leave neither processes nor directories."""
    async with Bench(data_dir, idmap).open() as bench:
        pod = make_pod(container("a", "sleep", "600"))
        process = await _crash(bench, "", pod.uid, bind="bind")
        layout = Layout(data_dir, bench.host_id)
        assert is_supervised(layout.pod(pod.uid))
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
        with trio.fail_after(10):
            while await bench.runtime.inventory():
                await trio.sleep(0.02)
        assert not layout.pod(pod.uid).exists()


async def test_bound_pods_end_with_the_runtime(data_dir: Path, idmap: IdMap | Unavailable) -> None:
    """Pods bound to their RIK end, too, when it closes its runtime."""
    async with Bench(data_dir, idmap).open() as watcher:
        bench = Bench(data_dir, idmap, bind_to_process=True)
        bench.host_id = watcher.host_id
        bench.runtime = bench.another()
        async with bench.runtime.open():
            await bench.start(container("a", "sleep", "600"))
        with trio.fail_after(10):
            while await watcher.runtime.inventory():
                await trio.sleep(0.02)


async def test_zygote_killed(bench: Bench) -> None:
    """When the process that supervisors are forked from is killed, pods live on and others are started without it."""
    pod, _ = await bench.start(container("a", "sleep", "600"))
    zygotes = [
        pid
        for pid in processes()
        if _parent(pid) == os.getpid() and any("podinit.zygote" in word for word in command_line(pid))
    ]
    assert zygotes
    for pid in zygotes:
        os.kill(pid, signal.SIGKILL)
    other, observed = await bench.start(script("a", "exit 4"))
    assert observed.phase in ("running", "failing", "ended")
    assert (await bench.runtime.wait(other.uid, lambda observed: None)).containers[0].exit_code == 4
    assert (await bench.runtime.observe(pod.uid)).phase == "running"


async def test_start_without_prepare(bench: Bench) -> None:
    """What was not prepared is not started, and that is said."""
    with pytest.raises(InstanceFailure, match="not prepared"):
        await bench.runtime.start(make_pod(container("a", "true")))


@pytest.mark.parametrize("zygote", [True, False])
async def test_holds_nothing_of_whoever_started_rik(bench: Bench, zygote: bool) -> None:
    """A pod that outlives RIK does not hold open what RIK has inherited from whoever started it."""
    if not zygote:
        for pid in processes():
            if any("podinit.zygote" in word for word in command_line(pid)) and _parent(pid) == os.getpid():
                os.kill(pid, signal.SIGKILL)
    read_end, write_end = os.pipe()
    os.set_inheritable(write_end, True)
    try:
        await bench.start(container("a", "sleep", "600"))
    finally:
        os.close(write_end)
    async with trio.lowlevel.FdStream(read_end) as reader:
        with trio.fail_after(5):
            assert await reader.receive_some(1) == b""


def _parent(pid: int) -> int:
    fields = stat_fields(pid)
    return int(fields[1]) if fields is not None else 0


async def test_a_supervisor_that_talks_nonsense(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pod whose supervisor says what cannot be read is stopped and removed like any other."""
    pod, _ = await bench.start(container("a", "sleep", "600"))
    monkeypatch.setattr(channel, "PACKET_BYTES", 50)
    await bench.runtime.stop(pod.uid, 0)
    await bench.runtime.remove(pod.uid)
    assert await bench.runtime.inventory() == []

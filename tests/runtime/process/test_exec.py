"""Exec and attach: as verified as the first command, and gone with whoever asked for it."""

from __future__ import annotations

import json
import os
import signal

import pytest
import trio

from rik.errors import InstanceFailure
from rik.messages import Attach, Exec
from rik.runtime.process import terminals

from .conftest import Bench, Frames, container, script

pytestmark = pytest.mark.require("user-namespaces", reason="pods are made of them")


async def _exec(bench: Bench, uid: str, *command: str, frames: Frames | None = None, tty: bool = False) -> Frames:
    frames = frames or Frames()
    await bench.runtime.exec(Exec(uid, command, tty=tty), frames)
    return frames


async def test_output_and_exit_code(bench: Bench) -> None:
    """Both streams come separately, and then the exit code."""
    pod, _ = await bench.start(container("a", "sleep", "60"))
    frames = await _exec(bench, pod.uid, "sh", "-c", "echo out; echo err >&2; exit 5")
    assert (frames.text(1), frames.text(2)) == ("out\n", "err\n")
    assert json.loads(frames.sent[-1][1:]) == {"exit": 5}


async def test_killed_command_is_told_as_shells_do(bench: Bench) -> None:
    """A command that is killed exits with 128 and the signal."""
    pod, _ = await bench.start(container("a", "sleep", "60"))
    frames = await _exec(bench, pod.uid, "sh", "-c", "kill -9 $$")
    assert json.loads(frames.sent[-1][1:]) == {"exit": 137}


@pytest.mark.parametrize("name", ["x" * 60_000, "/" + "x" * 60_000, "\N{PILE OF POO}" * 15_000])
async def test_endless_name(bench: Bench, name: str) -> None:
    """A command of an endless name is refused in a few words, and the pod goes on."""
    pod, _ = await bench.start(container("a", "sleep", "60"))
    with pytest.raises(InstanceFailure) as caught:
        await _exec(bench, pod.uid, name)
    assert len(str(caught.value)) < 600
    assert (await _exec(bench, pod.uid, "echo", "well")).text(1) == "well\n"


async def test_input_to_its_end(bench: Bench) -> None:
    """What is sent arrives, and an empty frame is the end of input."""
    pod, _ = await bench.start(container("a", "sleep", "60"))
    frames = Frames()
    frames.put(b"\0hello ", b"\0world", b"\0")
    await _exec(bench, pod.uid, "cat", frames=frames)
    assert frames.text(1) == "hello world"


async def test_much_output_arrives_whole(bench: Bench) -> None:
    """Megabytes of output arrive completely, before the exit code."""
    pod, _ = await bench.start(container("a", "sleep", "60"))
    frames = await _exec(bench, pod.uid, "sh", "-c", "head -c 5000000 /dev/zero")
    assert sum(len(frame) - 1 for frame in frames.sent if frame[0] == 1) == 5_000_000
    assert json.loads(frames.sent[-1][1:]) == {"exit": 0}


async def test_terminal(bench: Bench) -> None:
    """With a terminal there is one, of the size asked for, which can be changed."""
    pod, _ = await bench.start(container("a", "sleep", "60"))
    frames = Frames()
    async with trio.open_nursery() as nursery:
        request = Exec(pod.uid, ("sh",), tty=True, columns=100, rows=30)
        nursery.start_soon(bench.runtime.exec, request, frames)
        frames.put(b"\0stty size; tty; echo TERM=$TERM\n")
        await frames.until(lambda: "TERM=xterm" in frames.text(1))
        assert "30 100" in frames.text(1)
        assert "/dev/pts/" in frames.text(1)
        frames.put(b'\3{"resize":[90,20]}', b"\0stty size; exit 3\n")
    assert "20 90" in frames.text(1)
    assert json.loads(frames.sent[-1][1:]) == {"exit": 3}


async def test_missing_command(bench: Bench) -> None:
    """A command that does not exist is an error in words, not an exit code."""
    pod, _ = await bench.start(container("a", "sleep", "60"))
    with pytest.raises(InstanceFailure, match="command `nosuch` not found in PATH") as caught:
        await _exec(bench, pod.uid, "nosuch")
    assert caught.value.reason == "CommandNotFound"


async def test_unknown_and_ended_containers(bench: Bench) -> None:
    """Exec in a container that is not there, or has ended, is refused in words."""
    pod, _ = await bench.start(container("a", "sleep", "60"), container("done", "true"))
    with pytest.raises(InstanceFailure, match="there is no container `b`"):
        await bench.runtime.exec(Exec(pod.uid, ("true",), container="b"), Frames())
    with trio.fail_after(10):
        while (await bench.runtime.observe(pod.uid)).containers[1].state != "exited":
            await trio.sleep(0.02)
    with pytest.raises(InstanceFailure, match="container `done` is not running"):
        await bench.runtime.exec(Exec(pod.uid, ("true",), container="done"), Frames())
    await bench.runtime.stop(pod.uid, 0)
    with pytest.raises(InstanceFailure, match="the instance is not running"):
        await bench.runtime.exec(Exec(pod.uid, ("true",)), Frames())


@pytest.mark.parametrize("tty", [False, True])
async def test_gone_with_its_client(bench: Bench, tty: bool) -> None:
    """When whoever asked goes away, the command and all it has started are killed, and nothing else is."""
    pod, _ = await bench.start(container("a", "sleep", "60"))
    frames = Frames()
    text = "sleep 1001 & setsid sleep 1002 & nohup sleep 1003 & trap '' HUP; echo up; wait; sleep 1004"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.runtime.exec, Exec(pod.uid, ("sh", "-c", text), tty=tty), frames)
        await frames.until(lambda: "up" in frames.text(1))
        frames.hang_up()
    with trio.fail_after(10):
        while "sleep 100" in (shown := (await _exec(bench, pod.uid, "ps", "-eo", "args")).text(1)):
            await trio.sleep(0.05)
    assert "sleep 60" in shown
    assert (await bench.runtime.observe(pod.uid)).phase == "running"


async def test_attach_to_the_main_process(bench: Bench) -> None:
    """Attached to a container with `stdin` one talks with its main process, to its exit code."""
    pod, _ = await bench.start(script("a", "read line; echo got $line; cat >&2; exit 4", stdin=True))
    frames = Frames()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.runtime.attach, Attach(pod.uid), frames)
        frames.put(b"\0first\n")
        await frames.until(lambda: "got first" in frames.text(1))
        frames.put(b"\0rest", b"\0")
    assert frames.text(2) == "rest"
    assert json.loads(frames.sent[-1][1:]) == {"exit": 4}
    assert "got first" in await bench.text(pod), "what is shown is also logged"


async def test_attach_to_a_terminal(bench: Bench) -> None:
    """A container with `tty` has a terminal, which whoever is attached can resize."""
    pod, _ = await bench.start(container("a", "sh", tty=True, stdin=True))
    frames = Frames()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.runtime.attach, Attach(pod.uid), frames)
        frames.put(b'\3{"resize":[77,22]}', b"\0stty size; exit 6\n")
    assert "22 77" in frames.text(1)
    assert json.loads(frames.sent[-1][1:]) == {"exit": 6}


async def test_detaching_changes_nothing(bench: Bench) -> None:
    """Whoever was attached and goes leaves the container as it is."""
    pod, _ = await bench.start(script("a", "while :; do echo tick; sleep 0.02; done"))
    frames = Frames()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.runtime.attach, Attach(pod.uid), frames)
        await frames.until(lambda: "tick" in frames.text(1))
        frames.hang_up()
    assert (await bench.runtime.observe(pod.uid)).phase == "running"


async def test_stuck_supervisor(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the pod's supervisor does not answer, that is said after a while; nobody waits for ever."""
    monkeypatch.setattr(terminals, "ANSWER_S", 0.5)
    pod, _ = await bench.start(container("a", "sleep", "60"))
    record = json.loads((bench.runtime.layout.pod(pod.uid) / "init.json").read_text())
    os.kill(record["pid"], signal.SIGSTOP)
    try:
        with pytest.raises(InstanceFailure, match="does not answer"):
            await _exec(bench, pod.uid, "true")
        with pytest.raises(InstanceFailure, match="does not answer"):
            await bench.runtime.attach(Attach(pod.uid), Frames())
    finally:
        os.kill(record["pid"], signal.SIGCONT)
    assert (await _exec(bench, pod.uid, "echo", "well")).text(1) == "well\n"


async def test_the_pod_ends_meanwhile(bench: Bench) -> None:
    """When the supervisor is killed, whoever has a command running in the pod is told."""
    pod, _ = await bench.start(container("a", "sleep", "60"))
    frames = Frames()
    async with trio.open_nursery() as nursery:

        async def run() -> None:
            await _exec(bench, pod.uid, "sh", "-c", "echo begun; sleep 60", frames=frames)

        nursery.start_soon(run)
        await frames.until(lambda: frames.text(1) == "begun\n")
        os.kill(json.loads((bench.runtime.layout.pod(pod.uid) / "init.json").read_text())["pid"], signal.SIGKILL)
    assert frames.failures == ["the pod ended, and the command with it"]

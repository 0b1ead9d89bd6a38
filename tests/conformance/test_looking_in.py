"""Logs, exec, attach, stats, and connections to ports: alike for every runtime."""

from __future__ import annotations

import json
from contextlib import aclosing
from typing import Any, cast

import pytest
import trio

from rik.errors import InstanceFailure
from rik.link.local import LocalStream, stream_pair
from rik.messages import Attach, Exec, ReadLogs
from rik.model.instance import LogLine
from rik.runtime.base import Pod, Runtime
from tests.conformance.subjects import SERVERS, SLEEPS, UDP, Bench, Does
from tests.conformance.test_life import end, run, unchanged

PORT = 7007


async def read(runtime: Runtime, query: ReadLogs) -> list[LogLine]:
    lines: list[LogLine] = []
    with trio.fail_after(20):
        async with aclosing(cast("Any", runtime.logs(query))) as batches:
            async for batch in batches:
                lines += batch
    return lines


async def ended_with_lines(bench: Bench, runtime: Runtime, count: int) -> Pod:
    pod = bench.pod(Does(lines=count, ends_after=0.05))
    await run(runtime, pod)
    await runtime.wait(pod.uid, unchanged)
    return pod


async def command(runtime: Runtime, request: Exec, *frames: bytes) -> list[bytes]:
    """Everything that comes back."""
    ours, theirs = stream_pair()
    found = []
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:

            async def serve() -> None:
                await runtime.exec(request, theirs)
                await theirs.end()

            nursery.start_soon(serve)
            for frame in frames:
                await ours.send(frame)
            while (frame_back := await ours.receive()) is not None:
                found.append(frame_back)
    return found


def output(frames: list[bytes], number: int = 1) -> bytes:
    return b"".join(frame[1:] for frame in frames if frame[0] == number)


def exit_code(frames: list[bytes]) -> int:
    return int(json.loads(frames[-1][1:])["exit"]) if frames[-1][0] == 3 else -1


async def test_logs(bench: Bench, runtime: Runtime) -> None:
    """Output is kept line by line in order, can be cut at the end or by time, and outlives the instance."""
    pod = await ended_with_lines(bench, runtime, 30)
    lines = await read(runtime, ReadLogs(pod.uid))
    assert [line.line for line in lines] == [f"line {n}" for n in range(30)]
    assert {(line.container, line.stream) for line in lines} == {("c0", "stdout")}
    assert [line.at for line in lines] == sorted(line.at for line in lines)
    assert [line.line for line in await read(runtime, ReadLogs(pod.uid, tail=2))] == ["line 28", "line 29"]
    assert await read(runtime, ReadLogs(pod.uid, tail=0)) == []
    assert await read(runtime, ReadLogs(pod.uid, since_ms=lines[-1].at + 1_000)) == []
    assert len(await read(runtime, ReadLogs(pod.uid, container="c0"))) == 30
    await runtime.remove(pod.uid)
    assert len(await read(runtime, ReadLogs(pod.uid))) == 30


async def test_following_ends_with_the_instance(bench: Bench, runtime: Runtime) -> None:
    """A follower gets everything and stops when the instance has."""
    pod = bench.pod(Does(lines=3, ends_after=0.5), Does(lines=2, ends_after=0.2))
    await run(runtime, pod)
    lines = await read(runtime, ReadLogs(pod.uid, follow=True))
    assert sorted((line.container, line.line) for line in lines) == [
        ("c0", "line 0"),
        ("c0", "line 1"),
        ("c0", "line 2"),
        ("c1", "line 0"),
        ("c1", "line 1"),
    ]
    assert (await runtime.observe(pod.uid)).phase == "ended"
    await runtime.remove(pod.uid)


async def test_logs_of_nothing(bench: Bench, runtime: Runtime) -> None:
    """What never was has no lines."""
    assert await read(runtime, ReadLogs(bench.pod(SLEEPS).uid)) == []


async def test_exec_output_and_codes(bench: Bench, runtime: Runtime) -> None:
    """A command's two outputs come apart, and its exit code last."""
    pod = bench.pod(SLEEPS)
    await run(runtime, pod)
    frames = await command(runtime, Exec(pod.uid, ("/bin/sh", "-c", "echo out; echo err >&2; exit 7")))
    assert (output(frames), output(frames, 2), exit_code(frames)) == (b"out\n", b"err\n", 7)
    assert exit_code(await command(runtime, Exec(pod.uid, ("true",), container="c0"))) == 0
    await end(runtime, pod)


async def test_exec_input(bench: Bench, runtime: Runtime) -> None:
    """Input reaches the command, and an empty frame is its end."""
    pod = bench.pod(SLEEPS)
    await run(runtime, pod)
    frames = await command(runtime, Exec(pod.uid, ("cat",)), b"\x00one\n", b"\x00two\n", b"\x00")
    assert (output(frames), exit_code(frames)) == (b"one\ntwo\n", 0)
    await end(runtime, pod)


async def test_exec_with_a_terminal(bench: Bench, runtime: Runtime) -> None:
    """With tty the command has a terminal, without it has none."""
    pod = bench.pod(SLEEPS)
    await run(runtime, pod)
    with_tty = await command(runtime, Exec(pod.uid, ("tty",), tty=True))
    assert (output(with_tty).startswith(b"/dev/"), exit_code(with_tty)) == (True, 0)
    without = await command(runtime, Exec(pod.uid, ("tty",)), b"\x00")
    assert (output(without), exit_code(without)) == (b"not a tty\n", 1)
    await end(runtime, pod)


async def test_exec_that_cannot_be(bench: Bench, runtime: Runtime) -> None:
    """A command, container or instance that is not there is a failure that names it."""
    pod = bench.pod(SLEEPS)
    await run(runtime, pod)
    with pytest.raises(InstanceFailure, match="no-such-command"):
        await command_alone(runtime, Exec(pod.uid, ("no-such-command",)))
    with pytest.raises(InstanceFailure, match="c9"):
        await command_alone(runtime, Exec(pod.uid, ("true",), container="c9"))
    await end(runtime, pod)
    with pytest.raises(InstanceFailure):
        await command_alone(runtime, Exec(pod.uid, ("true",)))


async def command_alone(runtime: Runtime, request: Exec) -> None:
    with trio.fail_after(20):
        await runtime.exec(request, stream_pair()[1])


async def test_exec_ends_with_its_stream(bench: Bench, runtime: Runtime) -> None:
    """Closing the stream kills the command."""
    pod = bench.pod(SLEEPS)
    await run(runtime, pod)
    ours, theirs = stream_pair()
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_exec_until_closed, runtime, Exec(pod.uid, ("sleep", "777")), theirs)
            await trio.sleep(0.3)
            await ours.aclose()
            await trio.sleep(1)
            nursery.cancel_scope.cancel()
    stats = await runtime.stats(pod.uid)
    assert stats[0].pids in (None, 1, 2), "the command is gone: the container's own process, and its init, are left"
    await end(runtime, pod)


async def _exec_until_closed(runtime: Runtime, request: Exec, stream: LocalStream) -> None:
    from rik.link.base import LinkClosed

    try:
        await runtime.exec(request, stream)
    except LinkClosed:
        pass


async def test_attach(bench: Bench, runtime: Runtime) -> None:
    """Attaching reaches the main process: its input, its output, and its exit code."""
    pod = bench.pod(Does(cats=True))
    await run(runtime, pod)
    ours, theirs = stream_pair()
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(runtime.attach, Attach(pod.uid), theirs)
            await ours.send(b"\x00hello\n")
            frames = [await ours.receive() or b""]
            assert output(frames) == b"hello\n"
            await ours.send(b"\x00")
            frames = [await ours.receive() or b""]
            assert exit_code(frames) == 0
    ended = await runtime.wait(pod.uid, unchanged)
    assert ended.failure is None
    await runtime.remove(pod.uid)


async def test_stats(bench: Bench, runtime: Runtime) -> None:
    """Each running container has its numbers, or None where the host cannot tell."""
    pod = bench.pod(SLEEPS, SLEEPS)
    await run(runtime, pod)
    stats = await runtime.stats(pod.uid)
    assert [entry.name for entry in stats] == ["c0", "c1"]
    for entry in stats:
        numbers = (entry.cpu_seconds, entry.memory_bytes, entry.pids)
        assert all(number is None or number >= 0 for number in numbers)
    await end(runtime, pod)
    assert await runtime.stats(bench.pod(SLEEPS).uid) == []


async def test_connections(bench: Bench, runtime: Runtime) -> None:
    """A connection to a port inside carries bytes both ways, and its half-close."""
    pod = bench.pod(Does(serves=True))
    await run(runtime, pod)
    stream = await _connect(runtime, pod.uid)
    async with stream:
        with trio.fail_after(10):
            await stream.send_all(b"hello")
            assert await stream.receive_some() == b"hello"
            await stream.send_eof()
            assert await stream.receive_some() == b""
    await end(runtime, pod)
    with pytest.raises(OSError):
        await runtime.connect(pod.uid, PORT)


async def _connect(runtime: Runtime, uid: str) -> trio.abc.HalfCloseableStream:
    """Once the server inside listens."""
    with trio.fail_after(10):
        while True:
            try:
                return await runtime.connect(uid, PORT)
            except OSError:
                await trio.sleep(0.05)


@pytest.mark.needs(SERVERS)
async def test_nothing_listens(bench: Bench, runtime: Runtime) -> None:
    """A port on which nothing listens refuses."""
    pod = bench.pod(SLEEPS)
    await run(runtime, pod)
    with pytest.raises(ConnectionRefusedError):
        await runtime.connect(pod.uid, PORT)
    await end(runtime, pod)


@pytest.mark.needs(SERVERS)
async def test_two_pods_on_one_port(bench: Bench, runtime: Runtime) -> None:
    """Two instances listen on the same port, each in its own network."""
    pods = [bench.pod(Does(serves=True)) for _ in range(2)]
    for pod in pods:
        await run(runtime, pod)
    for pod in pods:
        async with await _connect(runtime, pod.uid) as stream:
            await stream.send_all(b"x")
            assert await stream.receive_some() == b"x"
    for pod in pods:
        await end(runtime, pod)


@pytest.mark.needs(UDP)
async def test_datagrams(bench: Bench, runtime: Runtime) -> None:
    """A UDP socket into the instance is connected, and a port without a listener refuses what is sent."""
    pod = bench.pod(SLEEPS)
    await run(runtime, pod)
    with await runtime.datagrams(pod.uid, PORT) as sock:
        await sock.send(b"x")
        with trio.fail_after(5), pytest.raises(ConnectionRefusedError):
            await sock.recv(10)
    await end(runtime, pod)

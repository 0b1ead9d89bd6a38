"""Logs, exec and attach: through the api to a worker's stream and back."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio_websocket import ConnectionClosed, WebSocketConnection

from rik.link.base import MAX_FRAME_BYTES, LinkClosed, Stream
from rik.messages import Attach, Exec, ReadLogs, StreamRequest
from rik.model.instance import ContainerState, LogLine, Status
from tests.api.conftest import ENDS_WITHIN_S, Running
from tests.api.scheduler import Worker, frames_of, instance
from tests.api.test_errors import rejection

AT = "2026-01-01T00:00:00.123456Z"
TWO_CONTAINERS = (ContainerState("web", "host", "running"), ContainerState("db", "host", "running"))


def line(text: str, container: str = "main", stream: str = "stdout") -> dict[str, Any]:
    return {"at": AT, "container": container, "stream": stream, "line": text}


async def start(running: Running, handler: Callable[[Any, Stream], Awaitable[None]], **fields: Any) -> Worker:
    """A worker that serves every stream by `handler`, and instance-1 running on it."""
    worker = Worker(handler)
    running.nursery.start_soon(worker.run, running.switchboard)
    await running.scheduler.put(instance(1, **fields))
    return worker


async def closing_code(socket: WebSocketConnection) -> int:
    """Reads to the end."""
    with pytest.raises(ConnectionClosed) as closed:
        while True:
            await socket.get_message()
    return closed.value.reason.code if closed.value.reason is not None else 0


# --- logs ---


async def three_lines(request: StreamRequest, stream: Stream) -> None:
    whole = frames_of([line("one"), line("two", stream="stderr"), line("dropped 7 bytes", stream="rik")])
    await stream.send(whole[:50])
    await stream.send(whole[50:])
    await stream.end()


async def test_logs_are_text(running: Running) -> None:
    """Logs are lines of text, however the worker cut them into frames; notes of RIK's own are marked."""
    worker = await start(running, three_lines)
    answer = await running.client.get("/api/v0/instances.logs/instance-1")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.text == "one\ntwo\n[rik] dropped 7 bytes\n"
    assert worker.requests == [ReadLogs(instance(1).uid)]
    assert (await running.client.head("/api/v0/instances.logs/instance-1")).status_code == 200


async def test_what_is_asked_of_logs_reaches_the_worker(running: Running) -> None:
    """Container, tail, since (a time or a duration) and follow are the worker's business."""
    worker = await start(running, three_lines)
    query = {"container": "main", "tail": "5", "since": "2026-01-01T00:00:00Z", "follow": "true"}
    await running.client.get("/api/v0/instances.logs/instance-1", params=query)
    assert worker.requests == [ReadLogs(instance(1).uid, "main", 5, 1_767_225_600_000, True)]
    await running.client.get("/api/v0/instances.logs/instance-1", params={"since": "1h30m", "tail": "0"})
    asked = worker.requests[-1]
    assert isinstance(asked, ReadLogs) and asked.tail == 0
    assert 5390 < time.time() - asked.since_ms / 1000 < 5410


async def test_timestamps_and_container_prefixes(running: Running) -> None:
    """Lines carry their time when asked, and their container when there are several and none was chosen."""

    async def both(request: StreamRequest, stream: Stream) -> None:
        await stream.send(frames_of([line("hello", "web"), line("world", "db")]))
        await stream.end()

    await start(running, both, containers=TWO_CONTAINERS)
    call = "/api/v0/instances.logs/instance-1"
    assert (await running.client.get(call)).text == "[web] hello\n[db] world\n"
    answer = await running.client.get(call, params={"timestamps": "true"})
    assert answer.text.splitlines()[0] == f"[web] {AT} hello"
    answer = await running.client.get(call, params={"container": "web", "timestamps": "1"})
    assert answer.text.splitlines()[0] == f"{AT} hello"
    answer = await running.client.get(call, params={"container": "nope"})
    assert answer.status_code == 404 and "web, db" in answer.json()["detail"]


async def test_logs_outlive_the_instance(running: Running) -> None:
    """Logs of an instance that ended, or is deleted, are read from the node it ran on."""
    await start(running, three_lines, status=Status.FAILED)
    await running.scheduler.remove(instance(1).uid)
    assert (await running.client.get("/api/v0/instances.logs/instance-1")).text.startswith("one\n")
    answer = await running.client.get(f"/api/v0/instances.logs/{instance(1).uid}", params={"follow": "true"})
    assert answer.text.startswith("one\n")


async def test_logs_of_what_never_ran_are_empty(running: Running) -> None:
    """An instance without a node has written nothing."""
    await running.scheduler.put(instance(1, Status.PENDING))
    answer = await running.client.get("/api/v0/instances.logs/instance-1")
    assert (answer.status_code, answer.text) == (200, "")


async def test_logs_of_an_absent_node(running: Running) -> None:
    """When the node is not connected the answer is 503 and says where the last lines are."""
    await running.scheduler.put(instance(1, log_tail=(LogLine("main", "stdout", 1, "x"),)))
    answer = await running.client.get("/api/v0/instances.logs/instance-1")
    assert answer.status_code == 503 and "log_tail" in answer.json()["next"]


async def test_a_refusal_of_the_worker_is_the_answer(running: Running) -> None:
    """What the worker refuses at once is a problem; what breaks later is said in the text."""

    async def gone(request: StreamRequest, stream: Stream) -> None:
        await stream.fail("its logs were removed to make room", 404)

    worker = await start(running, gone)
    answer = await running.client.get("/api/v0/instances.logs/instance-1")
    assert (answer.status_code, answer.json()["detail"]) == (404, "its logs were removed to make room")

    async def breaks(request: StreamRequest, stream: Stream) -> None:
        await stream.send(frames_of([line("one")]))
        await stream.fail("the disk is gone")

    worker.handler = breaks
    answer = await running.client.get("/api/v0/instances.logs/instance-1")
    assert (answer.status_code, answer.text) == (200, "one\n[rik] the log ends here early: the disk is gone\n")


async def test_following_begins_before_there_is_a_node(running: Running) -> None:
    """Following an instance that waits for its node begins with its first line, and ends with it."""
    worker = Worker(three_lines)
    running.nursery.start_soon(worker.run, running.switchboard)
    await running.scheduler.put(instance(1, Status.PENDING))
    texts: list[str] = []

    async def follow() -> None:
        answer = await running.client.get("/api/v0/instances.logs/instance-1", params={"follow": "true"})
        texts.append(answer.text)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(follow)
        await trio.sleep(0.1)
        assert worker.requests == []
        await running.scheduler.put(instance(1, Status.CREATING))
    assert texts == ["one\ntwo\n[rik] dropped 7 bytes\n"]


async def test_followed_lines_come_at_once(running: Running) -> None:
    """A followed log delivers each line when it is written, headers before the first one, and stops when left."""
    written = trio.Event()
    left = trio.Event()

    async def slowly(request: StreamRequest, stream: Stream) -> None:
        await written.wait()
        await stream.send(frames_of([line("one")]))
        try:
            while True:
                await stream.send(frames_of([line("x")]))
                await trio.sleep(0.01)
        except LinkClosed:
            left.set()

    await start(running, slowly)
    client = await trio.open_tcp_stream("127.0.0.1", running.port)
    async with client:
        await client.send_all(b"GET /api/v0/instances.logs/instance-1?follow=true HTTP/1.1\r\nHost: localhost\r\n\r\n")
        received = await client.receive_some()
        assert received.startswith(b"HTTP/1.1 200") and b"one" not in received
        written.set()
        while b"one\n" not in received:
            received += await client.receive_some()
    await left.wait()


async def test_a_slow_reader_loses_nothing_and_fills_no_memory(running: Running) -> None:
    """The worker waits for a slow reader, who in the end has every line in order."""
    total = 3_000
    sent = 0

    async def flood(request: StreamRequest, stream: Stream) -> None:
        nonlocal sent
        for number in range(total):
            await stream.send(frames_of([line(f"{number} {'x' * 10_000}")]))
            sent += 1
        await stream.end()

    await start(running, flood)
    seen = 0
    async with running.client.stream("GET", "/api/v0/instances.logs/instance-1?follow=true") as answer:
        await trio.sleep(0.3)
        assert sent < total, "30 MB were taken from the worker for a client that reads nothing"
        async for text in answer.aiter_lines():
            assert text.startswith(f"{seen} ")
            seen += 1
    assert seen == total


async def test_logs_over_a_websocket(running: Running) -> None:
    """On the same path a websocket streams each line as JSON and closes at the end."""
    await start(running, three_lines)
    async with running.client.socket("instances.logs/instance-1") as socket:
        lines = [json.loads(await socket.get_message()) for _ in range(3)]
        assert await closing_code(socket) == 1000
    assert lines[0] == line("one")
    await running.client.get("/healthz")
    for entry in lines:
        running.client.check_schema("LogLine", entry)


# --- exec and attach ---


async def echo(request: StreamRequest, stream: Stream) -> None:
    """Returns input as output; at its end the exit code is the number of bytes."""
    count = 0
    while (frame := await stream.receive()) is not None:
        if frame == b"\0":
            await stream.send(b"\3" + json.dumps({"exit": count % 256}).encode())
            await stream.end()
            return
        if frame[0] == 0:
            count += len(frame) - 1
            await stream.send(b"\1" + frame[1:])
        else:
            await stream.send(b"\2" + frame[1:])


@asynccontextmanager
async def exec_socket(running: Running, query: str = "command=sh&command=-c") -> AsyncIterator[WebSocketConnection]:
    async with running.client.socket(f"instances.exec/instance-1?{query}") as socket:
        yield socket


async def test_exec_passes_frames_both_ways(running: Running) -> None:
    """Input reaches the command, its output and exit code come back, and the websocket closes normally."""
    worker = await start(running, echo)
    async with exec_socket(running, "command=sh&command=-c&tty=true&cols=120&rows=40&container=main") as socket:
        await socket.send_message(b"\0hello")
        assert await socket.get_message() == b"\1hello"
        await socket.send_message(b'\3{"resize":[100,50]}')
        assert await socket.get_message() == b'\2{"resize":[100,50]}'
        await socket.send_message(b"\0")
        assert await socket.get_message() == b'\3{"exit": 5}'
        assert await closing_code(socket) == 1000
    assert worker.requests == [Exec(instance(1).uid, ("sh", "-c"), "main", True, 120, 40)]


async def test_exec_without_a_container_takes_the_first(running: Running) -> None:
    """Exec and attach go to the first container when none is named."""
    worker = await start(running, echo, containers=TWO_CONTAINERS)
    for path in ("exec/instance-1?command=x", "attach/instance-1"):
        async with running.client.socket(f"instances.{path}") as socket:
            await socket.send_message(b"\0")
            await closing_code(socket)
    asked = worker.requests
    assert isinstance(asked[0], Exec) and asked[0].container == "web"
    assert asked[1] == Attach(instance(1).uid, "web")


async def test_large_input_is_cut_to_fit(running: Running) -> None:
    """Input larger than a frame of the link arrives whole, in pieces."""
    await start(running, echo)
    data = bytes(range(256)) * 1_000
    received = b""
    async with exec_socket(running) as socket:
        await socket.send_message(b"\0" + data)
        while len(received) < len(data):
            frame = await socket.get_message()
            assert isinstance(frame, bytes) and frame[0] == 1 and len(frame) <= MAX_FRAME_BYTES
            received += frame[1:]
    assert received == data


@pytest.mark.parametrize(
    "frame",
    ["text", b"", b"\1stdout", b"\xff", b"\3", b"\3nonsense", b"\3[]", b'\3{"resize":[0,1]}', b'\3{"resize":"big"}',
     b"\3" + b" " * 5_000, b"\3" + b"[" * 4_000],
)  # fmt: skip
async def test_wrong_frames_end_the_conversation(running: Running, frame: str | bytes) -> None:
    """A frame that means nothing is answered with an error frame and close code 1008."""
    await start(running, echo)
    async with exec_socket(running) as socket:
        await socket.send_message(frame)
        answer = await socket.get_message()
        assert isinstance(answer, bytes) and answer[0] == 3 and json.loads(answer[1:])["error"]
        assert await closing_code(socket) == 1008


async def test_what_the_worker_refuses_is_an_error_frame(running: Running) -> None:
    """A command that cannot be started is told in an error frame."""

    async def refuse(request: StreamRequest, stream: Stream) -> None:
        await stream.fail("nosuch: no such file", 409)

    await start(running, refuse)
    async with exec_socket(running) as socket:
        answer = await socket.get_message()
        assert isinstance(answer, bytes) and json.loads(answer[1:]) == {"error": "nosuch: no such file"}
        assert await closing_code(socket) == 1011


async def test_a_lost_worker_is_an_error_frame(running: Running) -> None:
    """A conversation that breaks without an exit code says so."""

    async def vanish(request: StreamRequest, stream: Stream) -> None:
        await stream.send(b"\1half a li")
        await stream.aclose()

    await start(running, vanish)
    async with exec_socket(running) as socket:
        last: Any = b""
        with pytest.raises(ConnectionClosed):
            while True:
                last = await socket.get_message()
    assert last[:1] == b"\3" and "lost" in json.loads(last[1:])["error"]


async def test_a_client_that_leaves_ends_the_command(running: Running) -> None:
    """When the client hangs up the worker's stream is closed."""
    ended = trio.Event()

    async def wait(request: StreamRequest, stream: Stream) -> None:
        assert await stream.receive() is None
        ended.set()

    await start(running, wait)
    async with exec_socket(running):
        pass
    await ended.wait()


@pytest.mark.parametrize(
    ("call", "status", "words"),
    [("exec/instance-2?command=x", 409, "Failed"), ("attach/instance-2", 409, "Failed"),
     ("exec/instance-3?command=x", 409, "Pending"), ("exec/nope?command=x", 404, "nope"),
     ("exec/instance-1?command=x&container=y", 404, "main"), ("exec/instance-1?command=", 400, "command"),
     ("exec/instance-1?command=a%00b", 400, "NUL"), ("exec/instance-1?command=x&cols=0", 400, "cols"),
     ("exec/instance-1?command=x", 503, "node-a"), ("logs/instance-1", 503, "node-a")],
)  # fmt: skip
async def test_what_cannot_begin_is_refused_before(running: Running, call: str, status: int, words: str) -> None:
    """Exec into what does not run, or is not there, is refused as an HTTP problem before any websocket opens."""
    await running.scheduler.put(instance(1), instance(2, Status.FAILED), instance(3, Status.PENDING))
    given, _, body = await rejection(running, f"instances.{call}")
    assert given == status and words in json.loads(body)["detail"]


async def test_shutdown_ends_conversations_and_logs(running: Running) -> None:
    """At shutdown logs end, conversations get an error frame and 1001, and the server is gone in time."""

    async def silent(request: StreamRequest, stream: Stream) -> None:
        await stream.receive()

    await start(running, silent)
    async with exec_socket(running) as socket, running.client.socket("instances.logs/instance-1?follow=true") as logs:
        async with running.client.stream("GET", "/api/v0/instances.logs/instance-1?follow=true") as answer:
            started = trio.current_time()
            running.api.shutdown()
            assert await answer.aread() == b""
        frame = await socket.get_message()
        assert isinstance(frame, bytes) and "shutting down" in json.loads(frame[1:])["error"]
        assert await closing_code(socket) == 1001
        assert await closing_code(logs) == 1001
        await running.ended.wait()
    assert trio.current_time() - started < ENDS_WITHIN_S

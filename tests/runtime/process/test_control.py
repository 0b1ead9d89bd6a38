"""The control socket: whatever is sent to it, the pod does not notice."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import trio

from rik.messages import Exec
from rik.runtime.base import Pod
from rik.runtime.process.channel import Gone, Refusal, request
from rik.runtime.process.states import supervisor

from .conftest import Bench, Frames, container, script

pytestmark = pytest.mark.require("user-namespaces", reason="pods are made of them")


def _token(bench: Bench, pod: Pod) -> str:
    return str(json.loads((bench.runtime.layout.pod(pod.uid) / "pod.json").read_text())["token"])


def _connect(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.settimeout(5)
    sock.connect(str(path))
    return sock


async def test_garbage(bench: Bench) -> None:
    """Garbage, wrong tokens, other versions and unknown operations are refused, and the pod runs on."""
    pod, first = await bench.start(container("a", "sleep", "600"))
    path, token = bench.runtime.layout.socket(pod.uid), _token(bench, pod)
    good: dict[str, Any] = {"v": 1, "token": token, "op": "watch"}
    bad: list[bytes] = [
        b"\xff\xfe\x00",
        b"{",
        b"[]",
        b'"text"',
        b"null",
        b"{}",
        b"[" * 100_000,
        os.urandom(1000),
        json.dumps({**good, "token": "x"}).encode(),
        json.dumps({**good, "token": None}).encode(),
        json.dumps({**good, "v": 99}).encode(),
        json.dumps({**good, "op": "nonsense"}).encode(),
        json.dumps({**good, "op": ["watch"]}).encode(),
        json.dumps({**good, "op": "stop"}).encode(),
        json.dumps({**good, "op": "stop", "grace_s": "soon"}).encode(),
        json.dumps({**good, "op": "exec"}).encode(),
        json.dumps({**good, "op": "exec", "argv": 7}).encode(),
        json.dumps({**good, "op": "exec", "argv": ["x"], "columns": "wide"}).encode(),
        json.dumps({**good, "op": "exec", "argv": ["x"], "env": [1]}).encode(),
        json.dumps({**good, "op": "socket", "type": "raw"}).encode(),
        json.dumps({**good, "op": "attach", "container": "none"}).encode(),
    ]

    def send(packet: bytes) -> bytes:
        with _connect(path) as sock:
            sock.send(packet)
            answer = sock.recv(65_536)
            if answer:
                assert sock.recv(65_536) == b"", "it closes"
            return answer

    for packet in bad:
        answer = await trio.to_thread.run_sync(send, packet)
        assert answer == b"" or b'"error"' in answer or b'"failed"' in answer, packet
    assert await bench.runtime.observe(pod.uid) == first


async def test_errors_in_words(bench: Bench) -> None:
    """A refusal says what is wrong."""
    pod, _ = await bench.start(container("a", "sleep", "600"))
    path, token = bench.runtime.layout.socket(pod.uid), _token(bench, pod)
    async with request(path, token, "nonsense") as channel:
        with pytest.raises(Refusal, match="there is no operation 'nonsense'"):
            await channel.message()
    async with request(path, "wrong", "watch") as channel:
        with pytest.raises(Gone):
            await channel.message()


async def test_idle_and_half_made_connections(bench: Bench) -> None:
    """Hundreds of connections that say nothing, or go in the middle, keep nobody from being served."""
    pod, first = await bench.start(container("a", "sleep", "600"))
    path = bench.runtime.layout.socket(pod.uid)
    idle = [_connect(path) for _ in range(200)]
    for _ in range(50):
        _connect(path).close()
    assert await bench.runtime.observe(pod.uid) == first
    for sock in idle:
        sock.close()
    assert await bench.runtime.observe(pod.uid) == first


async def test_who_does_not_read_is_cut_off(bench: Bench) -> None:
    """Somebody attached who does not read is cut off, and the container is not slowed down by it."""
    pod, _ = await bench.start(
        script("a", "sleep 0.2; head -c 8000000 /dev/zero | tr '\\0' x; echo; echo done; sleep 60")
    )
    path, token = bench.runtime.layout.socket(pod.uid), _token(bench, pod)
    with _connect(path) as sock:
        sock.send(json.dumps({"v": 1, "token": token, "op": "attach"}).encode())
        await bench.until_said(pod, "done")
        received = []
        while data := await trio.to_thread.run_sync(sock.recv, 200_000):
            received.append(data)
    assert b"the log has all of it" in received[-1]


async def test_many_watchers(bench: Bench) -> None:
    """Every watcher is told of the end, also one who has not read for long."""
    pod, _ = await bench.start(container("a", "sleep", "600"))
    path, token = bench.runtime.layout.socket(pod.uid), _token(bench, pod)
    watchers = [_connect(path) for _ in range(20)]
    for sock in watchers:
        sock.send(json.dumps({"v": 1, "token": token, "op": "watch"}).encode())
    await trio.sleep(0.05)
    await bench.runtime.stop(pod.uid, 5)
    for sock in watchers:
        phases = []
        while data := await trio.to_thread.run_sync(sock.recv, 200_000):
            phases.append(json.loads(data)["state"]["phase"])
        sock.close()
        assert phases[0] == "running"
        assert phases[-1] == "ended"


async def test_descriptors_do_not_leak(bench: Bench) -> None:
    """A pod that has served hundreds of requests has no more open descriptors than before."""
    pod, _ = await bench.start(container("a", "sleep", "600"))
    identity = supervisor(bench.runtime.layout.pod(pod.uid))
    assert identity is not None

    def count() -> int:
        try:
            return len(os.listdir(f"/proc/{identity.pid}/fd"))
        except PermissionError:
            return 0  # an ordinary user may not look into it: then its limit would have been reached

    async def round_trip() -> None:
        for tty in (False, True):
            await bench.runtime.exec(Exec(pod.uid, ("true",), tty=tty), Frames())
        with pytest.raises(ConnectionRefusedError):
            await bench.runtime.connect(pod.uid, 1)
        await bench.runtime.observe(pod.uid)

    await round_trip()
    await trio.sleep(0.1)
    before = count()
    for _ in range(50):
        await round_trip()
    with trio.fail_after(5):
        while count() > before:
            await trio.sleep(0.05)

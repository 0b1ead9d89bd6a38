"""The pod's own network: what listens in it, and what is led into it."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from .conftest import Bench, container

pytestmark = pytest.mark.require("user-namespaces", reason="pods are made of them")

_ECHO = (
    "import socket, sys\n"
    "s = socket.socket(getattr(socket, sys.argv[1]), socket.SOCK_STREAM); s.bind((sys.argv[2], 8080)); s.listen()\n"
    "print('ready', flush=True)\n"
    "while True:\n"
    "    c, _ = s.accept(); c.sendall(sys.argv[3].encode()); c.close()\n"
)
_UDP = (
    "import socket\n"
    "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('0.0.0.0', 8080)); print('ready', flush=True)\n"
    "while True:\n"
    "    data, who = s.recvfrom(999); s.sendto(data.upper(), who)\n"
)


async def _read(bench: Bench, uid: str) -> bytes:
    stream = await bench.runtime.connect(uid, 8080)
    async with stream:
        return b"".join([chunk async for chunk in stream])


async def test_two_pods_on_one_port(bench: Bench) -> None:
    """Two pods listen on the same port, and each is reached."""
    pods = []
    for word in ("one", "two"):
        pod, _ = await bench.start(container("a", "python3", "-c", _ECHO, "AF_INET", "0.0.0.0", word))
        await bench.until_said(pod, "ready")
        pods.append(pod)
    assert [await _read(bench, pod.uid) for pod in pods] == [b"one", b"two"]


@pytest.mark.parametrize(("family", "address"), [("AF_INET", "127.0.0.1"), ("AF_INET6", "::1")])
async def test_loopback_of_a_pod_is_reached(bench: Bench, family: str, address: str) -> None:
    """Whatever listens in the pod is reached, also on its loopback alone, by IPv4 or IPv6."""
    pod, _ = await bench.start(container("a", "python3", "-c", _ECHO, family, address, "x"))
    await bench.until_said(pod, "ready")
    assert await _read(bench, pod.uid) == b"x"


async def test_containers_share_localhost(bench: Bench) -> None:
    """The containers of a pod reach each other over localhost."""
    client = (
        "import socket, time\n"
        "while True:\n"
        "    try: print(socket.create_connection(('localhost', 8080)).recv(9)); break\n"
        "    except OSError: time.sleep(0.05)\n"
    )
    pod, _ = await bench.start(
        container("server", "python3", "-c", _ECHO, "AF_INET", "127.0.0.1", "hello"),
        container("client", "python3", "-c", client),
    )
    await bench.until_said(pod, "hello")


async def test_nothing_listens(bench: Bench) -> None:
    """A port on which nothing listens refuses, and so does a pod that is not there."""
    pod, _ = await bench.start(container("a", "sleep", "60"))
    with pytest.raises(ConnectionRefusedError):
        await bench.runtime.connect(pod.uid, 8080)
    with pytest.raises(ConnectionRefusedError):
        await bench.runtime.connect("0" * 20, 8080)


async def test_many_connections_at_once(bench: Bench) -> None:
    """Hundreds of connections at the same moment are all led in."""
    pod, _ = await bench.start(container("a", "python3", "-c", _ECHO, "AF_INET", "0.0.0.0", "x"))
    await bench.until_said(pod, "ready")
    answers: list[bytes] = []

    async def read() -> None:
        answers.append(await _read(bench, pod.uid))

    async with trio.open_nursery() as nursery:
        for _ in range(300):
            nursery.start_soon(read)
    assert answers == [b"x"] * 300


async def test_datagrams(bench: Bench) -> None:
    """UDP goes both ways."""
    pod, _ = await bench.start(container("a", "python3", "-c", _UDP))
    await bench.until_said(pod, "ready")
    with await bench.runtime.datagrams(pod.uid, 8080) as sock:
        await sock.send(b"hello")
        assert await sock.recv(99) == b"HELLO"


async def test_host_network(bench: Bench) -> None:
    """With `hostNetwork` the pod has the host's network, and that is recorded."""
    pod, observed = await bench.start(
        container("a", "sh", "-c", "readlink /proc/self/ns/net; sleep 60"), hostNetwork=True
    )
    own = str(Path("/proc/self/ns/net").readlink())
    await bench.until_said(pod, own)
    assert "hostNetwork" in str(observed.enforced["network"])

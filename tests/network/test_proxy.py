"""The proxies behind published ports, over real sockets."""

from __future__ import annotations

import functools
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from rik.errors import InstanceFailure
from rik.model.instance import Port
from rik.network import proxy
from rik.network.publisher import ProxyPublisher, Target

ONE = (Port(0, 7),)


async def _echo(stream: trio.SocketStream) -> None:
    try:
        async for data in stream:
            await stream.send_all(data)
        await stream.send_eof()
    except trio.BrokenResourceError:
        pass


@asynccontextmanager
async def echoing() -> AsyncIterator[Target]:
    """An instance whose every port answers with what it gets."""
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(functools.partial(trio.serve_tcp, _echo, 0, host="127.0.0.1"))
        inside = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM)
        await inside.bind(("127.0.0.1", 0))
        nursery.start_soon(_echo_datagrams, inside)

        async def connect(port: int) -> trio.SocketStream:
            assert port == 7
            return await trio.open_tcp_stream("127.0.0.1", listeners[0].socket.getsockname()[1])

        async def datagrams(port: int) -> trio.socket.SocketType:
            client = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM)
            await client.connect(inside.getsockname())
            return client

        yield Target(connect, datagrams)
        nursery.cancel_scope.cancel()
        inside.close()


async def _echo_datagrams(bound: trio.socket.SocketType) -> None:
    while True:
        data, client = await bound.recvfrom(65_535)
        await bound.sendto(data, client)


@asynccontextmanager
async def publishing() -> AsyncIterator[ProxyPublisher]:
    publisher = ProxyPublisher("127.0.0.1")
    with trio.fail_after(30):
        async with publisher.open():
            yield publisher


async def _dial(port: Port) -> trio.SocketStream:
    return await trio.open_tcp_stream("127.0.0.1", port.port)


async def _read_all(stream: trio.abc.ReceiveStream) -> bytes:
    return b"".join([data async for data in stream])


async def test_bytes_go_both_ways_and_half_close_is_kept() -> None:
    """What is sent comes back whole, and the end of input is passed on while the answer still flows."""
    async with echoing() as target, publishing() as publisher:
        (port,) = await publisher.publish("u", "name", ONE, target)
        assert port.address == "127.0.0.1"
        payload = os.urandom(3_000_000)
        async with await _dial(port) as client, trio.open_nursery() as nursery:

            async def send() -> None:
                await client.send_all(payload)
                await client.send_eof()

            nursery.start_soon(send)
            assert await _read_all(client) == payload


async def test_refused_inside() -> None:
    """When nothing listens inside the connection is closed, and the next one is served as usual."""
    async with echoing() as target, publishing() as publisher:
        refuse = True

        async def connect(port: int) -> trio.abc.HalfCloseableStream:
            if refuse:
                raise ConnectionRefusedError
            return await target.connect(port)

        (port,) = await publisher.publish("u", "name", ONE, Target(connect, target.datagrams))
        async with await _dial(port) as client:
            assert await client.receive_some() == b""
        refuse = False
        async with await _dial(port) as client:
            await client.send_all(b"x")
            assert await client.receive_some() == b"x"


async def test_a_client_that_resets_does_not_end_the_listener() -> None:
    """Connections that break in any way leave the listener as it was."""
    async with echoing() as target, publishing() as publisher:
        (port,) = await publisher.publish("u", "name", ONE, target)
        for _ in range(20):
            client = await _dial(port)
            await client.send_all(b"x" * 100_000)
            client.socket.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            await client.aclose()
        async with await _dial(port) as client:
            await client.send_all(b"x")
            assert await client.receive_some() == b"x"


async def test_connections_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the limit connections wait, and are served when others end."""
    monkeypatch.setattr(proxy, "MAX_CONNECTIONS", 2)
    async with echoing() as target, publishing() as publisher:
        (port,) = await publisher.publish("u", "name", ONE, target)
        first, second, third = [await _dial(port) for _ in range(3)]
        await third.send_all(b"x")
        with trio.move_on_after(0.2) as waited:
            await third.receive_some()
        assert waited.cancelled_caught
        await first.aclose()
        assert await third.receive_some() == b"x"
        await second.aclose()
        await third.aclose()


async def test_withdrawn_ports_are_free_at_once() -> None:
    """After withdrawing, connections are closed and the same port can be published again immediately."""
    async with echoing() as target, publishing() as publisher:
        (port,) = await publisher.publish("u", "name", ONE, target)
        async with await _dial(port) as client:
            await client.send_all(b"x")
            assert await client.receive_some() == b"x"
            publisher.withdraw("u")
            (again,) = await publisher.publish("v", "other", (Port(port.port, 7),), target)
            assert again.port == port.port
            with pytest.raises(trio.BrokenResourceError):
                while await client.receive_some():
                    pass
                raise trio.BrokenResourceError
        assert [resource.owner for resource in publisher.listening()] == ["v"]
        publisher.withdraw("never")


async def test_the_other_instance_is_named() -> None:
    """A fixed port that another instance of this node has is refused with its name; none stays half bound."""
    async with echoing() as target, publishing() as publisher:
        (port,) = await publisher.publish("u", "cobra-citer-1923", ONE, target)
        with pytest.raises(InstanceFailure, match="cobra-citer-1923"):
            await publisher.publish("v", "other", (Port(0, 7), Port(port.port, 7)), target)
        assert [resource.owner for resource in publisher.listening()] == ["u"]


async def test_cluster_ip_is_not_published() -> None:
    """A ClusterIP port listens nowhere on the node."""
    async with echoing() as target, publishing() as publisher:
        wanted = (Port(0, 7, type="ClusterIP"),)
        assert await publisher.publish("u", "name", wanted, target) == wanted
        assert publisher.listening() == []


async def test_udp_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each UDP client gets its own answers, and a silent one is forgotten and served anew."""
    monkeypatch.setattr(proxy, "SESSION_IDLE_S", 0.2)
    async with echoing() as target, publishing() as publisher:
        (port,) = await publisher.publish("u", "name", (Port(0, 7, "UDP"),), target)
        clients = [trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) for _ in range(3)]
        for turn in range(2):
            for number, client in enumerate(clients):
                await client.sendto(f"{turn}-{number}".encode(), ("127.0.0.1", port.port))
            for number, client in enumerate(clients):
                assert (await client.recvfrom(100))[0] == f"{turn}-{number}".encode()
            await trio.sleep(0.5)
        for client in clients:
            client.close()


async def test_udp_refused_inside_is_lost_and_no_more() -> None:
    """Datagrams to a port where nothing listens are lost; the listener serves on."""
    async with echoing() as target, publishing() as publisher:
        refuse = True

        async def datagrams(port: int) -> trio.socket.SocketType:
            if refuse:
                raise OSError("nothing there")
            return await target.datagrams(port)

        (port,) = await publisher.publish("u", "name", (Port(0, 7, "UDP"),), Target(target.connect, datagrams))
        with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as client:
            await client.sendto(b"lost", ("127.0.0.1", port.port))
            await trio.sleep(0.1)
            refuse = False
            await client.sendto(b"kept", ("127.0.0.1", port.port))
            assert (await client.recvfrom(100))[0] == b"kept"

"""Publishes the ports of instances on this node."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Protocol

import msgspec
import trio

from rik.errors import InstanceFailure
from rik.model.instance import Port, Reason
from rik.model.node import HostResource
from rik.network import ports as node_ports
from rik.network.proxy import serve_tcp, serve_udp

CLUSTER_IP = "ClusterIP"


class Target(msgspec.Struct, frozen=True):
    """How an instance's own ports are reached; both raise OSError."""

    connect: Callable[[int], Awaitable[trio.abc.HalfCloseableStream]]
    datagrams: Callable[[int], Awaitable[trio.socket.SocketType]]


class Publisher(Protocol):
    """Gives instances ports of the node."""

    def open(self) -> AbstractAsyncContextManager[None]:
        """Owns what listens; leaving it closes everything."""
        ...

    async def publish(self, uid: str, name: str, ports: Sequence[Port], target: Target) -> tuple[Port, ...]:
        """The same ports with number and address filled in, all of them listening. Raises InstanceFailure PortConflict
        naming the holder; then none of them does."""
        ...

    def withdraw(self, uid: str) -> None:
        """Stops listening and closes the connections; nothing happens if there is nothing."""
        ...

    def listening(self) -> list[HostResource]:
        """The sockets that are open, with their owners."""
        ...


class _Published(msgspec.Struct, frozen=True):
    name: str
    ports: tuple[Port, ...]
    sockets: list[trio.socket.SocketType]
    scope: trio.CancelScope


class ProxyPublisher:
    """By proxies of RIK's own: needs no privileges, and nothing of the host's firewall."""

    def __init__(self, address: str = "") -> None:
        self._address = address
        self._nursery: trio.Nursery | None = None
        self._open: dict[str, _Published] = {}

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                yield
            finally:
                self._nursery = None
                nursery.cancel_scope.cancel()

    async def publish(self, uid: str, name: str, ports: Sequence[Port], target: Target) -> tuple[Port, ...]:
        self.withdraw(uid)
        published = []
        sockets: list[tuple[Port, trio.socket.SocketType]] = []
        try:
            for index, port in enumerate(ports):
                if port.type == CLUSTER_IP:
                    published.append(port)
                    continue
                sockets.append((port, await self._bind(port, f"{uid}{index}")))
                number = sockets[-1][1].getsockname()[1]
                published.append(msgspec.structs.replace(port, port=number, address=self._address or "0.0.0.0"))
        except BaseException:
            for _, bound in sockets:
                bound.close()
            raise
        if sockets:
            assert self._nursery is not None, "the publisher is not open"
            scope = trio.CancelScope()
            self._open[uid] = _Published(name, tuple(published), [bound for _, bound in sockets], scope)
            self._nursery.start_soon(self._serve, scope, sockets, target)
        return tuple(published)

    def withdraw(self, uid: str) -> None:
        entry = self._open.pop(uid, None)
        if entry is not None:
            entry.scope.cancel()
            for bound in entry.sockets:  # at once, so that the next instance can have the port
                bound.close()

    def listening(self) -> list[HostResource]:
        return [
            HostResource(
                "socket", f"{port.protocol.lower()} {port.address}:{port.port}", uid, f"leads to {port.target_port}"
            )
            for uid, entry in self._open.items()
            for port in entry.ports
            if port.type != CLUSTER_IP
        ]

    async def _bind(self, port: Port, seed: str) -> trio.socket.SocketType:
        holder = next((name for name, held in self._holders() if _same(port, held)), "")
        if holder:
            message = f'port {port.port}/{port.protocol} is held by instance "{holder}" on this node'
            raise InstanceFailure(
                Reason.PORT_CONFLICT, message, next_step="choose another port, or 0 to let RIK choose"
            )
        # In a thread when it is a fixed one: naming a foreign holder reads all of /proc.
        if port.port:
            bound = await trio.to_thread.run_sync(node_ports.bind, port, self._address, seed)
        else:
            await trio.lowlevel.checkpoint()
            bound = node_ports.bind(port, self._address, seed)
        return trio.socket.from_stdlib_socket(bound)

    def _holders(self) -> list[tuple[str, Port]]:
        return [(entry.name, port) for entry in self._open.values() for port in entry.ports]

    async def _serve(
        self, scope: trio.CancelScope, sockets: list[tuple[Port, trio.socket.SocketType]], target: Target
    ) -> None:
        try:
            with scope:
                async with trio.open_nursery() as nursery:
                    for port, bound in sockets:
                        if port.protocol == "UDP":
                            nursery.start_soon(serve_udp, bound, partial(target.datagrams, port.target_port))
                        else:
                            nursery.start_soon(serve_tcp, bound, partial(target.connect, port.target_port))
        except* trio.ClosedResourceError:
            pass  # `withdraw` closed the sockets


def _same(wanted: Port, held: Port) -> bool:
    return (
        bool(wanted.port) and held.type != CLUSTER_IP and (wanted.port, wanted.protocol) == (held.port, held.protocol)
    )

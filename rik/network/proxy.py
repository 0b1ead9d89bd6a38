"""Leads the traffic of published ports into instances: TCP connections with half-close, UDP with a session for each
client.

Nothing a client or an instance does ends a listener: what goes wrong with one connection closes that connection.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Awaitable, Callable

import trio

log = logging.getLogger(__name__)

BUFFER_BYTES = 65_536
# Connections of one port at a time; further ones wait in the kernel's backlog.
MAX_CONNECTIONS = 1_000
# UDP clients of one port at a time, and how long a silent one is remembered.
MAX_SESSIONS = 1_000
SESSION_IDLE_S = 60.0
MAX_DATAGRAM_BYTES = 65_535
# How long to wait when the process is out of descriptors or memory before accepting again.
EXHAUSTED_PAUSE_S = 0.1
# The same after an error on a UDP socket, so that one that stays does not take a whole core.
REFUSED_PAUSE_S = 0.005
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})

Dial = Callable[[], Awaitable[trio.abc.HalfCloseableStream]]
DialDatagrams = Callable[[], Awaitable[trio.socket.SocketType]]
Address = tuple[object, ...]


async def serve_tcp(listening: trio.socket.SocketType, dial: Dial) -> None:
    """Serves until cancelled; then closes the socket and every connection. `dial` raises OSError when nothing listens
    inside.
    """
    places = trio.CapacityLimiter(MAX_CONNECTIONS)
    with listening:
        async with trio.open_nursery() as nursery:
            while True:
                holder = object()
                await places.acquire_on_behalf_of(holder)
                try:
                    connection, _ = await listening.accept()
                except OSError as error:
                    places.release_on_behalf_of(holder)
                    # Anything else concerns the one connection that was reset before it was accepted.
                    if error.errno in _EXHAUSTED:
                        await trio.sleep(EXHAUSTED_PAUSE_S)
                    continue
                nursery.start_soon(_serve_connection, trio.SocketStream(connection), dial, places, holder)


async def _serve_connection(
    client: trio.SocketStream, dial: Dial, places: trio.CapacityLimiter, holder: object
) -> None:
    try:
        async with client:
            try:
                inside = await dial()
            except OSError:
                return
            async with inside, trio.open_nursery() as nursery:
                nursery.start_soon(_pump, client, inside, nursery.cancel_scope)
                await _pump(inside, client, nursery.cancel_scope)
    except Exception:
        log.exception("a connection to a published port met a fault in RIK")
    finally:
        places.release_on_behalf_of(holder)


async def _pump(
    source: trio.abc.HalfCloseableStream, target: trio.abc.HalfCloseableStream, both: trio.CancelScope
) -> None:
    """Copies until the source's end, which is passed on; an error of either side ends both directions."""
    try:
        while data := await source.receive_some(BUFFER_BYTES):
            await target.send_all(data)
        await target.send_eof()
    except (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
        both.cancel()


async def serve_udp(bound: trio.socket.SocketType, dial: DialDatagrams) -> None:
    """Serves until cancelled; then closes the socket and every session. A client is served by one socket inside for as
    long as either side says something at least every SESSION_IDLE_S."""
    sessions: dict[Address, _Session] = {}
    with bound:
        async with trio.open_nursery() as nursery:
            while True:
                try:
                    data, client = await bound.recvfrom(MAX_DATAGRAM_BYTES)
                except OSError:  # an ICMP error for something sent before
                    await trio.sleep(REFUSED_PAUSE_S)
                    continue
                session = sessions.get(client)
                if session is None:
                    if len(sessions) >= MAX_SESSIONS:
                        continue  # as a full queue does: the datagram is lost
                    session = sessions[client] = _Session()
                    nursery.start_soon(_serve_session, bound, client, dial, session, sessions)
                session.send_nowait(data)


class _Session:
    """What a client sent and has not been passed on; when it is too much, datagrams are lost, as they may be."""

    WAITING = 64

    def __init__(self) -> None:
        self._send, self.received = trio.open_memory_channel[bytes](self.WAITING)
        self.last_at = trio.current_time()

    def send_nowait(self, data: bytes) -> None:
        self.last_at = trio.current_time()
        try:
            self._send.send_nowait(data)
        except trio.WouldBlock:
            pass


async def _serve_session(
    bound: trio.socket.SocketType,
    client: Address,
    dial: DialDatagrams,
    session: _Session,
    sessions: dict[Address, _Session],
) -> None:
    try:
        inside = await dial()
        with inside:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_answers, inside, bound, client, session)
                nursery.start_soon(_requests, inside, session)
                while (left := session.last_at + SESSION_IDLE_S - trio.current_time()) > 0:
                    await trio.sleep(left)
                nursery.cancel_scope.cancel()
    except OSError:
        pass  # nothing listens inside: what was sent is lost, as on any network
    except Exception:
        log.exception("datagrams to a published port met a fault in RIK")
    finally:
        del sessions[client]


async def _requests(inside: trio.socket.SocketType, session: _Session) -> None:
    async for data in session.received:
        try:
            await inside.send(data)
        except OSError:  # nothing listens inside just now
            continue


async def _answers(
    inside: trio.socket.SocketType, bound: trio.socket.SocketType, client: Address, session: _Session
) -> None:
    while True:
        try:
            data = await inside.recv(MAX_DATAGRAM_BYTES)
            session.last_at = trio.current_time()
            await bound.sendto(data, client)
        except OSError:  # refused inside, or the client is gone: neither ends the session
            await trio.sleep(REFUSED_PAUSE_S)

"""The way to end a connection whose client does not read.

Hypercorn shields its sending from cancellation, so one client that never reads would keep its handler, and with it the
whole shutdown, for ever. What ends such a send is the end of its socket. Hypercorn shows no sockets; an ASGI scope has
the addresses of both ends, and by these the socket is found among this process's open files.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import stat
import struct
from collections.abc import Callable, Iterator
from typing import Any

import trio

log = logging.getLogger("rik.api")

# How long one send may wait for its client before the connection is ended: this, and as long as its bytes would take at
# the slowest rate that is still called reading. Patient calls (logs, exec) have no limit.
SEND_LIMIT_S = 30.0
SLOWEST_BYTES_PER_S = 131_072
LOOK_INTERVAL_S = 1.0
# A peer that vanished without a word is noticed by TCP itself within about a minute.
KEEPALIVE_IDLE_S = 30
KEEPALIVE_INTERVAL_S = 10
KEEPALIVE_PROBES = 3
WILDCARDS = ("0.0.0.0", "::")
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)

Address = tuple[Any, ...]


class Sending:
    """The sends of one request; whoever serves it may declare it `patient`. `deadline` is that of the present send."""

    __slots__ = ("client", "deadline", "patient", "server")

    def __init__(self, client: Address | None, server: Address | None) -> None:
        self.client = client
        self.server = server
        self.patient = False
        self.deadline = math.inf

    def begin(self, size: int) -> None:
        """A send of so many bytes."""
        if not self.patient:
            self.deadline = trio.current_time() + SEND_LIMIT_S + size / SLOWEST_BYTES_PER_S

    def end(self) -> None:
        self.deadline = math.inf


class Connections:
    """Knows every request under way, and ends those whose client does not take what it asked for."""

    def __init__(self) -> None:
        self._sendings: set[Sending] = set()

    def open(self, scope: Any) -> Sending:
        sending = Sending(scope.get("client"), scope.get("server"))
        self._sendings.add(sending)
        return sending

    def close(self, sending: Sending) -> None:
        self._sendings.discard(sending)

    async def run(self, address: Address) -> None:
        """Looks after them until cancelled; then ends every connection to `address`, the one that is listened on."""
        try:
            while True:
                await trio.sleep(LOOK_INTERVAL_S)
                now = trio.current_time()
                stuck = {(sending.client, sending.server) for sending in self._sendings if now > sending.deadline}
                if stuck:
                    log.warning("ending %d connections whose clients do not read", len(stuck))
                    _end_pairs(stuck)
        finally:
            end_all(address)


def _end_pairs(pairs: set[tuple[Address | None, Address | None]]) -> None:
    end_connections(lambda ours, theirs: (theirs, ours) in pairs)


def end_all(address: Address) -> None:
    """Ends every connection to this address and port."""
    host, port = address[:2]
    end_connections(lambda ours, theirs: ours[1] == port and (host in WILDCARDS or ours[0] == host))


def end_connections(chosen: Callable[[Address, Address], bool]) -> None:
    """Ends this process's TCP connections for which `chosen(own address, peer's address)` is true, without waiting."""
    for connection in _tcp_sockets():
        with connection:
            try:
                ours, theirs = connection.getsockname()[:2], connection.getpeername()[:2]
                if chosen(ours, theirs):
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
                    connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # a listening socket has no peer; a connection may have just ended by itself


def _tcp_sockets() -> Iterator[socket.socket]:
    for name in os.listdir("/proc/self/fd"):
        try:
            if not stat.S_ISSOCK(os.stat(int(name)).st_mode):
                continue
            duplicate = os.dup(int(name))
        except OSError:
            continue  # closed meanwhile
        candidate = socket.socket(fileno=duplicate)
        if candidate.family in (socket.AF_INET, socket.AF_INET6) and candidate.type == socket.SOCK_STREAM:
            yield candidate
        else:
            candidate.close()


def listening_socket(host: str, port: int) -> socket.socket:
    """Bound, not yet listening; what it accepts inherits its options. Raises OSError."""
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
        listener.bind(address)
    except BaseException:
        listener.close()
        raise
    return listener

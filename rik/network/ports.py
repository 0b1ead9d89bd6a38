"""Binding the node's ports, and saying who holds one that cannot be bound."""

from __future__ import annotations

import errno
import os
import socket
import zlib
from collections.abc import Iterator
from pathlib import Path

from rik.errors import InstanceFailure
from rik.linux.identity import command_line, processes
from rik.model.instance import Port, Reason

# Where RIK chooses ports: below Linux's ephemeral range (32768-60999), so that no client's TIME-WAIT holds one.
FIRST_CHOSEN_PORT = 30_000
LAST_CHOSEN_PORT = 32_767
LISTEN_BACKLOG = 1024
_TAKEN = frozenset({errno.EADDRINUSE, errno.EACCES})
_LISTENING = "0A"
_UNCONNECTED = "07"


def bind(port: Port, address: str, seed: str) -> socket.socket:
    """A non-blocking socket bound to `port.port` (0: a free one of RIK's range; where the search begins follows from
    `seed`).

    `address` "" is every address of the host, IPv4 and IPv6. A TCP socket listens. Raises InstanceFailure PortConflict.
    """
    refused: OSError | None = None
    for number in [port.port] if port.port else _candidates(seed):
        try:
            return _bind(port.protocol, address, number)
        except OSError as error:
            refused = error
            if error.errno not in _TAKEN:
                break
    assert refused is not None
    if port.port:
        raise conflict(port, address, refused)
    span = f"{FIRST_CHOSEN_PORT}-{LAST_CHOSEN_PORT}"
    raise InstanceFailure(Reason.PORT_CONFLICT, f"no {port.protocol} port of {span} could be bound: {_cause(refused)}")


def conflict(port: Port, address: str, refused: OSError) -> InstanceFailure:
    """What to say of a fixed port that could not be bound; looks for its holder, which may take 50 ms."""
    where = f"port {port.port}/{port.protocol}" + (f" of {address}" if address else "")
    if refused.errno == errno.EADDRINUSE:
        holder = holder_of(port.port, port.protocol)
        message = f"{where} is held by {holder or 'another program'}: {_cause(refused)}"
        return InstanceFailure(Reason.PORT_CONFLICT, message, next_step="choose another port, or 0 to let RIK choose")
    return InstanceFailure(Reason.PORT_CONFLICT, f"{where} cannot be bound: {_cause(refused)}")


def holder_of(port: int, protocol: str) -> str:
    """`program (pid N)` of the process that has the port, "" when it cannot be found (another user's, without root)."""
    inodes = set(_sockets_of(port, protocol))
    if not inodes:
        return ""
    names = {f"socket:[{inode}]" for inode in inodes}
    for pid in processes():
        try:
            descriptors = os.listdir(f"/proc/{pid}/fd")
        except OSError:  # another user's, or gone
            continue
        for fd in descriptors:
            try:
                found = os.readlink(f"/proc/{pid}/fd/{fd}") in names
            except OSError:
                continue
            if found:
                return f"{Path((command_line(pid) or ['?'])[0]).name} (pid {pid})"
    return ""


def _bind(protocol: str, address: str, number: int) -> socket.socket:
    kind = socket.SOCK_DGRAM if protocol == "UDP" else socket.SOCK_STREAM
    bound = _socket(kind, address)
    try:
        if kind == socket.SOCK_STREAM:  # for UDP it would let two programs have the same port
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((address or ("::" if bound.family == socket.AF_INET6 else "0.0.0.0"), number))
        if kind == socket.SOCK_STREAM:
            bound.listen(LISTEN_BACKLOG)
        bound.setblocking(False)
        return bound
    except BaseException:
        bound.close()
        raise


def _socket(kind: int, address: str) -> socket.socket:
    if address:
        return socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind | socket.SOCK_CLOEXEC)
    try:
        both = socket.socket(socket.AF_INET6, kind | socket.SOCK_CLOEXEC)
    except OSError:  # a host without IPv6
        return socket.socket(socket.AF_INET, kind | socket.SOCK_CLOEXEC)
    both.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    return both


def _candidates(seed: str) -> Iterator[int]:
    size = LAST_CHOSEN_PORT - FIRST_CHOSEN_PORT + 1
    start = zlib.crc32(seed.encode())
    return (FIRST_CHOSEN_PORT + (start + step) % size for step in range(size))


def _sockets_of(port: int, protocol: str) -> Iterator[str]:
    """Inodes of the sockets bound to that port, from /proc/net."""
    state = _UNCONNECTED if protocol == "UDP" else _LISTENING
    for suffix in ("", "6"):
        try:
            text = Path(f"/proc/net/{protocol.lower()}{suffix}").read_text(encoding="ascii")
        except OSError:
            continue
        for line in text.splitlines()[1:]:
            fields = line.split()
            if int(fields[1].rpartition(":")[2], 16) == port and fields[3] == state:
                yield fields[9]


def _cause(error: OSError) -> str:
    return error.strerror or str(error)

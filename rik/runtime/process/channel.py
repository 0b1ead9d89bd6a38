"""Talking with a pod's supervisor (see `rik.runtime.process.podinit.control` for the protocol)."""

from __future__ import annotations

import array
import json
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from rik.runtime.process.podinit.control import PACKET_BYTES
from rik.runtime.process.podinit.records import PROTOCOL

_MOST_FDS = 8
_INT_BYTES = array.array("i").itemsize


class Gone(Exception):
    """There is no supervisor at the other end, or not any more."""


class Refusal(Exception):
    """The supervisor said no; `reason` is NotFound, NotRunning, TooSlow or InternalError."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Channel:
    """One connection, for one request."""

    def __init__(self, sock: trio.socket.SocketType) -> None:
        self._sock = sock

    async def send(self, packet: bytes) -> None:
        """Raises Gone."""
        try:
            await self._sock.send(packet)
        except OSError as error:
            raise Gone(str(error)) from None

    async def packet(self) -> tuple[bytes, list[int]]:
        """The next packet with its descriptors, which are the caller's to close. Raises Gone at the end."""
        try:
            data, ancillary, _, _ = await self._sock.recvmsg(
                PACKET_BYTES, socket.CMSG_SPACE(_MOST_FDS * _INT_BYTES), socket.MSG_CMSG_CLOEXEC
            )
        except OSError as error:
            raise Gone(str(error)) from None
        fds: list[int] = []
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                found = array.array("i")
                found.frombytes(content[: len(content) - len(content) % _INT_BYTES])
                fds += found
        if not data:
            for fd in fds:
                os.close(fd)
            raise Gone("the connection was closed")
        return data, fds

    async def message(self) -> tuple[dict[str, Any], list[int]]:
        """The next packet, read as JSON. Raises Gone, or Refusal when it is one."""
        data, fds = await self.packet()
        try:
            message: dict[str, Any] = json.loads(data)
        except ValueError as error:
            for fd in fds:
                os.close(fd)
            raise Refusal("InternalError", f"what it says cannot be read: {error}") from None
        if "error" in message:
            raise Refusal(str(message.get("reason", "")), str(message["error"]))
        return message, fds


@asynccontextmanager
async def request(path: Path, token: str, op: str, **arguments: Any) -> AsyncIterator[Channel]:
    """A connection on which `op` has been asked. Raises Gone when nobody listens."""
    sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with sock:
        try:
            await sock.connect(str(path))
        except OSError as error:
            raise Gone(str(error)) from None
        channel = Channel(sock)
        await channel.send(json.dumps({"v": PROTOCOL, "token": token, "op": op, **arguments}).encode())
        yield channel

"""What a link is, whatever carries it."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, Protocol, TypeVar

import trio

from rik.errors import RikError
from rik.messages import StreamRequest

Out_contra = TypeVar("Out_contra", contravariant=True)
In_co = TypeVar("In_co", covariant=True)

# Frames of a stream that may wait on either side before the sender has to: 16 frames of at most 64 KiB are 1 MiB.
STREAM_FRAMES = 16
MAX_FRAME_BYTES = 65_536


class LinkClosed(Exception):
    """The other side is gone; open a new link."""


class StreamFailed(RikError):
    """The other side ended a stream with an error; `reason` is a code for programs, such as ImageNotFound."""

    def __init__(self, message: str, *, status: int = 503, reason: str = "Refused", next_step: str = "") -> None:
        super().__init__(message, next_step=next_step)
        self.http_status = status
        self.reason = reason


class Stream(Protocol):
    """Frames of bytes, both ways, in order, with back-pressure. Closing it on either side ends it on both."""

    async def send(self, frame: bytes) -> None:
        """Raises LinkClosed when the other side closed or is gone."""
        ...

    async def receive(self) -> bytes | None:
        """The next frame, or None at the end. Raises StreamFailed when the other side ended it by `fail`."""
        ...

    async def end(self) -> None:
        """No more frames from here; receiving goes on."""
        ...

    async def fail(self, message: str, status: int = 503, *, reason: str = "Refused", next_step: str = "") -> None:
        """Ends the stream with an error (`status` as in HTTP) for the other side."""
        ...

    async def aclose(self) -> None:
        """Ends both directions at once; never raises."""
        ...


class Link(Protocol[Out_contra, In_co]):
    """One end of a session between two roles."""

    async def send(self, message: Out_contra) -> None:
        """Waits for room. Raises LinkClosed."""
        ...

    def send_nowait(self, message: Out_contra) -> None:
        """Raises trio.WouldBlock when there is no room, LinkClosed when the other side is gone."""
        ...

    async def receive(self) -> In_co:
        """Raises LinkClosed at the end."""
        ...

    async def open_stream(self, request: StreamRequest) -> Stream:
        """Raises LinkClosed."""
        ...

    async def accept_stream(self) -> tuple[StreamRequest, Stream]:
        """The next stream that the other side opened. Raises LinkClosed."""
        ...

    def close(self) -> None:
        """Ends the session for both sides."""
        ...


K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Mailbox(Generic[K, V]):
    """Latest-wins: what was put under a key and not yet taken is replaced. Putting never waits."""

    def __init__(self) -> None:
        self._items: dict[K, V] = {}
        self._filled = trio.Event()

    def put(self, key: K, value: V) -> None:
        """The new value takes the old one's place at the end of the line."""
        self._items.pop(key, None)
        self._items[key] = value
        self._filled.set()

    def peek(self, key: K) -> V | None:
        """The value that waits under `key`, if any."""
        return self._items.get(key)

    async def take(self, limit: int = 1000) -> list[V]:
        """Everything that waits, oldest first, at most `limit`; waits until there is something."""
        while not self._items:
            self._filled = trio.Event()
            await self._filled.wait()
        taken = list(self._items)[:limit]
        return [self._items.pop(key) for key in taken]

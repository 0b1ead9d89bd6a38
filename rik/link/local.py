"""A link within one process: memory channels, no encoding. Messages are immutable, so sharing them is safe."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import trio

from rik.link.base import STREAM_FRAMES, LinkClosed, StreamFailed
from rik.messages import StreamRequest

A = TypeVar("A")
B = TypeVar("B")

# Messages that may wait on a link before its sender has to (or, sending without waiting, is refused).
DEFAULT_CAPACITY = 10_000
WAITING_STREAMS = 64


class LocalStream:
    """One end of an in-memory stream; made in pairs by `stream_pair`."""

    def __init__(
        self, outgoing: trio.MemorySendChannel[bytes | StreamFailed], incoming: trio.MemoryReceiveChannel[Any]
    ) -> None:
        self._outgoing = outgoing
        self._incoming = incoming

    async def send(self, frame: bytes) -> None:
        try:
            await self._outgoing.send(frame)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise LinkClosed from None

    async def receive(self) -> bytes | None:
        try:
            frame = await self._incoming.receive()
        except (trio.EndOfChannel, trio.ClosedResourceError):
            return None
        if isinstance(frame, StreamFailed):
            raise frame
        return bytes(frame)

    async def end(self) -> None:
        await self._outgoing.aclose()

    async def fail(self, message: str, status: int = 503, *, reason: str = "Refused", next_step: str = "") -> None:
        try:
            await self._outgoing.send(StreamFailed(message, status=status, reason=reason, next_step=next_step))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return
        await self._outgoing.aclose()

    async def aclose(self) -> None:
        self._outgoing.close()
        self._incoming.close()


def stream_pair() -> tuple[LocalStream, LocalStream]:
    """Two ends of one stream."""
    send_a, receive_a = trio.open_memory_channel[bytes | StreamFailed](STREAM_FRAMES)
    send_b, receive_b = trio.open_memory_channel[bytes | StreamFailed](STREAM_FRAMES)
    return LocalStream(send_a, receive_b), LocalStream(send_b, receive_a)


class LocalLink(Generic[A, B]):
    """One end; made in pairs by `link_pair`."""

    def __init__(
        self,
        outgoing: trio.MemorySendChannel[A],
        incoming: trio.MemoryReceiveChannel[B],
        opened: trio.MemorySendChannel[tuple[StreamRequest, LocalStream]],
        accepted: trio.MemoryReceiveChannel[tuple[StreamRequest, LocalStream]],
    ) -> None:
        self._outgoing = outgoing
        self._incoming = incoming
        self._opened = opened
        self._accepted = accepted

    async def send(self, message: A) -> None:
        try:
            await self._outgoing.send(message)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise LinkClosed from None

    def send_nowait(self, message: A) -> None:
        try:
            self._outgoing.send_nowait(message)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise LinkClosed from None

    async def receive(self) -> B:
        try:
            return await self._incoming.receive()
        except (trio.EndOfChannel, trio.ClosedResourceError):
            raise LinkClosed from None

    async def open_stream(self, request: StreamRequest) -> LocalStream:
        ours, theirs = stream_pair()
        try:
            await self._opened.send((request, theirs))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise LinkClosed from None
        return ours

    async def accept_stream(self) -> tuple[StreamRequest, LocalStream]:
        try:
            return await self._accepted.receive()
        except (trio.EndOfChannel, trio.ClosedResourceError):
            raise LinkClosed from None

    def close(self) -> None:
        self._outgoing.close()
        self._incoming.close()
        self._opened.close()
        self._accepted.close()


def link_pair(capacity: int = DEFAULT_CAPACITY) -> tuple[LocalLink[A, B], LocalLink[B, A]]:
    """Two ends of one link; what one sends, the other receives."""
    send_a, receive_a = trio.open_memory_channel[A](capacity)
    send_b, receive_b = trio.open_memory_channel[B](capacity)
    open_a, accept_a = trio.open_memory_channel[tuple[StreamRequest, LocalStream]](WAITING_STREAMS)
    open_b, accept_b = trio.open_memory_channel[tuple[StreamRequest, LocalStream]](WAITING_STREAMS)
    return LocalLink(send_a, receive_b, open_a, accept_b), LocalLink(send_b, receive_a, open_b, accept_a)

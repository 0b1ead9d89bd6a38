"""What all who serve a stream share: one answer in frames, and an ear for its end."""

from __future__ import annotations

from typing import Any

import msgspec
import trio

from rik.link.base import MAX_FRAME_BYTES, Stream


async def send_whole(stream: Stream, answer: dict[str, Any], *, end: bytes = b"") -> None:
    """One JSON text and its `end`, in as many frames as it takes. Raises LinkClosed."""
    data = msgspec.json.encode(answer) + end
    for start in range(0, len(data), MAX_FRAME_BYTES):
        await stream.send(data[start : start + MAX_FRAME_BYTES])


async def cancel_when_closed(stream: Stream, scope: trio.CancelScope) -> None:
    """Reads what nobody has a reason to send, so that the other side's leaving is noticed."""
    while await stream.receive() is not None:
        pass
    scope.cancel()

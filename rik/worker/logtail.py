"""The last lines of an instance, for its final report."""

from __future__ import annotations

import logging
from contextlib import aclosing

import msgspec
import trio

from rik.errors import InstanceFailure
from rik.messages import ReadLogs
from rik.model.instance import LogLine
from rik.runtime.base import Runtime

log = logging.getLogger(__name__)

TAIL_LINES = 20
LINE_BYTES = 4_096
TAIL_BYTES = 16_384
# A final report waits for its log lines at most this long.
PATIENCE_S = 2.0


async def log_tail(runtime: Runtime, uid: str) -> tuple[LogLine, ...]:
    """The last lines, oldest first, within the bounds above; what cannot be read in time is left out."""
    lines: list[LogLine] = []
    try:
        with trio.move_on_after(PATIENCE_S):
            async with aclosing(runtime.logs(ReadLogs(uid, tail=TAIL_LINES))) as batches:
                async for batch in batches:
                    lines += batch
    except (InstanceFailure, OSError) as error:
        log.warning("the last lines of instance %s cannot be read: %s", uid, error)
    return bound(lines)


def bound(lines: list[LogLine]) -> tuple[LogLine, ...]:
    """The last of these lines that fit, long ones cut."""
    kept: list[LogLine] = []
    size = 0
    for line in reversed(lines[-TAIL_LINES:]):
        text = line.line.encode()
        if len(text) > LINE_BYTES:
            text = text[:LINE_BYTES]
            line = msgspec.structs.replace(line, line=text.decode("utf-8", "ignore"))
        size += len(text)
        if size > TAIL_BYTES:
            break
        kept.append(line)
    return tuple(reversed(kept))

"""Serves the streams that the api opens towards a worker: logs, exec, attach, stats, audit, doctor, images."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any

import msgspec
import trio

from rik.environment import Environment
from rik.errors import InstanceFailure, RikError
from rik.images.errors import ImageError
from rik.link.base import MAX_FRAME_BYTES, LinkClosed, Stream
from rik.messages import (
    Attach,
    Audit,
    Doctor,
    Exec,
    ListImages,
    PruneImages,
    PullImage,
    ReadLogs,
    ReadStats,
    StreamRequest,
)
from rik.model.instance import LogLine, Reason, Status
from rik.model.public import render_time
from rik.runtime.base import ContainerStats, Runtime
from rik.worker.audit import Audited
from rik.worker.frames import cancel_when_closed, send_whole
from rik.worker.images import NO_IMAGES, NOTHING_PRUNED, NodeImages
from rik.worker.supervisor import Supervisor

log = logging.getLogger(__name__)

# Streams at a time; more are refused, so that a flood of them cannot exhaust the host.
MAX_STREAMS = 1_000
# Between the two looks from which the present use of cpu is computed.
CPU_SAMPLE_S = 0.1
_FAILURE_STATUS = {
    Reason.COMMAND_NOT_FOUND: 400,
    Reason.INTERNAL_ERROR: 500,
    Reason.IMAGE_INVALID: 400,
    Reason.IMAGE_UNAUTHORIZED: 403,
    Reason.IMAGE_NOT_FOUND: 404,
    Reason.IMAGE_PULL_FAILED: 503,
}
_LIVE = (Status.RUNNING, Status.DESTROYING)


class Streams:
    """`find` gives the supervisor of a uid; `audit` and `examine` do the host's rounds; `images` None: there are none
    here."""

    def __init__(
        self,
        environment: Environment,
        runtimes: list[Runtime],
        find: Callable[[str], Supervisor | None],
        audit: Callable[[], Awaitable[Audited]],
        examine: Callable[[], Awaitable[list[Any]]],
        images: NodeImages | None = None,
    ) -> None:
        self._environment = environment
        self._runtimes = runtimes
        self._find = find
        self._audit = audit
        self._examine = examine
        self._images = images
        self._open = 0

    async def serve(self, request: StreamRequest, stream: Stream) -> None:
        """To its end; never raises but when cancelled. Errors reach the other side as the stream's failure."""
        self._open += 1
        try:
            if self._open > MAX_STREAMS:
                await stream.fail(f"the node serves {MAX_STREAMS} streams already", 503)
            else:
                await self._answer(request, stream)
        except LinkClosed:
            pass
        except ImageError as error:
            status = _FAILURE_STATUS[Reason(error.reason)]
            await stream.fail(error.message, status, reason=error.reason, next_step=error.next_step)
        except InstanceFailure as failure:
            await stream.fail(str(failure), _FAILURE_STATUS.get(Reason(failure.reason), 409))
        except RikError as error:
            await stream.fail(str(error), getattr(error, "http_status", 503))
        except Exception as fault:
            log.exception("serving %s failed", type(request).__name__)
            await stream.fail(f"a fault in RIK itself: {type(fault).__name__}: {fault}", 500)
        finally:
            self._open -= 1
            with trio.CancelScope(shield=True):  # closing does not wait
                await stream.aclose()

    async def _answer(self, request: StreamRequest, stream: Stream) -> None:
        match request:
            case ReadLogs():
                await self._logs(request, stream)
            case Exec():
                if (supervisor := await self._running(request.uid, stream)) is not None:
                    await supervisor.runtime.exec(request, stream)
            case Attach():
                if (supervisor := await self._running(request.uid, stream)) is not None:
                    await supervisor.runtime.attach(request, stream)
            case ReadStats():
                if (supervisor := await self._running(request.uid, stream)) is not None:
                    await send_whole(stream, await self._stats(supervisor))
            case Audit():
                await send_whole(stream, (await self._audit()).render())
            case Doctor():
                await send_whole(stream, {"checks": await self._examine()})
            case ListImages() | PullImage() | PruneImages():
                await self._of_images(request, stream)
        await stream.end()

    async def _running(self, uid: str, stream: Stream) -> Supervisor | None:
        supervisor = self._find(uid)
        if supervisor is None:
            await stream.fail("the instance is not on this node any more", 404)
        elif supervisor.status not in _LIVE:
            await stream.fail(f"the instance is not running: it is {supervisor.status}", 409)
        else:
            return supervisor
        return None

    async def _of_images(self, request: ListImages | PullImage | PruneImages, stream: Stream) -> None:
        if self._images is not None:
            await self._images.answer(request, stream, self._name_of)
        elif isinstance(request, PullImage):
            await stream.fail("this node keeps no images: what it runs is pretended", 409)
        else:
            await send_whole(stream, NO_IMAGES if isinstance(request, ListImages) else NOTHING_PRUNED)

    def _name_of(self, uid: str) -> str | None:
        supervisor = self._find(uid)
        return supervisor.name if supervisor is not None else None

    async def _logs(self, request: ReadLogs, stream: Stream) -> None:
        supervisor = self._find(request.uid)
        if supervisor is not None and request.follow:
            with trio.CancelScope() as gone:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(cancel_when_closed, stream, gone)
                    await supervisor.settled.wait()
                    nursery.cancel_scope.cancel()
            if gone.cancelled_caught:
                return
        for runtime in [supervisor.runtime] if supervisor is not None else self._runtimes:
            if await _send_lines(runtime, request, stream):
                return

    async def _stats(self, supervisor: Supervisor) -> dict[str, Any]:
        before = {entry.name: entry for entry in await supervisor.runtime.stats(supervisor.uid)}
        began = trio.current_time()
        await trio.sleep(CPU_SAMPLE_S)
        after = await supervisor.runtime.stats(supervisor.uid)
        passed_s = trio.current_time() - began
        containers = [_render_stats(before.get(entry.name), entry, passed_s) for entry in after]
        return {"uid": supervisor.uid, "at": render_time(self._environment.now()), "containers": containers}


async def _send_lines(runtime: Runtime, request: ReadLogs, stream: Stream) -> bool:
    """Whether that runtime had any. Ends early when the reader goes away, also while there is nothing to send."""
    sent = False
    with trio.CancelScope() as reading:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancel_when_closed, stream, reading)
            async with aclosing(runtime.logs(request)) as batches:
                async for batch in batches:
                    for frame in frames(batch):
                        await stream.send(frame)
                        sent = True
            nursery.cancel_scope.cancel()
    return sent or reading.cancelled_caught


def frames(lines: list[LogLine]) -> list[bytes]:
    """JSON lines in frames of at most MAX_FRAME_BYTES; a line that is longer by itself is cut."""
    found: list[bytes] = []
    frame = b""
    for line in lines:
        at = render_time(line.at) or ""
        record = {"at": at, "container": line.container, "stream": line.stream, "line": line.line}
        encoded = msgspec.json.encode(record) + b"\n"
        if frame and len(frame) + len(encoded) > MAX_FRAME_BYTES:
            found.append(frame)
            frame = b""
        frame += encoded
        while len(frame) > MAX_FRAME_BYTES:
            found.append(frame[:MAX_FRAME_BYTES])
            frame = frame[MAX_FRAME_BYTES:]
    return [*found, frame] if frame else found


def _render_stats(before: ContainerStats | None, after: ContainerStats, passed_s: float) -> dict[str, Any]:
    millis = None
    if before is not None and before.cpu_seconds is not None and after.cpu_seconds is not None and passed_s > 0:
        millis = max(0, round((after.cpu_seconds - before.cpu_seconds) / passed_s * 1000))
    return {**msgspec.structs.asdict(after), "cpu_millis": millis}

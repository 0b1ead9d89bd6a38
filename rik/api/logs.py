"""Logs: from a worker's stream to text or to a websocket, with the back-pressure of both."""

from __future__ import annotations

import msgspec
import trio

from rik.api.operations import Socket
from rik.api.service import Service
from rik.api.streams import (
    CLOSE_FAILED,
    CLOSE_GOING_AWAY,
    CLOSE_NORMAL,
    GOODBYE,
    cancel_when,
    check_container,
    close_reason,
    container_names,
)
from rik.errors import NodeUnavailable
from rik.link.base import Stream, StreamFailed
from rik.messages import ReadLogs
from rik.model.instance import Instance

NOTE = "rik"  # the stream of RIK's own notes in a log
# How long the answer to a request for logs waits for the worker's refusal before it begins; what comes later is told in
# the text itself.
REFUSAL_GRACE_S = 0.25


class LogLineJson(msgspec.Struct, frozen=True):
    """A line as workers send it."""

    at: str
    container: str
    stream: str
    line: str


_decoder = msgspec.json.Decoder(LogLineJson)


class LogQuery(msgspec.Struct, frozen=True):
    """`tail` None is everything; `since_ms` 0 is from the beginning."""

    container: str = ""
    tail: int | None = None
    since_ms: int = 0
    follow: bool = False
    timestamps: bool = False


class LogReader:
    """The lines of one instance as JSON, in order, from its worker. Whoever opened it closes it."""

    def __init__(self, record: Instance, stream: Stream | None) -> None:
        self.record = record
        self._stream = stream
        self._first: list[bytes] = []
        self._rest = b""
        self._ended = False

    @classmethod
    async def open(cls, service: Service, name_or_uid: str, query: LogQuery) -> LogReader:
        """Raises NotFound, NodeUnavailable, or StreamFailed when the worker refuses at once."""
        record = await service.find_instance(name_or_uid)
        check_container(record, query.container)
        if query.follow:
            record = await _placed(service, record)
        if not record.node_id:
            return cls(record, None)  # it never had a node, so nothing ever ran
        request = ReadLogs(
            record.uid,
            query.container,
            -1 if query.tail is None else query.tail,
            query.since_ms,
            query.follow and not record.status.final,
        )
        try:
            stream = await service.open_stream(record.node_id, record.node, request)
        except NodeUnavailable as error:
            kept = len(record.log_tail)
            hint = (
                f"the last {kept} lines are in `log_tail` of `rik get instance {record.name} -o json`" if kept else ""
            )
            raise NodeUnavailable(
                f"the logs of {record.name} are on node {record.node}, which is not connected",
                next_step=hint or error.next_step,
            ) from None
        reader = cls(record, stream)
        try:
            with trio.move_on_after(REFUSAL_GRACE_S):
                frame = await stream.receive()
                reader._ended = frame is None
                reader._first = [] if frame is None else [frame]
        except StreamFailed:
            await reader.aclose()
            raise
        return reader

    async def aclose(self) -> None:
        if self._stream is not None:
            with trio.CancelScope(shield=True):
                await self._stream.aclose()

    async def batch(self) -> list[bytes] | None:
        """The next lines of JSON, None at the end. Raises StreamFailed."""
        if self._stream is None or self._ended:
            return None
        frame = self._first.pop() if self._first else await self._stream.receive()
        if frame is None:
            self._ended = True
            return [self._rest] if self._rest else None
        *lines, self._rest = (self._rest + frame).split(b"\n")  # a line may be cut between two frames
        return [line for line in lines if line]


class LogText:
    """The lines as chunks of text: prefixed by `[container]` when there are several and none was chosen, and by the
    time if so asked. Ends when the server shuts down."""

    def __init__(self, reader: LogReader, query: LogQuery, closing: trio.Event) -> None:
        self._reader = reader
        self._closing = closing
        self._timestamps = query.timestamps
        self._named = not query.container and len(container_names(reader.record)) > 1
        self._ended = False

    async def chunk(self) -> bytes | None:
        """None at the end. An end before its time is told in the text: the answer's status has long been sent."""
        while not self._ended:
            try:
                batch = await self._next()
            except StreamFailed as failure:
                self._ended = True
                return f"[rik] the log ends here early: {failure.message}\n".encode()
            if batch is None:
                self._ended = True
            elif batch:
                return b"".join(map(self._line, batch))
        return None

    async def aclose(self) -> None:
        await self._reader.aclose()

    async def _next(self) -> list[bytes] | None:
        batch: list[bytes] | None = None
        failed: StreamFailed | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancel_when, self._closing, nursery.cancel_scope)
            try:
                batch = await self._reader.batch()
            except StreamFailed as failure:  # not through the nursery, which would wrap it
                failed = failure
            nursery.cancel_scope.cancel()
        if failed is not None:
            raise failed
        return batch

    def _line(self, line: bytes) -> bytes:
        entry = _decoder.decode(line)
        prefix = f"[{entry.container}] " if self._named else ""
        if self._timestamps:
            prefix += f"{entry.at} "
        if entry.stream == NOTE:
            prefix += "[rik] "
        return f"{prefix}{entry.line}\n".encode(errors="replace")


async def stream_logs(service: Service, reader: LogReader, socket: Socket) -> None:
    """The same over a websocket: a text frame of JSON a line."""
    code, reason = CLOSE_NORMAL, ""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_discard, socket)
        nursery.start_soon(cancel_when, service.closing, nursery.cancel_scope)
        try:
            while (batch := await reader.batch()) is not None:
                for line in batch:
                    await socket.send(line.decode(errors="replace"))
        except StreamFailed as failure:
            code, reason = CLOSE_FAILED, failure.message
        nursery.cancel_scope.cancel()
    if service.closing.is_set():
        code, reason = CLOSE_GOING_AWAY, GOODBYE
    await socket.close(code, close_reason(reason))


async def _placed(service: Service, record: Instance) -> Instance:
    """Waits until it has a node, or has ended, or the server shuts down."""
    view = service.view
    while not record.node_id and not record.status.final and not service.closing.is_set():
        changed = view.changed()
        current = view.instances.get(record.uid)
        if current is None:
            return await service.find_instance(record.uid)
        record = current
        if not record.node_id and not record.status.final:
            await changed.wait()
    return record


async def _discard(socket: Socket) -> None:
    """Reads what the client has no reason to send, so that its leaving is noticed."""
    while True:
        await socket.receive()

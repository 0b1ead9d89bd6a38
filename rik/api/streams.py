"""Logs, exec and attach: bytes between a client and a worker's stream, with the back-pressure of both."""

from __future__ import annotations

import msgspec
import trio

from rik.api.operations import Socket
from rik.api.service import NotRunning, Service
from rik.errors import BadRequest, NodeUnavailable, NotFound
from rik.link.base import MAX_FRAME_BYTES, LinkClosed, Stream, StreamFailed
from rik.messages import Attach, Exec, ReadLogs
from rik.model.instance import Instance, Status
from rik.model.workload import POD

NOTE = "rik"  # the stream of RIK's own notes in a log
STDIN, STDOUT, STDERR, CONTROL = 0, 1, 2, 3
CONTROL_BYTE = bytes([CONTROL])
MAX_CONTROL_BYTES = 4_096

# How long the answer to a request for logs waits for the worker's refusal before it begins; what comes later is told in
# the text itself.
REFUSAL_GRACE_S = 0.25

CLOSE_NORMAL = 1000
CLOSE_GOING_AWAY = 1001
CLOSE_POLICY = 1008
CLOSE_FAILED = 1011

GOODBYE = "the server is shutting down"


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
        _check_container(record, query.container)
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
        self._named = not query.container and len(_container_names(reader.record)) > 1
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
            nursery.start_soon(_cancel_when, self._closing, nursery.cancel_scope)
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
        nursery.start_soon(_cancel_when, service.closing, nursery.cancel_scope)
        try:
            while (batch := await reader.batch()) is not None:
                for line in batch:
                    await socket.send(line.decode(errors="replace"))
        except StreamFailed as failure:
            code, reason = CLOSE_FAILED, failure.message
        nursery.cancel_scope.cancel()
    if service.closing.is_set():
        code, reason = CLOSE_GOING_AWAY, GOODBYE
    await socket.close(code, _close_reason(reason))


async def open_exec(service: Service, name_or_uid: str, request: Exec | Attach) -> Stream:
    """`request` with its uid left empty. Raises NotFound, StreamFailed (409) when it does not run, NodeUnavailable."""
    record = await service.find_instance(name_or_uid)
    _check_container(record, request.container)
    if record.status is not Status.RUNNING:
        raise NotRunning(record)
    names = _container_names(record)
    container = request.container or (names[0] if names else "")
    request = msgspec.structs.replace(request, uid=record.uid, container=container)
    return await service.open_stream(record.node_id, record.node, request)


async def bridge(service: Service, stream: Stream, socket: Socket) -> None:
    """Frames both ways until the command has exited, either side leaves, or the server shuts down."""
    session = _Bridge(stream, socket)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_cancel_when, service.closing, nursery.cancel_scope)
        nursery.start_soon(session.upward, nursery.cancel_scope)
        await session.downward()
        nursery.cancel_scope.cancel()
    if session.error:
        await socket.send(CONTROL_BYTE + msgspec.json.encode({"error": session.error}))
        await socket.close(session.code, _close_reason(session.error))
    elif service.closing.is_set():
        await socket.send(CONTROL_BYTE + msgspec.json.encode({"error": GOODBYE}))
        await socket.close(CLOSE_GOING_AWAY, GOODBYE)
    else:
        await socket.close(CLOSE_NORMAL)


class _Bridge:
    """`error` says why it ended, "" when it ended well; `code` is how the websocket is closed then."""

    def __init__(self, stream: Stream, socket: Socket) -> None:
        self.error = ""
        self.code = CLOSE_FAILED
        self._stream = stream
        self._socket = socket
        self._ended = False

    async def downward(self) -> None:
        try:
            while (frame := await self._stream.receive()) is not None:
                self._ended = self._ended or frame[:1] == CONTROL_BYTE
                await self._socket.send(frame)
        except StreamFailed as failure:
            self.error = failure.message
        except LinkClosed:
            self.error = "the node disconnected"
        else:
            if not self._ended:
                self.error = "the connection with the command was lost"

    async def upward(self, scope: trio.CancelScope) -> None:
        while True:
            data = await self._socket.receive()
            problem = _wrong_frame(data)
            if problem:
                self.error, self.code = problem, CLOSE_POLICY
                scope.cancel()
                return
            assert isinstance(data, bytes)
            try:
                for piece in _pieces(data):
                    await self._stream.send(piece)
            except LinkClosed:
                await trio.sleep_forever()  # the downward side knows why and ends this


def _wrong_frame(data: str | bytes | None) -> str:
    """A sentence about what a client must not send, or ""."""
    if not isinstance(data, bytes):
        return "frames must be binary: a first byte of 0 for input or 3 for control, then the data"
    if not data or data[0] not in (STDIN, CONTROL):
        return f"the first byte of a frame must be 0 (input) or 3 (control), not {data[0] if data else 'absent'}"
    if data[0] == CONTROL:
        if len(data) > MAX_CONTROL_BYTES:
            return f"a control frame must not be larger than {MAX_CONTROL_BYTES} bytes"
        try:
            control = msgspec.json.decode(data[1:], type=dict[str, msgspec.Raw])
            if "resize" in control:
                columns, rows = msgspec.json.decode(control["resize"], type=tuple[int, int])
                if not (0 < columns < 65_536 and 0 < rows < 65_536):
                    return "`resize` must be two numbers between 1 and 65535"
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            return 'a control frame must be a JSON object such as {"resize": [80, 24]}'
    return ""


def _pieces(frame: bytes) -> list[bytes]:
    """Input too large for one frame of a stream, in several."""
    if len(frame) <= MAX_FRAME_BYTES:
        return [frame]
    step = MAX_FRAME_BYTES - 1
    return [frame[:1] + frame[start : start + step] for start in range(1, len(frame), step)]


def _container_names(record: Instance) -> list[str]:
    if record.containers:
        return [container.name for container in record.containers]
    if record.kind != POD:
        return []
    return [str(container["name"]) for container in record.spec.get("containers") or ()]


def _check_container(record: Instance, container: str) -> None:
    names = _container_names(record)
    if container and names and container not in names:
        raise NotFound(f"instance {record.name} has no container {container!r}; it has {', '.join(names)}")


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


async def _cancel_when(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


async def _discard(socket: Socket) -> None:
    """Reads what the client has no reason to send, so that its leaving is noticed."""
    while True:
        await socket.receive()


def _close_reason(text: str) -> str:
    """A close frame holds at most 123 bytes of reason."""
    return text.encode()[:120].decode(errors="ignore")


def exec_request(command: tuple[str, ...], container: str, tty: bool, columns: int | None, rows: int | None) -> Exec:
    """Raises BadRequest for a command that no system can execute."""
    if not command or not command[0]:
        raise BadRequest("the query parameter `command` must name a program")
    if any("\0" in word for word in command):
        raise BadRequest("the query parameter `command` must not hold NUL characters")
    return Exec("", command, container, tty, columns or Exec("", ()).columns, rows or Exec("", ()).rows)

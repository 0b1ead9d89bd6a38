"""Exec and attach: frames between a client and a worker's stream, with the back-pressure of both."""

from __future__ import annotations

import msgspec
import trio

from rik.api.operations import Socket
from rik.api.service import NotRunning, Service
from rik.api.streams import (
    CLOSE_FAILED,
    CLOSE_GOING_AWAY,
    CLOSE_NORMAL,
    CLOSE_POLICY,
    GOODBYE,
    cancel_when,
    check_container,
    close_reason,
    container_names,
)
from rik.errors import BadRequest
from rik.link.base import MAX_FRAME_BYTES, LinkClosed, Stream, StreamFailed
from rik.messages import Attach, Exec
from rik.model.instance import Status

STDIN, CONTROL = 0, 3  # the first byte of what clients send
CONTROL_BYTE = bytes([CONTROL])
MAX_CONTROL_BYTES = 4_096


def exec_request(command: tuple[str, ...], container: str, tty: bool, columns: int | None, rows: int | None) -> Exec:
    """Raises BadRequest for a command that no system can execute."""
    if not command or not command[0]:
        raise BadRequest("the query parameter `command` must name a program")
    if any("\0" in word for word in command):
        raise BadRequest("the query parameter `command` must not hold NUL characters")
    return Exec("", command, container, tty, columns or Exec("", ()).columns, rows or Exec("", ()).rows)


async def open_exec(service: Service, name_or_uid: str, request: Exec | Attach) -> Stream:
    """`request` with its uid left empty. Raises NotFound, StreamFailed (409) when it does not run, NodeUnavailable."""
    record = await service.find_instance(name_or_uid)
    check_container(record, request.container)
    if record.status is not Status.RUNNING:
        raise NotRunning(record)
    names = container_names(record)
    container = request.container or (names[0] if names else "")
    request = msgspec.structs.replace(request, uid=record.uid, container=container)
    return await service.open_stream(record.node_id, record.node, request)


async def bridge(service: Service, stream: Stream, socket: Socket) -> None:
    """Frames both ways until the command has exited, either side leaves, or the server shuts down."""
    session = _Bridge(stream, socket)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cancel_when, service.closing, nursery.cancel_scope)
        nursery.start_soon(session.upward, nursery.cancel_scope)
        await session.downward()
        nursery.cancel_scope.cancel()
    if session.error:
        await socket.send(CONTROL_BYTE + msgspec.json.encode({"error": session.error}))
        await socket.close(session.code, close_reason(session.error))
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

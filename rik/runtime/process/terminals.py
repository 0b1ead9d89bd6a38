"""Exec and attach: between the frames of a stream and what the supervisor hands out.

Frames as in the contract: first byte 0 stdin (nothing after it: end of input), 1 stdout, 2 stderr, 3 JSON control.
"""

from __future__ import annotations

import fcntl
import json
import struct
import termios
from typing import Any

import trio

from rik.errors import InstanceFailure
from rik.link.base import LinkClosed, Stream
from rik.messages import Exec
from rik.model.instance import Reason
from rik.runtime.process.channel import Channel, Gone, Refusal
from rik.runtime.process.supervision import ANSWER_S

STDIN, STDOUT, STDERR, CONTROL = b"\0", b"\1", b"\2", b"\3"
FRAME_BYTES = 32_768
# After the command has exited its pipes may be held open by what it left behind: its rest is not waited for longer.
DRAIN_S = 0.5
_SIGNAL_BASE = 128


def exit_frame(exited: dict[str, Any]) -> bytes:
    """The frame that tells an exit: a signal as shells tell it."""
    code = exited["exit_code"] if exited["signal"] is None else _SIGNAL_BASE + int(exited["signal"])
    return CONTROL + json.dumps({"exit": code}).encode()


def refused(error: Refusal) -> InstanceFailure:
    """A refusal in the words of the runtime contract."""
    return InstanceFailure(Reason.CREATE_FAILED, str(error))


def exec_request(request: Exec) -> dict[str, Any]:
    """What the supervisor is asked."""
    return {
        "argv": list(request.command),
        "container": request.container,
        "tty": request.tty,
        "columns": request.columns,
        "rows": request.rows,
    }


async def serve_exec(channel: Channel, request: Exec, stream: Stream) -> None:
    """Raises InstanceFailure when the command could not be executed; returns when it has exited (and that was told) or
    the stream was closed. The supervisor kills what still runs when the channel is closed."""
    message, fds = await _first_answer(channel)
    if "failed" in message:
        raise InstanceFailure(message["failed"]["reason"], message["failed"]["message"])
    files = [trio.lowlevel.FdStream(fd) for fd in fds]
    try:
        if request.tty:
            await _serve(channel, stream, files[0], {STDOUT: files[0]}, tty=True)
        else:
            await _serve(channel, stream, files[0], {STDOUT: files[1], STDERR: files[2]}, tty=False)
    finally:
        for file in files:
            file.close()


async def _first_answer(channel: Channel) -> tuple[dict[str, Any], list[int]]:
    try:
        with trio.fail_after(ANSWER_S):
            return await channel.message()
    except Refusal as error:
        raise refused(error) from None
    except trio.TooSlowError:
        text = f"the supervisor of the pod does not answer within {ANSWER_S:g} s"
        raise InstanceFailure(Reason.SUPERVISOR_LOST, text) from None


async def _serve(
    channel: Channel,
    stream: Stream,
    stdin: trio.lowlevel.FdStream,
    outputs: dict[bytes, trio.lowlevel.FdStream],
    *,
    tty: bool,
) -> None:
    open_outputs = len(outputs)
    drained = trio.Event()

    async def forward(mark: bytes, file: trio.lowlevel.FdStream) -> None:
        nonlocal open_outputs
        while data := await _read(file):
            await stream.send(mark + data)
        open_outputs -= 1
        if not open_outputs:
            drained.set()

    async def take_input(scope: trio.CancelScope) -> None:
        async for frame in _frames(stream):
            if frame[:1] == CONTROL:
                _resize(stdin, frame[1:])
            elif frame[:1] == STDIN:
                await _write(stdin, frame[1:], tty=tty)
        scope.cancel()

    try:
        async with trio.open_nursery() as nursery:
            for mark, file in outputs.items():
                nursery.start_soon(forward, mark, file)
            nursery.start_soon(take_input, nursery.cancel_scope)
            message, _ = await channel.message()
            with trio.move_on_after(DRAIN_S):
                await drained.wait()
            await stream.send(exit_frame(message["exited"]))
            nursery.cancel_scope.cancel()
    except* LinkClosed:
        pass  # whoever asked is gone
    except* Gone:
        await stream.fail("the pod ended, and the command with it")


async def serve_attach(channel: Channel, stream: Stream) -> None:
    """Returns when the container has ended (which was told) or the stream was closed."""
    await _first_answer(channel)

    async def take_input(scope: trio.CancelScope) -> None:
        async for frame in _frames(stream):
            if frame[:1] in (STDIN, CONTROL):
                await channel.send(frame)
        scope.cancel()

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(take_input, nursery.cancel_scope)
            while True:
                packet, _ = await channel.packet()
                if packet[:1] in (STDOUT, STDERR):
                    for start in range(1, len(packet), FRAME_BYTES):
                        await stream.send(packet[:1] + packet[start : start + FRAME_BYTES])
                    continue
                message = json.loads(packet)
                if "exited" in message:
                    await stream.send(exit_frame(message["exited"]))
                else:
                    await stream.send(CONTROL + json.dumps({"error": message.get("error", "")}).encode())
                break
            nursery.cancel_scope.cancel()
    except* LinkClosed:
        pass  # whoever asked is gone
    except* Gone:
        await stream.fail("the supervisor of the pod is gone")


async def _frames(stream: Stream) -> Any:
    while (frame := await stream.receive()) is not None:
        yield frame


async def _read(file: trio.lowlevel.FdStream) -> bytes:
    try:
        return bytes(await file.receive_some(FRAME_BYTES))
    except (trio.BrokenResourceError, trio.ClosedResourceError):  # a terminal that nobody has open any more
        return b""


async def _write(file: trio.lowlevel.FdStream, data: bytes, *, tty: bool) -> None:
    if not data:
        if not tty:
            file.close()
            return
        data = b"\x04"  # what a terminal calls the end of input
    try:
        await file.send_all(data)
    except (trio.BrokenResourceError, trio.ClosedResourceError):  # it does not read any more
        return


def _resize(file: trio.lowlevel.FdStream, text: bytes) -> None:
    try:
        columns, rows = (max(0, min(int(number), 65_535)) for number in json.loads(text)["resize"])
        fcntl.ioctl(file.fileno(), termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    except (ValueError, KeyError, TypeError, OSError):  # no terminal, or no size
        return

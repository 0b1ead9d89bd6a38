"""What the fake runtime's containers can be asked to do: a handful of commands, and an echo on every port."""

from __future__ import annotations

import math
import shlex

import trio

from rik.errors import InstanceFailure
from rik.link.base import Stream
from rik.model.instance import Reason

NOT_FOUND = 127


async def run_command(command: list[str], stream: Stream, *, tty: bool) -> int:
    """Runs one of the commands listed in `rik.runtime.fake` and returns its exit code. Raises InstanceFailure for any
    other.
    """
    program, *arguments = command
    match program.rpartition("/")[2]:
        case "true":
            return 0
        case "false":
            return 1
        case "exit":
            return int(arguments[0]) if arguments else 0
        case "echo":
            await stream.send(b"\x01" + (" ".join(arguments) + ("\r\n" if tty else "\n")).encode())
            return 0
        case "tty":
            await stream.send(b"\x01/dev/pts/0\r\n" if tty else b"\x01not a tty\n")
            return 0 if tty else 1
        case "sleep":
            return await _until_closed(stream, float(arguments[0]))
        case "cat":
            return await _cat(stream)
        case "sh" if len(arguments) > 1 and arguments[0] == "-c":
            return await _script(arguments[1], stream, tty=tty)
    raise InstanceFailure(Reason.COMMAND_NOT_FOUND, f'command "{program}" is not among those that fake containers know')


async def _script(text: str, stream: Stream, *, tty: bool) -> int:
    code = 0
    for part in text.split(";"):
        words = shlex.split(part)
        if not words:
            continue
        to_stderr = words[-1] == ">&2"
        if words[0] == "echo" and to_stderr:
            await stream.send(b"\x02" + (" ".join(words[1:-1]) + "\n").encode())
            continue
        code = await run_command([word for word in words if word != "exec"], stream, tty=tty)
        if words[0] == "exit":
            return code
    return code


async def _until_closed(stream: Stream, seconds: float) -> int:
    """Sleeps; input is read and dropped, so that a closed stream is noticed."""
    with trio.move_on_after(seconds if seconds < math.inf else math.inf):
        while await stream.receive() is not None:
            pass
        await trio.sleep_forever()
    return 0


async def _cat(stream: Stream) -> int:
    while (frame := await stream.receive()) is not None:
        if frame == b"\x00":
            break
        if frame[:1] == b"\x00":
            await stream.send(b"\x01" + frame[1:])
    return 0


class _Pipe(trio.abc.HalfCloseableStream):
    """One end of a connection in memory."""

    def __init__(self, outgoing: trio.MemorySendChannel[bytes], incoming: trio.MemoryReceiveChannel[bytes]) -> None:
        self._outgoing = outgoing
        self._incoming = incoming
        self._rest = b""

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._outgoing.send(bytes(data))

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def send_eof(self) -> None:
        await self._outgoing.aclose()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if not self._rest:
            try:
                self._rest = await self._incoming.receive()
            except trio.EndOfChannel:
                return b""
        size = max_bytes or len(self._rest)
        data, self._rest = self._rest[:size], self._rest[size:]
        return data

    async def aclose(self) -> None:
        self._outgoing.close()
        self._incoming.close()
        await trio.lowlevel.checkpoint()


def echo_connection(nursery: trio.Nursery) -> trio.abc.HalfCloseableStream:
    """A connection whose other end, served in `nursery`, sends back what it gets and then its end."""
    send_in, receive_in = trio.open_memory_channel[bytes](1)
    send_out, receive_out = trio.open_memory_channel[bytes](1)
    nursery.start_soon(_echo, receive_in, send_out)
    return _Pipe(send_in, receive_out)


async def _echo(incoming: trio.MemoryReceiveChannel[bytes], outgoing: trio.MemorySendChannel[bytes]) -> None:
    async with incoming, outgoing:
        async for data in incoming:
            try:
                await outgoing.send(data)
            except trio.BrokenResourceError:
                return

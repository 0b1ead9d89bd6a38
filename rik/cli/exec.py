"""`rik exec` and `rik attach`: a program in an instance, with this terminal as its own."""

from __future__ import annotations

import json
import os
import signal
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from rik.cli.client import Client, Query
from rik.cli.command import ClientCommand, connect, instance_argument
from rik.cli.errors import CommandError, Usage
from rik.cli.output import note
from rik.cli.spelling import spelled

if TYPE_CHECKING:
    from trio_websocket import WebSocketConnection

STDIN, STDOUT, STDERR, CONTROL = 0, 1, 2, 3  # the first byte of a frame
CHUNK_BYTES = 32 * 1024
DETACH_KEYS = b"\x10\x11"  # Ctrl-P Ctrl-Q, as in other container tools


@click.command("exec", cls=ClientCommand, context_settings={"allow_interspersed_args": False})
@click.option("-i", "--stdin", "with_input", is_flag=True, help="Pass standard input on.")
@click.option("-t", "--tty", is_flag=True, help="Give the command a terminal.")
@click.option("-c", "--container", help="The container to run it in [default: the first].")
@instance_argument
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[-c CONTAINER] -- COMMAND…")
def exec_(instance: str, command: tuple[str, ...], with_input: bool, tty: bool, container: str | None) -> int:
    """Run a command in a running instance; the exit code is the command's own.

    A shell: rik exec -it INSTANCE -- sh
    """
    flags, words = split_command(command)
    with_input, tty = with_input or flags["stdin"], tty or flags["tty"]
    container = flags["container"] or container
    if not words:
        raise Usage("no command was given", next_step=spelled(f"exec {instance} -- COMMAND…"))
    size = terminal_size() if tty and sys.stdout.isatty() else None
    query: Query = {
        "command": list(words),
        "tty": "true" if tty else None,
        "container": container,
        "cols": size.columns if size else None,
        "rows": size.lines if size else None,
    }
    return _run(connect(), "instances.exec", instance, query, with_input=with_input, tty=tty, detachable=False)


@click.command(cls=ClientCommand)
@instance_argument
@click.option("-c", "--container", help="The container to attach to [default: the first].")
@click.option("--no-stdin", is_flag=True, help="Only show what it writes.")
def attach(instance: str, container: str | None, no_stdin: bool) -> int:
    """Connect to the input and output of a running instance. Ctrl-P Ctrl-Q detaches and leaves it running."""
    client = connect()
    record = client.get("instances.get", instance).json()
    specs = ((record.get("spec") or {}).get("containers")) or ()
    spec: dict[str, Any] = next((item for item in specs if container in (None, item.get("name"))), {})
    tty = bool(spec.get("tty"))
    return _run(
        client,
        "instances.attach",
        instance,
        {"container": container},
        with_input=not no_stdin,
        tty=tty,
        detachable=True,
    )


def split_command(arguments: tuple[str, ...]) -> tuple[dict[str, Any], list[str]]:
    """Options that stand between INSTANCE and `--`, and the command after it.

    The contract allows `rik exec INSTANCE -c C -- COMMAND…`. Without `--` everything is the command.
    """
    found: dict[str, Any] = {"stdin": False, "tty": False, "container": None}
    if "--" not in arguments:
        if arguments and arguments[0].startswith("-"):
            raise Usage(
                f"`{arguments[0]}` stands where the command is expected", next_step="put `--` before the command"
            )
        return found, list(arguments)
    border = arguments.index("--")
    options, command = list(arguments[:border]), list(arguments[border + 1 :])
    while options:
        option = options.pop(0)
        name, equals, value = option.partition("=")
        if name in ("-c", "--container"):
            if not equals and not options:
                raise Usage(f"`{name}` needs a container's name")
            found["container"] = value if equals else options.pop(0)
        elif option in ("-i", "--stdin", "-t", "--tty", "-it", "-ti"):
            found["stdin"] = found["stdin"] or option in ("-i", "--stdin", "-it", "-ti")
            found["tty"] = found["tty"] or option in ("-t", "--tty", "-it", "-ti")
        else:
            # no option of ours: the command has a `--` of its own
            return {"stdin": False, "tty": False, "container": None}, list(arguments)
    return found, command


def _run(
    client: Client, call: str, instance: str, query: Query, *, with_input: bool, tty: bool, detachable: bool
) -> int:
    from rik.cli.stream import run_live

    raw = tty and with_input and sys.stdin.isatty()
    with raw_terminal() if raw else _as_it_is():
        session = Session(with_input=with_input, tty=tty, detach_keys=DETACH_KEYS if detachable and raw else b"")
        code = run_live(session.run, client, call, instance, query)
    if session.detached:
        note(f"detached; {instance} goes on running")
    return code


@contextmanager
def raw_terminal() -> Iterator[None]:
    """Every key goes to the other side, Ctrl-C included; the terminal is put back whatever happens."""
    import termios
    import tty

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setraw(descriptor, termios.TCSANOW)  # what was typed ahead is kept
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


@contextmanager
def _as_it_is() -> Iterator[None]:
    yield


class Session:
    """One exec or attach over a websocket of binary frames."""

    def __init__(self, *, with_input: bool, tty: bool, detach_keys: bytes = b"") -> None:
        self._with_input = with_input
        self._tty = tty
        self._detach_keys = detach_keys
        self.detached = False

    async def run(self, client: Client, call: str, instance: str, query: Query) -> int:
        """The exit code. Raises CommandError when the other side could not do it or the connection broke."""
        import trio

        from rik.cli.stream import websocket

        code: int | None = None
        async with (
            websocket(client.cluster, call, instance, query=query) as connection,
            trio.open_nursery() as nursery,
        ):
            if self._tty and sys.stdout.isatty():
                await nursery.start(self._pass_size, connection)
            nursery.start_soon(self._pass_input, connection, nursery.cancel_scope)
            code = await self._pass_output(connection)
            nursery.cancel_scope.cancel()
        if code is None and not self.detached:
            raise CommandError(
                "the connection ended before the exit code came",
                next_step=f"{spelled(f'describe instance {instance}')} says whether it still runs",
            )
        return code or 0

    async def _pass_output(self, connection: WebSocketConnection) -> int | None:
        import trio
        from trio_websocket import ConnectionClosed

        while True:
            try:
                message = await connection.get_message()
            except ConnectionClosed:
                return None
            data = message.encode() if isinstance(message, str) else message
            if not data:
                continue
            kind, body = data[0], data[1:]
            if kind in (STDOUT, STDERR):
                await trio.to_thread.run_sync(write_all, kind, body, abandon_on_cancel=True)
            elif kind == CONTROL:
                control = json.loads(body)
                if "error" in control:
                    raise CommandError(str(control["error"]), next_step=str(control.get("next") or ""))
                if "exit" in control:
                    return int(control["exit"])

    async def _pass_input(self, connection: WebSocketConnection, scope: Any) -> None:
        from trio_websocket import ConnectionClosed

        held = b""
        try:
            while self._with_input:
                data = await read_input()
                if not data:
                    break
                data, held, detach = watch_for(self._detach_keys, held + data)
                if data:
                    await connection.send_message(bytes([STDIN]) + data)
                if detach:
                    self.detached = True
                    scope.cancel()
                    return
            await connection.send_message(bytes([STDIN]))
        except ConnectionClosed:
            pass  # the reader of output tells the end

    async def _pass_size(self, connection: WebSocketConnection, task_status: Any) -> None:
        import trio
        from trio_websocket import ConnectionClosed

        with trio.open_signal_receiver(signal.SIGWINCH) as changes:
            try:
                await connection.send_message(resize_frame())
                task_status.started()
                async for _ in changes:
                    await connection.send_message(resize_frame())
            except ConnectionClosed:
                pass  # the reader of output tells the end


def resize_frame() -> bytes:
    """Tells the other side how large this terminal is."""
    size = terminal_size()
    return bytes([CONTROL]) + json.dumps({"resize": [size.columns, size.lines]}).encode()


def terminal_size() -> os.terminal_size:
    """This terminal's size; a serial line's, which says 0 by 0, as terminals once were."""
    size = os.get_terminal_size(sys.stdout.fileno())
    return size if size.columns and size.lines else os.terminal_size((80, 24))


def watch_for(keys: bytes, data: bytes) -> tuple[bytes, bytes, bool]:
    """What to send of `data`, what to hold back since `keys` may have begun with it, and whether they came in full."""
    if not keys:
        return data, b"", False
    found = data.find(keys)
    if found >= 0:
        return data[:found], b"", True
    for length in range(min(len(keys) - 1, len(data)), 0, -1):
        if data.endswith(keys[:length]):
            return data[:-length], data[-length:], False
    return data, b"", False


async def read_input() -> bytes:
    """The next bytes of standard input, b"" at its end. It stays blocking: other programs share it."""
    import trio

    descriptor = sys.stdin.fileno()
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode) and not (stat.S_ISCHR(mode) and not os.isatty(descriptor)):
        await trio.lowlevel.wait_readable(descriptor)
    else:  # a file, or /dev/null: always readable, and epoll does not take it
        await trio.lowlevel.checkpoint()
    return os.read(descriptor, CHUNK_BYTES)


def write_all(kind: int, body: bytes) -> None:
    out = sys.stdout.buffer if kind == STDOUT else sys.stderr.buffer
    out.write(body)
    out.flush()

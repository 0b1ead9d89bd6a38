"""`rik logs`, and the following of output that `rik run` shares."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import IO, TYPE_CHECKING, Any

import click

from rik.cli.amounts import since_time
from rik.cli.client import Client
from rik.cli.command import ClientCommand, connect, instance_argument
from rik.cli.errors import CommandError, RequestRefused, Unreachable
from rik.cli.output import clean, note, paint

if TYPE_CHECKING:
    from collections.abc import Awaitable

Entry = Mapping[str, Any]
REFUSALS_MAX = 3  # in a row, without a line between them: the node has the instance and cannot read its logs
PREFIX_COLOURS = ("cyan", "magenta", "green", "yellow", "blue")


@click.command(cls=ClientCommand)
@instance_argument
@click.option("-c", "--container", help="Only this container's output.")
@click.option("-f", "--follow", is_flag=True, help="Go on until the instance has ended.")
@click.option("--tail", type=click.IntRange(0), metavar="N", help="Only the last N lines.")
@click.option("--since", metavar="5m|TIME", help="Only what is newer: a duration back from now, or an RFC 3339 time.")
@click.option("--timestamps", is_flag=True, help="Put each line's time before it.")
def logs(
    instance: str, container: str | None, follow: bool, tail: int | None, since: str | None, timestamps: bool
) -> None:
    """Show what an instance wrote. It stays readable after the instance was deleted."""
    start = None
    if since is not None:
        try:
            start = since_time(since)
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--since") from None
    client = connect()
    query = {"container": container, "tail": tail, "since": start}
    if not follow:
        for chunk in client.stream(
            "instances.logs", instance, query={**query, "timestamps": "true" if timestamps else None}
        ):
            sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()
        return
    from rik.cli.stream import run_live

    record = client.get("instances.get", instance).json()
    client.close()
    containers = [entry["name"] for entry in record.get("containers") or ()]
    write = LogPrinter(() if container else containers, timestamps=timestamps)
    run_live(_follow, client, str(record.get("uid") or instance), query, write)


async def _follow(client: Client, instance: str, query: dict[str, Any], write: LogPrinter) -> None:
    await follow_logs(client, instance, query, partial(in_thread, write))


async def in_thread(write: Callable[[Entry], None], entry: Entry) -> None:
    """Writes without holding up the loop: whoever reads our output may take their time, the server's pings may not."""
    import trio

    await trio.to_thread.run_sync(write, entry, abandon_on_cancel=True)


async def follow_logs(
    client: Client, instance: str, query: Mapping[str, Any], write: Callable[[Entry], Awaitable[None]]
) -> None:
    """Hands every entry of the instance's logs to `write` until its output has ended, across reconnects.

    Raises Unreachable when the server stays away for longer than `PATIENCE_S`.
    """
    import trio
    from trio_websocket import ConnectionClosed

    from rik.cli.follow import PATIENCE_S
    from rik.cli.stream import FAILED_CLOSURE, NORMAL_CLOSURE, RETRY_FIRST_S, RETRY_MOST_S, websocket

    cursor = LogCursor()
    asked: dict[str, Any] = {**query, "follow": "true"}
    connected_once, lost_at, wait_s, refusals = False, -1.0, RETRY_FIRST_S, 0
    while True:
        try:
            async with websocket(client.cluster, "instances.logs", instance, query=asked) as connection:
                connected_once, lost_at = True, -1.0
                while True:
                    for entry in decode_entries(await connection.get_message()):
                        wait_s, refusals = RETRY_FIRST_S, 0
                        if cursor.is_new(entry):
                            await write(entry)
        except ConnectionClosed as error:
            code, why = (error.reason.code, error.reason.reason) if error.reason is not None else (0, "")
            if code == NORMAL_CLOSURE:
                return
            refusals += code == FAILED_CLOSURE
            if refusals >= REFUSALS_MAX:
                raise CommandError(
                    f"the output of {instance} cannot be read: {why or 'no reason was given'}"
                ) from error
        except Unreachable:
            if not connected_once:
                raise
            if lost_at >= 0 and trio.current_time() - lost_at > PATIENCE_S:
                raise
        except RequestRefused as error:
            if error.status < 500 or not connected_once:
                raise  # 503: the server is there again, and the node not yet
        if lost_at < 0:
            lost_at = trio.current_time()
            note("the stream of output was cut off; trying again")
        cursor.reconnected()
        if cursor.since is not None:
            asked = {**asked, "since": cursor.since, "tail": None}
        await trio.sleep(wait_s)
        wait_s = min(2 * wait_s, RETRY_MOST_S)


def decode_entries(message: str | bytes) -> list[Entry]:
    """The entries of one message: a JSON object per line."""
    text = message.decode("utf-8", "replace") if isinstance(message, bytes) else message
    return [json.loads(line) for line in text.split("\n") if line]


class LogCursor:
    """Where in the logs we are, so that after a reconnect nothing is lost and nothing shown twice.

    Times are not unique: how many entries of a container carry its latest time is counted, and as many are skipped when
    the stream starts again from that time.
    """

    def __init__(self) -> None:
        self._latest: dict[str, str] = {}
        self._at_latest: dict[str, int] = {}
        self._until: dict[str, str] = {}
        self._to_skip: dict[str, int] = {}

    @property
    def since(self) -> str | None:
        """The time to ask for again: the earliest of the containers' latest ones."""
        return min(self._latest.values(), default=None)

    def reconnected(self) -> None:
        self._until = dict(self._latest)
        self._to_skip = dict(self._at_latest)

    def is_new(self, entry: Entry) -> bool:
        """Takes note of the entry; False when it was seen before the reconnect."""
        container, at = str(entry.get("container")), str(entry.get("at"))
        until = self._until.get(container)
        if until is not None:
            if at < until:
                return False
            if at == until and self._to_skip.get(container, 0) > 0:
                self._to_skip[container] -= 1
                return False
        if at == self._latest.get(container):
            self._at_latest[container] += 1
        else:
            self._latest[container], self._at_latest[container] = at, 1
        return True


class LogPrinter:
    """Writes entries as lines: standard output's to ours, standard error's to ours, RIK's own notes to the latter.

    `sources` are the containers that lines are prefixed with; none when there is only one. `instance` stands before
    them when the output of several instances is mixed.
    """

    def __init__(
        self, sources: Iterable[str], *, timestamps: bool = False, instance: str = "", colour: int = 0
    ) -> None:
        self._several = len(list(sources)) > 1
        self._timestamps = timestamps
        self._instance = instance
        self._colours: dict[str, str] = {}
        self._next_colour = colour

    def __call__(self, entry: Entry) -> None:
        stream = entry.get("stream")
        out = sys.stdout if stream == "stdout" else sys.stderr
        source = self._source(str(entry.get("container")))
        prefix = f"{self._painted(source, out)} " if source else ""
        if self._timestamps:
            prefix += f"{entry.get('at')} "
        line = str(entry.get("line", ""))
        text = f"{prefix}[rik] {clean(line)}" if stream == "rik" else prefix + line
        out.buffer.write(text.encode("utf-8", "surrogateescape") + os.linesep.encode())
        out.buffer.flush()

    def _source(self, container: str) -> str:
        if not self._several:
            return self._instance
        return f"{self._instance}/{container}" if self._instance else container

    def _painted(self, source: str, out: IO[Any]) -> str:
        if source not in self._colours:
            self._colours[source] = PREFIX_COLOURS[(self._next_colour + len(self._colours)) % len(PREFIX_COLOURS)]
        return paint(f"[{source}]", self._colours[source], stream=out)

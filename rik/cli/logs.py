"""`rik logs`, and the printing of lines that `rik run` shares."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import IO, Any

import click

from rik.cli.amounts import since_time
from rik.cli.command import ClientCommand, connect, instance_argument
from rik.cli.output import clean, paint

Entry = Mapping[str, Any]
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
    from rik.cli.tail import follow_logs

    record = client.get("instances.get", instance).json()
    client.close()
    containers = [entry["name"] for entry in record.get("containers") or ()]
    write = LogPrinter(() if container else containers, timestamps=timestamps)
    run_live(follow_logs, client, str(record.get("uid") or instance), query, write)


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

    def __call__(self, entries: Sequence[Entry]) -> None:
        for is_output, group in groupby(entries, lambda entry: entry.get("stream") == "stdout"):
            out = sys.stdout if is_output else sys.stderr
            out.buffer.write(b"".join(self._line(entry, out) for entry in group))
            out.buffer.flush()

    def _line(self, entry: Entry, out: IO[Any]) -> bytes:
        source = self._source(str(entry.get("container")))
        prefix = f"{self._painted(source, out)} " if source else ""
        if self._timestamps:
            prefix += f"{entry.get('at')} "
        line = str(entry.get("line", ""))
        text = f"{prefix}[rik] {clean(line)}\n" if entry.get("stream") == "rik" else f"{prefix}{line}\n"
        return text.encode("utf-8", "surrogateescape")

    def _source(self, container: str) -> str:
        if not self._several:
            return self._instance
        return f"{self._instance}/{container}" if self._instance else container

    def _painted(self, source: str, out: IO[Any]) -> str:
        if source not in self._colours:
            self._colours[source] = PREFIX_COLOURS[(self._next_colour + len(self._colours)) % len(PREFIX_COLOURS)]
        return paint(f"[{source}]", self._colours[source], stream=out)

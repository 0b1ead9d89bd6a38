"""`rik watch`, and `rik get instances --watch`: every change of every instance, as it happens."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from typing import Any

import click

from rik.cli.amounts import age, clock
from rik.cli.client import Client, Query
from rik.cli.command import ClientCommand, connect, filter_options, filters
from rik.cli.errors import CommandError
from rik.cli.output import Column, clean, console, is_terminal, note, rich_table, say
from rik.cli.progress import Milestones, details, fields_of
from rik.cli.story import Record, progress_in_full, remarkable, status_phrase

REFRESHES_PER_S = 4
ENDED_SHOWN = 8  # rows of instances that are gone, kept in the live table for a while

LIVE_COLUMNS = (
    Column("Name", lambda record: record["name"]),
    Column("Workload", lambda record: record.get("workload") or ""),
    Column("Status", status_phrase, styled=True),
    Column("Node", lambda record: record.get("node") or ""),
    Column("Age", lambda record: age(record.get("created_at"))),
    Column("Why", lambda record: _progress_details(record) or remarkable(record)),
)


def _progress_details(record: Record) -> str:
    told = details(record.get("progress") or {}) if record.get("status") == "Creating" else ()
    return ", ".join(part for part in told if part)


@click.command(cls=ClientCommand)
@filter_options
@click.option(
    "-o", "--output", "style", type=click.Choice(["table", "json"]), default="table", help="json: raw frames."
)
def watch(status: str | None, workload: str | None, node: str | None, style: str) -> int | None:
    """Follow every change of every instance: a live table on a terminal, a line per change elsewhere."""
    return follow_instances(connect(), filters(status, workload, node), style, None)


def follow_instances(client: Client, query: Query, style: str, name: str | None) -> int | None:
    """Follows until interrupted; `name` leaves only one instance."""
    from rik.cli.stream import run_live

    if style == "yaml":
        raise CommandError("`--watch` cannot be printed as yaml", next_step="use -o json, one document per line")
    if style == "json":
        return run_live(_print_frames, client, query, name)
    if is_terminal():
        return run_live(_draw, client, query, name)
    return run_live(_print_lines, client, query, name)


async def _print_frames(client: Client, query: Query, name: str | None) -> None:
    from rik.cli.stream import watching

    async with watching(client.cluster, query) as frames:
        async for frame in frames:
            if frame["type"] == "lost":
                note(f"connection lost ({frame['error']}); trying again")
            elif frame["type"] != "resumed" and _concerns(frame, name):
                say(json.dumps(frame, ensure_ascii=False, separators=(",", ":")))


async def _print_lines(client: Client, query: Query, name: str | None) -> None:
    from rik.cli.stream import watching

    progress = ProgressLines(name)
    async with watching(client.cluster, query) as frames:
        async for frame in frames:
            for line in (*change_lines(frame, name), *progress.take(frame)):
                say(line)


def change_lines(frame: Any, name: str | None = None) -> list[str]:
    """The lines that tell of one frame; none for frames that only keep the stream going."""
    kind = frame["type"]
    if kind == "snapshot":
        return [_line(clock(record.get("updated_at")), record) for record in frame["instances"] if _is(record, name)]
    if kind == "instance":
        record = frame["instance"]
        if not _is(record, name):
            return []
        return [_line(clock(record.get("updated_at")), record, gone=frame["op"] == "delete")]
    if kind == "gap":
        return [
            f"-- gap: the server no longer keeps what happened before revision {frame.get('oldest')}; all there is now:"
        ]
    if kind == "lost":
        return [f"-- connection lost ({frame['error']}); trying again"]
    if kind == "resumed":
        return [f"-- connected again, going on after revision {frame['revision']}"]
    return []


class ProgressLines:
    """A line for some of the progress frames of instances in creation: a tenth, a layer, or a few seconds further on.

    Fed by all frames: a progress frame names its instance alone, so what is told of it was learnt before.
    """

    def __init__(self, name: str | None = None) -> None:
        self._name = name
        self._creating: dict[str, dict[str, Any]] = {}
        self._milestones = Milestones()

    def take(self, frame: Any) -> list[str]:
        """The lines that tell of the frame, as far as it is progress."""
        if frame["type"] == "progress":
            return self._told(frame, self._creating.get(frame["instance"]))
        if frame["type"] == "snapshot":
            self._creating.clear()
        for record in frame["instances"] if frame["type"] == "snapshot" else [frame.get("instance")]:
            if record is None or not _is(record, self._name):
                continue
            if record["status"] == "Creating" and frame.get("op") != "delete":
                self._creating[record["name"]] = record
            elif self._creating.pop(record["name"], None):
                self._milestones.forget(record["name"])
        return []

    def _told(self, frame: Any, record: dict[str, Any] | None) -> list[str]:
        if record is None:
            return []
        record.update(step=frame["step"], progress=fields_of(frame, record.get("progress") or {}))
        text = progress_in_full(record)
        if text == frame["step"]:  # a step without numbers is told with the next change
            return []
        if not self._milestones.worth_a_line(record["name"], frame["step"], record["progress"]):
            return []
        return [f"{clock(datetime.now(UTC).isoformat())}  {record['name']}  Creating  {text}"]


def _line(when: str, record: Record, *, gone: bool = False) -> str:
    status = "removed" if gone else status_phrase(record)
    where = f"on {record['node']}  " if record.get("node") else ""
    return f"{when}  {record['name']}  {status}  {where}{clean(remarkable(record))}".rstrip()


def _is(record: Record, name: str | None) -> bool:
    return name is None or name in (record.get("name"), record.get("uid"))


def _concerns(frame: Any, name: str | None) -> bool:
    return name is None or frame["type"] != "instance" or _is(frame["instance"], name)


class Table:
    """The rows of the live table: what is listed, and what was removed of late. Fed by frames."""

    def __init__(self, name: str | None = None) -> None:
        self._name = name
        self._rows: dict[str, dict[str, Any]] = {}
        self._gone: dict[str, dict[str, Any]] = {}
        self.revision: int | None = None
        self.trouble = ""

    def apply(self, frame: Any) -> None:
        kind = frame["type"]
        self.revision = frame.get("revision", self.revision)
        if kind == "snapshot":
            self._rows = {record["uid"]: record for record in frame["instances"] if _is(record, self._name)}
        elif kind == "instance" and _is(frame["instance"], self._name):
            record = frame["instance"]
            if frame["op"] == "delete":
                self._rows.pop(record["uid"], None)
                self._gone[record["uid"]] = record
                while len(self._gone) > ENDED_SHOWN:
                    del self._gone[next(iter(self._gone))]
            else:
                self._rows[record["uid"]] = record
        elif kind == "progress":
            self._apply_progress(frame)
        elif kind == "gap":
            self.trouble = "some changes were missed: the server keeps them no longer"
        elif kind == "lost":
            self.trouble = f"connection lost ({frame['error']}); trying again"
        elif kind == "resumed":
            self.trouble = ""

    def _apply_progress(self, frame: Any) -> None:
        for record in self._rows.values():
            if record["name"] == frame.get("instance") and record.get("status") == "Creating":
                record["step"] = frame.get("step")
                record["progress"] = fields_of(frame, record.get("progress") or {})

    def cells(self, limit: int) -> list[list[str]]:
        """At most `limit` rows, the latest changed last; removed ones are marked."""
        rows = [dict(record, status=f"{record.get('status')} (removed)") for record in self._gone.values()]
        rows += sorted(self._rows.values(), key=lambda record: str(record.get("updated_at")))
        return [[clean(column.cell(record)) for column in LIVE_COLUMNS] for record in rows[-limit:]]

    @property
    def summary(self) -> str:
        counts: dict[str, int] = {}
        for record in self._rows.values():
            counts[str(record.get("status"))] = counts.get(str(record.get("status")), 0) + 1
        told = ", ".join(f"{count} {status}" for status, count in sorted(counts.items())) or "no instances"
        return f"{told}; revision {self.revision}" + (f"; {self.trouble}" if self.trouble else "")


async def _draw(client: Client, query: Query, name: str | None) -> None:
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    from rik.cli.stream import watching

    table = Table(name)
    screen = console(sys.stdout)

    def picture() -> Any:
        rows = max(3, screen.height - 6)
        return Group(rich_table(LIVE_COLUMNS, table.cells(rows)), Text(table.summary, style="dim"))

    async with watching(client.cluster, query) as frames:
        with Live(console=screen, refresh_per_second=REFRESHES_PER_S, get_renderable=picture):
            async for frame in frames:
                table.apply(frame)

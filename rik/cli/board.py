"""What `run` and `create --wait` show while instances are on their way: rich rows on a terminal, else plain lines."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import TracebackType
from typing import IO, Any

import click

from rik.cli.output import STATUS_STYLES, clean, console, is_terminal
from rik.cli.progress import Milestones
from rik.cli.story import Record, is_final, progress_in_full, why

ROWS_MAX = 20  # more do not fit a terminal; the rest is summed up in one row
BAR_WIDTH = 24
BAR_WIDTH_NARROW = 10
WIDE_COLUMNS = 110  # from here on the bar and all words have room
STATUS_WIDTH = len("Destroying")
REFRESHES_PER_S = 10


class PlainBoard:
    """One line for every change that can be told from the last; of progress, which comes by the second, one for every
    tenth, layer and few seconds: `web-1  Creating  pull 43 % (108 of 250 MB, 2 of 6 layers, 12 s)`."""

    def __init__(self, names: Sequence[str], stream: IO[str]) -> None:
        self._stream = stream
        self._width = max((len(name) for name in names), default=0)
        self._last: dict[str, str] = {}
        self._milestones = Milestones()

    def __enter__(self) -> PlainBoard:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def show(self, instance: Record) -> None:
        name = str(instance.get("name"))
        line = f"{name:<{self._width}}  {instance.get('status')!s:<10}  {remark(instance)}".rstrip()
        if self._last.get(name) == line:
            return
        progress = instance.get("progress") or {}
        moving = instance.get("status") == "Creating" and progress
        if moving and not self._milestones.worth_a_line(name, str(instance.get("step")), progress):
            return
        self._last[name] = line
        click.echo(line, file=self._stream)


class LiveBoard:
    """A row per instance, redrawn in place, with a spinner until it is settled and a bar while bytes are counted."""

    def __init__(self, names: Sequence[str], stream: IO[str]) -> None:
        from rich.live import Live

        self._names = list(names)
        self._records: dict[str, Record] = {}
        self._spinners: dict[str, Any] = {}
        self._screen = console(stream)
        self._live = Live(console=self._screen, refresh_per_second=REFRESHES_PER_S, get_renderable=self._draw)

    def __enter__(self) -> LiveBoard:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)

    def show(self, instance: Record) -> None:
        self._records[str(instance.get("name"))] = instance

    def _draw(self) -> Any:
        from rich.table import Table
        from rich.text import Text

        grid = Table.grid(padding=(0, 2))
        for name in self._names[:ROWS_MAX]:
            grid.add_row(*self._row(name, self._records.get(name) or {"name": name, "status": "Pending"}))
        if len(self._names) > ROWS_MAX:
            counts: dict[str, int] = {}
            for name in self._names[ROWS_MAX:]:
                status = str((self._records.get(name) or {}).get("status") or "Pending")
                counts[status] = counts.get(status, 0) + 1
            summed = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
            grid.add_row("", Text(f"and {len(self._names) - ROWS_MAX} more: {summed}"), "", "")
        return grid

    def _row(self, name: str, instance: Record) -> tuple[Any, ...]:
        from rich.progress_bar import ProgressBar
        from rich.spinner import Spinner
        from rich.table import Table
        from rich.text import Text

        status = str(instance.get("status"))
        mark: Any
        if status == "Running":
            mark = Text("●", style="green")
        elif is_final(instance):
            mark = Text("✗" if status == "Failed" else "✓", style=STATUS_STYLES[status])
        else:
            mark = self._spinners.setdefault(name, Spinner("dots"))
        progress = instance.get("progress") or {}
        told: Any = Text(remark(instance))
        if status == "Creating" and progress.get("total"):
            columns = self._screen.width
            width = BAR_WIDTH if columns >= WIDE_COLUMNS else BAR_WIDTH_NARROW
            taken = len("●") + max(map(len, self._names[:ROWS_MAX])) + STATUS_WIDTH + 3 * len("  ") + width + len(" ")
            bar = ProgressBar(total=progress["total"], completed=progress.get("done") or 0, width=width)
            told = Table.grid(padding=(0, 1))
            told.add_row(bar, Text(progress_in_full(instance, columns - taken), no_wrap=True))
        return mark, Text(name), Text(status, style=STATUS_STYLES.get(status, "")), told


def remark(instance: Record) -> str:
    """What is to be said beside the status: the step, where it runs, or why it ended."""
    status = instance.get("status")
    where = f"on {instance['node']}" if instance.get("node") else ""
    if status == "Creating":
        # Every creation begins with `queued`, and hardly any stays there.
        return where if instance.get("step") in (None, "", "queued") else progress_in_full(instance)
    if status == "Running":
        return where
    if status == "Failed":
        return str(instance.get("reason") or "")  # told in full right after
    return clean(why(instance))


def board_for(names: Sequence[str], stream: IO[str] | None = None) -> PlainBoard | LiveBoard:
    """The board that suits `stream`, standard output by default; use it as a context manager."""
    stream = stream or sys.stdout
    return LiveBoard(names, stream) if is_terminal(stream) else PlainBoard(names, stream)

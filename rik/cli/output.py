"""Tables and documents on standard output: drawn by rich on a terminal, plain aligned text everywhere else."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import IO, Any, NamedTuple

import click

from rik.cli.client import Answer

FORMATS = ("table", "wide", "json", "yaml")

STATUS_STYLES = {
    "Running": "green",
    "Ready": "green",
    "Terminated": "blue",
    "Failed": "red",
    "NotReady": "red",
    "Warning": "yellow",
    "Pending": "yellow",
    "Creating": "cyan",
    "Destroying": "magenta",
}


class Column(NamedTuple):
    """`cell` makes a row's text; a `wide` one is shown by `-o wide` alone; `styled` colours it by its word; one that
    `ages` changes with time alone, which is no news to somebody who follows; a `whole` one is never folded."""

    title: str
    cell: Callable[[Any], str]
    wide: bool = False
    right: bool = False
    styled: bool = False
    ages: bool = False
    whole: bool = False


def is_terminal(stream: IO[Any] | None = None) -> bool:
    """Whether pictures may be drawn on `stream`, standard output by default."""
    stream = stream or sys.stdout
    try:
        return stream.isatty() and os.environ.get("TERM") != "dumb"
    except ValueError:  # closed
        return False


def colours(stream: IO[Any] | None = None) -> bool:
    return is_terminal(stream) and not os.environ.get("NO_COLOR")


def console(stream: IO[str]) -> Any:
    """A rich console on `stream`; where colours are not wanted it writes no other attributes either."""
    from rich.console import Console

    return Console(file=stream, highlight=False, color_system="auto" if colours(stream) else None)


def paint(text: str, style: str, *, bold: bool = False, stream: IO[Any] | None = None) -> str:
    """`text` in a colour (or "" for none) where colours are wanted."""
    return click.style(text, fg=style or None, bold=bold or None) if colours(stream) else text


def paint_status(word: str, *, stream: IO[Any] | None = None) -> str:
    return paint(word, STATUS_STYLES.get(word.split(" ", maxsplit=1)[0], ""), stream=stream)


def clean(text: object) -> str:
    """One line without control characters: what a workload or server wrote must not steer the terminal."""
    return "".join(char if char.isprintable() else "␤" if char == "\n" else "�" for char in str(text).expandtabs(4))


def say(text: str = "") -> None:
    """A line on standard output, at once."""
    click.echo(text)


def note(text: str) -> None:
    """A line on standard error: warnings, hints, and what RIK itself says next to a workload's output."""
    click.echo(text, err=True)


def warn(warnings: Sequence[Any]) -> None:
    for warning in warnings:
        if isinstance(warning, dict):
            text = ": ".join(str(warning[key]) for key in ("pointer", "message") if warning.get(key))
        else:
            text = str(warning)
        note(f"{paint('warning:', 'yellow', stream=sys.stderr)} {clean(text)}")


def write_exactly(body: bytes) -> None:
    """The API's bytes as they are; on a terminal they are followed by a newline, so that the prompt stays readable."""
    sys.stdout.flush()
    sys.stdout.buffer.write(body)
    if sys.stdout.isatty() and not body.endswith(b"\n"):
        sys.stdout.buffer.write(b"\n")
    sys.stdout.buffer.flush()


def _write_yaml(document: Any) -> None:
    import yaml

    click.echo(yaml.safe_dump(document, sort_keys=False, allow_unicode=True, default_flow_style=False), nl=False)


def write_document(answer: Answer, style: str) -> bool:
    """The answer as json or yaml; False, and nothing written, when it is to be told in another way."""
    if style == "json":
        write_exactly(answer.body)
    elif style == "yaml":
        _write_yaml(answer.json())
    return style in ("json", "yaml")


def show(answer: Answer, style: str, rows: Callable[[Any], Sequence[Any]], columns: Sequence[Column]) -> None:
    """The answer in one of FORMATS; `rows` takes the table's rows out of the decoded answer."""
    if not write_document(answer, style):
        write_table(columns, rows(answer.json()), wide=style == "wide")


def write_table(columns: Sequence[Column], rows: Sequence[Any], *, wide: bool = False) -> None:
    """Titles and one line per row."""
    shown = [column for column in columns if wide or not column.wide]
    cells = [[clean(column.cell(row)) for column in shown] for row in rows]
    if is_terminal():
        _draw(shown, cells)
    else:
        for line in aligned(shown, cells):
            click.echo(line)


def aligned(columns: Sequence[Column], cells: Sequence[Sequence[str]]) -> list[str]:
    """Plain text: upper-case titles, columns two spaces apart, empty cells as "-", no trailing space."""
    table = [[column.title.upper() for column in columns], *([cell or "-" for cell in row] for row in cells)]
    widths = [max(len(row[index]) for row in table) for index in range(len(columns))]
    lines = []
    for row in table:
        padded = [
            text.rjust(width) if column.right else text.ljust(width)
            for text, width, column in zip(row, widths, columns, strict=True)
        ]
        lines.append("  ".join(padded).rstrip())
    return lines


def rich_table(columns: Sequence[Column], cells: Sequence[Sequence[str]]) -> Any:
    """The same as a rich table, to be printed or kept in a live display."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold", expand=False)
    for column in columns:
        table.add_column(
            column.title, justify="right" if column.right else "left", overflow="fold", no_wrap=column.whole
        )
    for row in cells:
        table.add_row(
            *(
                Text(cell or "-", style=STATUS_STYLES.get(cell.split(" ")[0], "") if column.styled else "")
                for column, cell in zip(columns, row, strict=True)
            )
        )
    return table


def _draw(columns: Sequence[Column], cells: Sequence[Sequence[str]]) -> None:
    console(sys.stdout).print(rich_table(columns, cells))

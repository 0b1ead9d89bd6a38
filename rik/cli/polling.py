"""Following a list that has no watch of its own (workloads, nodes, events), by asking for it again and again."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from rik.cli.client import Answer
from rik.cli.errors import CommandError, Unreachable
from rik.cli.output import Column, aligned, clean, note, say

POLL_S = 2.0


def poll(
    ask: Callable[[], Answer], style: str, rows: Callable[[Any], Sequence[Any]], columns: Sequence[Column]
) -> NoReturn:
    """Says every row that is new or has changed since the last look (json: every list that has).

    Raises Unreachable when the first look fails; later it waits for the server to come back.
    """
    if style == "yaml":
        raise CommandError("`--watch` cannot be printed as yaml", next_step="use -o json, one document per line")
    changes: _Rows | _Documents = _Documents() if style == "json" else _Rows(rows, columns, wide=style == "wide")
    changes.tell(ask())
    trouble = False
    while True:
        time.sleep(POLL_S)
        try:
            answer = ask()
        except Unreachable as error:
            if not trouble:
                note(f"connection lost ({error.message}); trying again")
            trouble = True
            continue
        if trouble:
            note("connected again")
            trouble = False
        changes.tell(answer)


class _Documents:
    """Whole lists; an empty one only when it is the first."""

    def __init__(self) -> None:
        self._said = ""

    def tell(self, answer: Answer) -> None:
        text = answer.body.decode()
        if text != self._said and (not self._said or text != "[]"):
            self._said = text
            say(text)


class _Rows:
    """Rows of a table, under its titles. A row whose age alone has changed is not told again."""

    def __init__(self, rows: Callable[[Any], Sequence[Any]], columns: Sequence[Column], *, wide: bool) -> None:
        self._rows = rows
        self._shown = [column for column in columns if wide or not column.wide]
        self._said: set[str] = set()
        self._titled = False

    def tell(self, answer: Answer) -> None:
        present: set[str] = set()
        cells = []
        for row in self._rows(answer.json()):
            row_cells = [clean(column.cell(row)) for column in self._shown]
            news = "\0".join(cell for cell, column in zip(row_cells, self._shown, strict=True) if not column.ages)
            if news not in self._said:
                cells.append(row_cells)
            present.add(news)
        titles, *lines = aligned(self._shown, cells)
        if not self._titled:
            say(titles)
            self._titled = True
        for line in lines:
            say(line)
        self._said = present

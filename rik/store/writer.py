"""What the store writes: batches under contiguous revisions, and a journal that is cut when it has grown too long."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from rik.errors import StoreUnavailable
from rik.store.groupcommit import GroupCommit
from rik.store.records import Row

# The journal may exceed its length by this before it is cut, so that pages are freed by the run and not row by row.
PRUNE_SLACK = 1_000
# Rows dropped in one transaction: about 2 ms. It outpaces any writer, and a shortened journal shrinks step by step.
PRUNE_ROWS = 4_000


class Writer:
    """Has the connection to itself until `aclose` has returned. Everything raises as `GroupCommit.write` does."""

    def __init__(
        self, name: str, path: Path, connection: sqlite3.Connection, revision: int, journal_revisions: int
    ) -> None:
        oldest = connection.execute("SELECT min(revision) FROM journal").fetchone()[0] or revision + 1
        self._numbering = _Numbering(revision, oldest, journal_revisions)
        self._commits = GroupCommit(name, path, connection, self._numbering)

    async def append(self, rows: Sequence[Row]) -> int:
        """Writes a batch; returns its last revision. Raises ValueError for a second post-mortem."""
        return await self._commits.write(partial(self._numbering.append, rows))

    async def change(self, work: Callable[[sqlite3.Connection], int]) -> int:
        """Writes what has no revision."""
        return await self._commits.write(work)

    async def aclose(self) -> None:
        await self._commits.aclose()


class _Numbering:
    """The last revision, and the oldest in the journal: those on the disk, and those of the open transaction."""

    def __init__(self, revision: int, oldest: int, journal_revisions: int) -> None:
        self._durable = revision
        self._revision = revision
        self._oldest = oldest
        self._oldest_after = oldest
        self._journal_revisions = journal_revisions

    def append(self, rows: Sequence[Row], connection: sqlite3.Connection) -> int:
        self._revision = _write_rows(connection, self._revision, rows)
        return self._revision

    def begin(self) -> None:
        self._revision = self._durable

    def before_commit(self, connection: sqlite3.Connection) -> None:
        if self._revision != self._durable:
            self._advance(connection)
        self._oldest_after = self._prune(connection)

    def after_commit(self) -> None:
        self._durable = self._revision
        self._oldest = self._oldest_after

    def _advance(self, connection: sqlite3.Connection) -> None:
        """Also notices whoever else writes to this file: revisions would be given twice."""
        cursor = connection.execute(
            "UPDATE meta SET value = ? WHERE key = 'revision' AND value = ?", (self._revision, self._durable)
        )
        if cursor.rowcount != 1:
            raise StoreUnavailable("another process has written to the store", next_step="stop one of them")

    def _prune(self, connection: sqlite3.Connection) -> int:
        """Drops the oldest part of the journal and its events when it is due; returns what is then the oldest."""
        oldest = self._oldest
        excess = self._revision - oldest + 1 - self._journal_revisions
        if excess < min(PRUNE_SLACK, self._journal_revisions):
            return oldest
        oldest += min(excess, PRUNE_ROWS)
        connection.execute("DELETE FROM journal WHERE revision < ?", (oldest,))
        connection.execute("DELETE FROM events WHERE revision < ?", (oldest,))
        return oldest


def _write_rows(connection: sqlite3.Connection, revision: int, rows: Sequence[Row]) -> int:
    """Writes a batch after `revision`; returns its last. Raises sqlite3.Error, ValueError for a second post-mortem."""
    for row in rows:
        revision += 1
        connection.execute(
            "INSERT INTO journal VALUES (?, ?, ?, ?, ?, ?, ?)",
            (revision, row.kind, row.op, row.key, row.at, row.value, row.before),
        )
        if row.event is not None:
            connection.execute(
                "INSERT INTO events VALUES (?, ?, ?, ?, ?)",
                (revision, row.at, row.event_uid, row.event_namespace, row.event),
            )
        if row.kind == "postmortem":
            _write_postmortem(connection, revision, row)
        elif row.op == "put":
            connection.execute("REPLACE INTO objects VALUES (?, ?, ?, ?)", (row.kind, row.key, revision, row.value))
        else:
            connection.execute("DELETE FROM objects WHERE kind = ? AND key = ?", (row.kind, row.key))
    return revision


def _write_postmortem(connection: sqlite3.Connection, revision: int, row: Row) -> None:
    if row.op == "delete":
        connection.execute("DELETE FROM postmortems WHERE uid = ?", (row.key,))
        return
    try:
        connection.execute(
            "INSERT INTO postmortems VALUES (?, ?, ?, ?, ?, ?)",
            (row.key, revision, row.ended_at, row.namespace, row.name, row.value),
        )
    except sqlite3.IntegrityError:
        raise ValueError(f"the post-mortem of {row.key} is written already, and never changes") from None

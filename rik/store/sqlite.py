"""Cluster state in one SQLite file: write-ahead log, `synchronous=FULL`, one thread that writes, one that reads."""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import msgspec
import trio

from rik.errors import StoreUnavailable
from rik.model.change import Change, RecordedEvent
from rik.model.instance import Instance
from rik.store import opening, records
from rik.store.base import DEFAULT_JOURNAL_REVISIONS, Compacted, Loaded
from rik.store.writer import Writer

T = TypeVar("T")

_CHANGES = (
    "SELECT journal.revision, kind, op, key, journal.at, value, before, event FROM journal"
    " LEFT JOIN events ON events.revision = journal.revision WHERE journal.revision > ?"
    " ORDER BY journal.revision LIMIT ?"
)


@asynccontextmanager
async def open_sqlite(
    path: Path, *, journal_revisions: int = DEFAULT_JOURNAL_REVISIONS, new_cluster_id: str = ""
) -> AsyncIterator[SqliteStore]:
    """`SqliteStore.open`, closed at the end of the block."""
    store = await SqliteStore.open(path, journal_revisions=journal_revisions, new_cluster_id=new_cluster_id)
    try:
        yield store
    finally:
        await store.aclose()


class SqliteStore:
    """See `rik.store.base.Store`; made by `open`, and to be closed.

    A commit that is cancelled while it waits in line is withdrawn; once its transaction has begun it goes on, and the
    whole batch becomes durable or nothing of it.
    """

    name = "sqlite"

    def __init__(self, path: Path, opened: opening.Opened, journal_revisions: int) -> None:
        self.path = path
        self.cluster_id = opened.loaded.cluster_id
        self._opened = opened
        self._loaded: Loaded | None = opened.loaded
        self._writer = Writer(opened.file.name, path, opened.writer, opened.loaded.revision, journal_revisions)
        self._reading = trio.CapacityLimiter(1)
        self._closed = False

    @classmethod
    async def open(
        cls, path: Path, *, journal_revisions: int = DEFAULT_JOURNAL_REVISIONS, new_cluster_id: str = ""
    ) -> SqliteStore:
        """The store in the file at `path`, made when there is none.

        Raises StoreDamaged or StartupError, with the file untouched. `new_cluster_id` (default: random) names the
        cluster of a store that is made.
        """
        cluster_id = new_cluster_id or secrets.token_hex(16)
        opened = await trio.to_thread.run_sync(opening.open_file, path, cluster_id)
        return cls(path, opened, journal_revisions)

    async def load(self) -> Loaded:
        """The first call is free: the state was read when the file was checked."""
        loaded, self._loaded = self._loaded, None
        if loaded is not None:
            return loaded
        return await self._read(opening.load)

    async def commit(self, changes: Sequence[Change]) -> int:
        """Raises ValueError for changes that make no sense (a second post-mortem of an instance among them)."""
        rows = [records.encode(change) for change in changes]
        self._loaded = None

        return await self._writer.append(rows)

    async def changes_since(self, revision: int, limit: int = 1000) -> list[Change]:
        def read(connection: sqlite3.Connection) -> list[Change]:
            rows = connection.execute(_CHANGES, (revision, limit)).fetchall()
            if not rows or rows[0][0] != revision + 1:
                oldest, last = connection.execute(
                    "SELECT min(revision), (SELECT value FROM meta WHERE key = 'revision') FROM journal"
                ).fetchone()
                kept_after = oldest - 1 if oldest is not None else last
                if revision < kept_after:
                    raise Compacted(kept_after)
            return [
                Change(
                    kind=kind,
                    op=op,
                    key=key,
                    value=records.decode(kind, value, number),
                    at=at,
                    before=records.decode_before(before),
                    event=records.decode_event(event),
                    revision=number,
                )
                for number, kind, op, key, at, value, before, event in rows
            ]

        return await self._read(read)

    async def postmortem(self, name_or_uid: str, namespace: str | None = None) -> Instance | None:
        def read(connection: sqlite3.Connection) -> Instance | None:
            of_namespace = " AND namespace = ?" if namespace is not None else ""
            values = (name_or_uid,) if namespace is None else (name_or_uid, namespace)
            for column in ("uid", "name"):
                row = connection.execute(
                    f"SELECT record, revision FROM postmortems WHERE {column} = ?{of_namespace}"
                    " ORDER BY revision DESC LIMIT 1",
                    values,
                ).fetchone()
                if row is not None:
                    found: Instance = records.decode("postmortem", row[0], row[1])
                    return found
            return None

        return await self._read(read)

    async def events(
        self, *, uid: str = "", since: int = 0, namespace: str = "", limit: int = 1000
    ) -> list[RecordedEvent]:
        def read(connection: sqlite3.Connection) -> list[RecordedEvent]:
            where = "revision > ?"
            values: list[int | str] = [since]
            for column, value in (("uid", uid), ("namespace", namespace)):
                if value:
                    where += f" AND {column} = ?"
                    values.append(value)
            # `uid <> ''` lets SQLite see that the partial index serves.
            partial = " AND uid <> ''" if uid else ""
            rows = connection.execute(
                f"SELECT revision, at, event FROM events WHERE {where}{partial} ORDER BY revision DESC LIMIT ?",
                (*values, limit),
            ).fetchall()
            return [records.recorded(*row) for row in reversed(rows)]

        return await self._read(read)

    async def purge_postmortems(self, ended_before: int, keep: int) -> int:
        def purge(connection: sqlite3.Connection) -> int:
            old = connection.execute("DELETE FROM postmortems WHERE ended_at < ?", (ended_before,)).rowcount
            excess = connection.execute(
                "DELETE FROM postmortems WHERE uid IN"
                " (SELECT uid FROM postmortems ORDER BY ended_at DESC, uid LIMIT -1 OFFSET ?)",
                (keep,),
            ).rowcount
            return int(old + excess)

        return await self._writer.change(purge)

    async def aclose(self) -> None:
        if self._closed:
            return
        self._closed = True
        with trio.CancelScope(shield=True):
            await self._writer.aclose()
            await trio.to_thread.run_sync(self._opened.close, limiter=self._reading)

    async def _read(self, query: Callable[[sqlite3.Connection], T]) -> T:
        if self._closed:
            raise StoreUnavailable("the store is closed")
        try:
            return await trio.to_thread.run_sync(query, self._opened.reader, limiter=self._reading)
        except sqlite3.Error as error:
            raise StoreUnavailable(f"the store {self.path} cannot be read: {error}") from error
        except (msgspec.MsgspecError, KeyError) as error:
            raise StoreUnavailable(
                f"the store {self.path} holds an unreadable record: {error}",
                next_step="restore it from a backup",
            ) from error

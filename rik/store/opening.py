"""What of a store's file is trusted and read when it is opened, beyond what holds for every SQLite file of RIK."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import msgspec

from rik.model.change import INSTANCE, NODE, WORKLOAD
from rik.store import records, schema
from rik.store.base import Loaded
from rik.store.sqlitefile import Held, SqliteFile

MAX_IDLE_LOG_BYTES = 16 * 2**20
PAGE_CACHE_KIB = 16_384


class Opened(msgspec.Struct, frozen=True):
    """A store's file with its two connections."""

    file: SqliteFile
    held: Held
    reader: sqlite3.Connection
    loaded: Loaded

    @property
    def writer(self) -> sqlite3.Connection:
        return self.held.writer

    def close(self) -> None:
        self.reader.close()
        self.held.close()


def open_file(path: Path, new_cluster_id: str) -> Opened:
    """Blocks on the disk. Raises StoreDamaged or StartupError with one sentence, the file as it was."""
    file = SqliteFile(
        path,
        name="the store",
        application_id=schema.APPLICATION_ID,
        version=schema.VERSION,
        moved_away="RIK then starts with an empty cluster",
        max_idle_log_bytes=MAX_IDLE_LOG_BYTES,
        page_cache_kib=PAGE_CACHE_KIB,
    )
    held, loaded = file.open(
        create=lambda connection: schema.create(connection, new_cluster_id),
        check=lambda connection: _check(file, connection),
        prepare=lambda connection, _: schema.migrate(connection),
    )
    reader = file.connect()
    reader.execute("PRAGMA query_only = ON")
    return Opened(file, held, reader, loaded)


def _check(file: SqliteFile, connection: sqlite3.Connection) -> Loaded:
    try:
        loaded = load(connection)
        last = connection.execute("SELECT max(revision) FROM journal").fetchone()[0] or 0
    except (msgspec.MsgspecError, KeyError, TypeError, ValueError) as error:
        raise file.damaged(f"a record is unreadable: {error}") from None
    if last != loaded.revision:
        raise file.damaged(f"its journal ends at {last}, not at revision {loaded.revision}")
    return loaded


def load(connection: sqlite3.Connection) -> Loaded:
    """The present state, read in one transaction. Raises sqlite3.Error, and whatever a damaged record gives."""
    connection.execute("BEGIN")
    try:
        meta = dict(connection.execute("SELECT key, value FROM meta").fetchall())
        rows = connection.execute("SELECT kind, record, revision FROM objects ORDER BY kind, revision")
        found: dict[str, list[Any]] = {WORKLOAD: [], INSTANCE: [], NODE: []}
        for kind, record, revision in rows:
            found[kind].append(records.decode(kind, record, revision))
    finally:
        connection.execute("ROLLBACK")
    return Loaded(
        cluster_id=str(meta["cluster_id"]),
        revision=int(meta["revision"]),
        workloads=tuple(found[WORKLOAD]),
        instances=tuple(found[INSTANCE]),
        nodes=tuple(found[NODE]),
    )

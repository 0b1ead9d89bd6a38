"""The worker's journal in an SQLite file: WAL, synchronous=FULL, one thread that writes all that waits at once."""

from __future__ import annotations

import secrets
import sqlite3
from contextlib import closing
from pathlib import Path

import msgspec
import trio

from rik.environment import Environment
from rik.errors import StoreUnavailable
from rik.store.groupcommit import GroupCommit
from rik.store.sqlitefile import Held, SqliteFile
from rik.worker.journal import Entry, Opened

APPLICATION_ID = 0x52494B4A  # "RIKJ"
FORMAT = 1
MAX_IDLE_LOG_BYTES = 4 * 2**20
PAGE_CACHE_KIB = 2_048

_SCHEMA = (
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE instances (uid TEXT PRIMARY KEY, entry BLOB NOT NULL) WITHOUT ROWID",
)


class SqliteJournal:
    """See `rik.worker.journal.Journal`. `path` is made, mode 0600, when it is not there."""

    def __init__(self, path: Path, environment: Environment) -> None:
        self._file = _file(path)
        self._environment = environment
        self._held: Held | None = None
        self._commits: GroupCommit | None = None

    async def open(self, boot_id: str) -> Opened:
        held, opened = await trio.to_thread.run_sync(_open, self._file, boot_id)
        self._held = held
        self._commits = GroupCommit(self._file.name, self._file.path, held.writer, _Steps(self._environment))
        return opened

    async def settle(self, boot_id: str) -> None:
        await self._write("REPLACE INTO meta VALUES ('boot_id', ?)", boot_id)

    async def put(self, entry: Entry) -> None:
        await self._write("REPLACE INTO instances VALUES (?, ?)", entry.uid, msgspec.json.encode(entry))

    async def forget(self, uid: str) -> None:
        await self._write("DELETE FROM instances WHERE uid = ?", uid)

    async def aclose(self) -> None:
        commits, self._commits = self._commits, None
        held, self._held = self._held, None
        if commits is not None and held is not None:
            with trio.CancelScope(shield=True):
                await commits.aclose()
                await trio.to_thread.run_sync(held.close)

    async def _write(self, statement: str, *values: object) -> None:
        if self._commits is None:
            raise StoreUnavailable(f"{self._file} is closed")
        await self._commits.write(lambda connection: connection.execute(statement, values))


def read_uids(path: Path) -> frozenset[str]:
    """The instances in the journal of a worker that does not run (or does: nothing is changed). Empty without a file.

    Raises StoreDamaged.
    """
    if not path.exists():
        return frozenset()
    file = _file(path)
    try:
        with closing(file.connect("mode=ro")) as connection:
            return frozenset(uid for (uid,) in connection.execute("SELECT uid FROM instances"))
    except sqlite3.Error as error:
        raise file.damaged(error) from None


class _Steps:
    """The boundaries of a commit at which the process may die."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment

    def begin(self) -> None:
        pass

    def before_commit(self, connection: sqlite3.Connection) -> None:
        self._environment.step("worker.journal.before-commit")

    def after_commit(self) -> None:
        self._environment.step("worker.journal.after-commit")


def _file(path: Path) -> SqliteFile:
    return SqliteFile(
        path,
        name="the worker's journal",
        application_id=APPLICATION_ID,
        version=FORMAT,
        moved_away="the node then joins as a new one, and what it ran is stopped and reported lost",
        max_idle_log_bytes=MAX_IDLE_LOG_BYTES,
        page_cache_kib=PAGE_CACHE_KIB,
    )


def _open(file: SqliteFile, boot_id: str) -> tuple[Held, Opened]:
    return file.open(
        create=_create,
        check=lambda connection: _read(file, connection, boot_id),
        prepare=lambda connection, opened: _begin_epoch(connection, opened.epoch),
    )


def _create(connection: sqlite3.Connection) -> None:
    for statement in _SCHEMA:
        connection.execute(statement)
    identity = {"journal_id": secrets.token_hex(16), "epoch": "0", "boot_id": ""}
    connection.executemany("INSERT INTO meta VALUES (?, ?)", identity.items())


def _read(file: SqliteFile, connection: sqlite3.Connection, boot_id: str) -> Opened:
    meta = dict(connection.execute("SELECT key, value FROM meta").fetchall())
    rows = connection.execute("SELECT entry FROM instances").fetchall()
    try:
        entries = tuple(msgspec.json.decode(entry, type=Entry) for (entry,) in rows)
        rebooted = meta["boot_id"] not in ("", boot_id)
        return Opened(meta["journal_id"], int(meta["epoch"]) + 1, rebooted, entries)
    except (msgspec.MsgspecError, KeyError, ValueError) as error:
        raise file.damaged(f"a record is unreadable: {error}") from None


def _begin_epoch(connection: sqlite3.Connection, epoch: int) -> None:
    connection.execute("UPDATE meta SET value = ? WHERE key = 'epoch'", (str(epoch),))

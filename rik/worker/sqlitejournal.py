"""The worker's journal in an SQLite file: WAL, synchronous=FULL, one thread that writes all that waits at once."""

from __future__ import annotations

import os
import secrets
import sqlite3
import threading
from collections import deque
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import msgspec
import trio

from rik.environment import Environment
from rik.errors import StartupError, StoreDamaged, StoreUnavailable
from rik.worker.journal import Entry, Opened

APPLICATION_ID = 0x52494B4A  # "RIKJ"
FORMAT = 1
# Writes that share a transaction: enough to make an fsync cheap, few enough that nobody waits long for the others.
GROUP_WRITES = 256
# How long SQLite waits for somebody else's lock before an error: there should be nobody else.
BUSY_TIMEOUT_S = 2.0
# The write-ahead log is cut back to this after a checkpoint.
MAX_IDLE_LOG_BYTES = 4 * 2**20
PAGE_CACHE_KIB = 2_048

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE instances (uid TEXT PRIMARY KEY, entry BLOB NOT NULL) WITHOUT ROWID;
"""
_NEXT_STEP = (
    "restore it from a backup, or move it and its -wal file away: the node then joins as a new one, and what it ran is "
    "stopped and reported lost"
)
_Work = Callable[[sqlite3.Connection], object]


class SqliteJournal:
    """See `rik.worker.journal.Journal`. `path` is made, mode 0600, when it is not there."""

    def __init__(self, path: Path, environment: Environment) -> None:
        self._path = path
        self._environment = environment
        self._writer: _Writer | None = None

    async def open(self, boot_id: str) -> Opened:
        connection, opened = await trio.to_thread.run_sync(_open_file, self._path, boot_id)
        self._writer = _Writer(connection, self._environment)
        return opened

    async def settle(self, boot_id: str) -> None:
        await self._write("REPLACE INTO meta VALUES ('boot_id', ?)", boot_id)

    async def put(self, entry: Entry) -> None:
        await self._write("REPLACE INTO instances VALUES (?, ?)", entry.uid, msgspec.json.encode(entry))

    async def forget(self, uid: str) -> None:
        await self._write("DELETE FROM instances WHERE uid = ?", uid)

    async def aclose(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            with trio.CancelScope(shield=True):  # ends when what waits is written: milliseconds
                await trio.to_thread.run_sync(writer.stop)

    async def _write(self, statement: str, *values: object) -> None:
        if self._writer is None:
            raise StoreUnavailable(f"the journal {self._path} is closed")
        job = _Job(partial(_execute, statement, values))
        self._writer.submit(job)
        await job.done.wait()
        if job.error is not None:
            raise StoreUnavailable(
                f"the journal {self._path} cannot be written: {job.error}", next_step="check the room on its disk"
            ) from job.error


def read_uids(path: Path) -> frozenset[str]:
    """The instances in the journal of a worker that does not run (or does: nothing is changed). Empty without a file.

    Raises StoreDamaged.
    """
    if not path.exists():
        return frozenset()
    try:
        with closing(_connect(path, "mode=ro")) as connection:
            return frozenset(uid for (uid,) in connection.execute("SELECT uid FROM instances"))
    except sqlite3.Error as error:
        raise _damaged(path, str(error)) from None


class _Job:
    def __init__(self, work: _Work) -> None:
        self.work = work
        self.error: Exception | None = None
        self.done = trio.Event()


class _Writer:
    """Owns the connection from its making until `stop` has returned."""

    def __init__(self, connection: sqlite3.Connection, environment: Environment) -> None:
        self._connection = connection
        self._environment = environment
        self._waiting: deque[_Job] = deque()
        self._wake = threading.Condition()
        self._stopping = False
        self._token = trio.lowlevel.current_trio_token()
        self._thread = threading.Thread(target=self._run, name="rik-journal", daemon=True)
        self._thread.start()

    def submit(self, job: _Job) -> None:
        with self._wake:
            self._waiting.append(job)
            self._wake.notify()

    def stop(self) -> None:
        """Blocks until everything that was submitted is written."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join()
        self._connection.close()

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._waiting:
                    if self._stopping:
                        return
                    self._wake.wait()
                group = [self._waiting.popleft() for _ in range(min(len(self._waiting), GROUP_WRITES))]
            self._write(group)
            try:
                self._token.run_sync_soon(_tell, group)
            except trio.RunFinishedError:
                return  # nobody is left who could be told

    def _write(self, group: list[_Job]) -> None:
        """All together; when that fails, each alone, so that one too big for the disk does not stop the rest."""
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            for job in group:
                job.work(self._connection)
            self._environment.step("worker.journal.before-commit")
            self._connection.execute("COMMIT")
            self._environment.step("worker.journal.after-commit")
        except Exception as error:  # noqa: BLE001 - whoever waits must hear of it, whatever it is
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            if len(group) == 1:
                group[0].error = error
                return
            for job in group:
                self._write([job])


def _execute(statement: str, values: tuple[object, ...], connection: sqlite3.Connection) -> None:
    connection.execute(statement, values)


def _tell(group: list[_Job]) -> None:
    for job in group:
        job.done.set()


def _open_file(path: Path, boot_id: str) -> tuple[sqlite3.Connection, Opened]:
    """Looks at an existing file through a read-only connection before anything may change it."""
    try:
        if not _exists(path):
            _make(path)
        opened = _read(path, boot_id)
    except OSError as error:
        raise StartupError(
            f"the worker's journal {path} cannot be opened: {error.strerror or error}",
            next_step="check the path, its permissions and the room on its disk",
        ) from None
    connection = _connect(path)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA journal_size_limit = {MAX_IDLE_LOG_BYTES}")
        connection.execute(f"PRAGMA cache_size = -{PAGE_CACHE_KIB}")
        connection.execute("UPDATE meta SET value = ? WHERE key = 'epoch'", (str(opened.epoch),))
    except sqlite3.Error as error:
        connection.close()
        raise StartupError(
            f"the worker's journal {path} cannot be written: {error}",
            next_step="check its permissions, the room on its disk, and that no other RIK uses it",
        ) from None
    return connection, opened


def _exists(path: Path) -> bool:
    log = path.with_name(path.name + "-wal")
    if not path.exists():
        if log.exists() and log.stat().st_size:
            raise StoreDamaged(
                f"the worker's journal {path} is missing, but its log {log.name} is there",
                next_step=f"put {path.name} back beside it, or move {log.name} away: the node then joins as a new one",
            )
        return False
    if not path.is_file():
        raise _damaged(path, "it is not a regular file")
    if not path.stat().st_size:  # a new one is renamed into place whole
        raise _damaged(path, "it is empty")
    return True


def _make(path: Path) -> None:
    new = path.with_name(path.name + ".new")
    for leftover in (new, new.with_name(new.name + "-journal")):
        leftover.unlink(missing_ok=True)
    os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    try:
        with closing(_connect(new)) as connection:
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {FORMAT}")
            connection.executescript(_SCHEMA)
            identity = {"journal_id": secrets.token_hex(16), "epoch": "0", "boot_id": ""}
            connection.executemany("INSERT INTO meta VALUES (?, ?)", identity.items())
    except sqlite3.Error as error:
        new.unlink(missing_ok=True)
        raise StartupError(
            f"the worker's journal {path} cannot be made: {error}", next_step="check the room on its disk"
        ) from None
    descriptor = os.open(new, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
    new.rename(path)
    directory = os.open(path.parent, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)


def _read(path: Path, boot_id: str) -> Opened:
    try:
        with closing(_connect(path, "mode=ro")) as connection:
            if connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
                raise _damaged(path, "it is not the journal of a worker")
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version != FORMAT:
                raise StartupError(
                    f"the worker's journal {path} has format {version}; this RIK knows {FORMAT}",
                    next_step="run the version of RIK that wrote it, or choose another --data-dir",
                )
            found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            if found != "ok":
                raise _damaged(path, " ".join(str(found).split()))
            meta = dict(connection.execute("SELECT key, value FROM meta").fetchall())
            rows = connection.execute("SELECT entry FROM instances").fetchall()
    except sqlite3.Error as error:
        raise _damaged(path, str(error)) from None
    try:
        entries = tuple(msgspec.json.decode(entry, type=Entry) for (entry,) in rows)
        rebooted = meta["boot_id"] not in ("", boot_id)
        return Opened(meta["journal_id"], int(meta["epoch"]) + 1, rebooted, entries)
    except (msgspec.MsgspecError, KeyError, ValueError) as error:
        raise _damaged(path, f"a record is unreadable: {error}") from None


def _connect(path: Path, query: str = "mode=rw") -> sqlite3.Connection:
    """Statements and transactions as they are written; the connection may move between threads."""
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?{query}",
        uri=True,
        timeout=BUSY_TIMEOUT_S,
        isolation_level=None,
        check_same_thread=False,
    )


def _damaged(path: Path, cause: str) -> StoreDamaged:
    return StoreDamaged(f"the worker's journal {path} is damaged: {cause}", next_step=_NEXT_STEP)

"""Opening a store's file: made when it is not there, refused untouched when it cannot be trusted.

An existing file is first looked at through a read-only connection, which changes neither it nor its write-ahead log;
only a file that has passed is opened for writing. A new file is made under another name and renamed into place, so
that a process killed meanwhile leaves no half-made store behind, and an empty file is always a damaged one.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import stat
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec

from rik.errors import StartupError, StoreDamaged
from rik.model.change import INSTANCE, NODE, WORKLOAD
from rik.store import records, schema, wal
from rik.store.base import Loaded

# `PRAGMA quick_check` reads the whole file, about 0.5 GB/s: what would delay a start by more than 0.2 s is not read.
QUICK_CHECK_BYTES = 100 * 2**20
# How long SQLite waits for somebody else's lock before an error: there should be nobody else.
BUSY_TIMEOUT_S = 2.0
# The write-ahead log is cut back to this after a checkpoint.
MAX_IDLE_LOG_BYTES = 16 * 2**20
PAGE_CACHE_KIB = 16_384

_MAGIC = b"SQLite format 3\0"
_HEADER_BYTES = 100
_RESTORE = "restore it from a backup, or move it and its -wal file away to start with an empty cluster"


class Opened(msgspec.Struct, frozen=True):
    """A store's file with its two connections. `lock` is a file descriptor that keeps other processes out."""

    lock: int
    writer: sqlite3.Connection
    reader: sqlite3.Connection
    loaded: Loaded

    def close(self) -> None:
        """The lock last: closing any descriptor of the file would drop the locks that SQLite holds."""
        self.reader.close()
        self.writer.close()
        os.close(self.lock)


def open_file(path: Path, new_cluster_id: str) -> Opened:
    """Blocks on the disk. Raises StoreDamaged or StartupError with one sentence, the file as it was."""
    try:
        found = _find(path)
        if not found:
            _make(path, new_cluster_id)
        lock = _lock(path)
    except OSError as error:
        raise _unopenable(path, error) from None
    except sqlite3.Error as error:
        raise StartupError(
            f"the store {path} cannot be made: {error}", next_step="check the room on its disk"
        ) from None
    try:
        loaded = _inspect(path)
        return _connect(path, lock, loaded)
    except BaseException:
        os.close(lock)
        raise


def _find(path: Path) -> bool:
    """Whether there is a file that at first sight can be a store."""
    log = _beside(path, "-wal")
    try:
        status = path.stat()
    except FileNotFoundError:
        if log.exists() and log.stat().st_size:
            raise StoreDamaged(
                f"the store {path} is missing, but its log {log.name} is there",
                next_step=f"put {path.name} back beside it, or move {log.name} away to start with an empty cluster",
            ) from None
        return False
    if not stat.S_ISREG(status.st_mode):
        what = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        raise StoreDamaged(f"the store {path} is {what}", next_step="move it away, or choose another --data-dir")
    with path.open("rb") as file:
        head = file.read(len(_MAGIC))
    if not head:
        raise StoreDamaged(f"the store {path} is damaged: it is empty", next_step=_RESTORE)
    if head != _MAGIC:
        raise StoreDamaged(f"the store {path} is damaged: it is not an SQLite database", next_step=_RESTORE)
    if status.st_size < _HEADER_BYTES:
        raise StoreDamaged(
            f"the store {path} is damaged: it is cut off after {status.st_size} bytes", next_step=_RESTORE
        )
    if log.exists() and not wal.is_log(log):
        raise StoreDamaged(
            f"the store {path} is damaged: its log {log.name} does not begin as one",
            next_step="restore both from a backup; without the log the last changes are lost",
        )
    return True


def _make(path: Path, cluster_id: str) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = _beside(path, ".new")
    for leftover in (new, _beside(new, "-journal")):
        leftover.unlink(missing_ok=True)
    os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    try:
        with closing(_open(new)) as connection:
            schema.create(connection, cluster_id)
        new.rename(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _lock(path: Path) -> int:
    lock = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise _in_use(path, "another process holds its lock") from None
    return lock


def _inspect(path: Path) -> Loaded:
    """Everything that can be checked without writing. Removes what SQLite itself put beside the file meanwhile."""
    beside = [_beside(path, "-shm"), _beside(path, "-wal")]
    strangers = [file for file in beside if not file.exists()]
    passed = False
    try:
        with closing(_open(path, "mode=ro")) as connection:
            loaded = _check(path, connection)
        passed = True
        return loaded
    except sqlite3.Error as error:
        if _is_busy(error):
            raise _in_use(path, str(error)) from None
        raise StoreDamaged(f"the store {path} is damaged: {error}", next_step=_RESTORE) from None
    except OSError as error:
        raise _unopenable(path, error) from None
    finally:
        for file in strangers:
            if not passed:
                file.unlink(missing_ok=True)


def _check(path: Path, connection: sqlite3.Connection) -> Loaded:
    if schema.application_id(connection) != schema.APPLICATION_ID:
        raise StoreDamaged(
            f"the store {path} is damaged: it is another program's database", next_step="choose another --data-dir"
        )
    version = schema.version(connection)
    if version > schema.VERSION:
        raise StartupError(
            f"the store {path} was written by a newer RIK (format {version}; this one knows {schema.VERSION})",
            next_step="run that version of RIK, or choose another --data-dir",
        )
    if version < 1:
        raise StoreDamaged(f"the store {path} is damaged: it has no format version", next_step=_RESTORE)
    if path.stat().st_size <= QUICK_CHECK_BYTES:
        found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise StoreDamaged(f"the store {path} is damaged: {_one_line(found)}", next_step=_RESTORE)
    # Reading `-shm` drops this process's locks on it, as POSIX has it; the lock on the file itself keeps others out.
    damage = wal.find_damage(_beside(path, "-wal"), _beside(path, "-shm"))
    if damage:
        raise StoreDamaged(f"the store {path} is damaged: {damage}", next_step=_RESTORE)
    try:
        loaded = load(connection)
        last = connection.execute("SELECT max(revision) FROM journal").fetchone()[0] or 0
    except (msgspec.MsgspecError, KeyError, TypeError, ValueError) as error:
        raise StoreDamaged(
            f"the store {path} is damaged: a record is unreadable: {error}", next_step=_RESTORE
        ) from None
    if last != loaded.revision:
        raise StoreDamaged(
            f"the store {path} is damaged: its journal ends at {last}, not at revision {loaded.revision}",
            next_step=_RESTORE,
        )
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


def _connect(path: Path, lock: int, loaded: Loaded) -> Opened:
    writer = _open(path)
    reader = _open(path)
    try:
        writer.execute("PRAGMA journal_mode = WAL")
        writer.execute("PRAGMA synchronous = FULL")
        writer.execute(f"PRAGMA journal_size_limit = {MAX_IDLE_LOG_BYTES}")
        writer.execute(f"PRAGMA cache_size = -{PAGE_CACHE_KIB}")
        schema.migrate(writer)
        reader.execute("PRAGMA query_only = ON")
    except sqlite3.Error as error:
        reader.close()
        writer.close()
        if _is_busy(error):
            raise _in_use(path, str(error)) from None
        raise StartupError(
            f"the store {path} cannot be written: {error}", next_step="check its permissions and the room on its disk"
        ) from None
    return Opened(lock, writer, reader, loaded)


def _open(path: Path, query: str = "mode=rw") -> sqlite3.Connection:
    """Statements and transactions as they are written; the connection may move between threads."""
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?{query}",
        uri=True,
        timeout=BUSY_TIMEOUT_S,
        isolation_level=None,
        check_same_thread=False,
    )


def _unopenable(path: Path, error: OSError) -> StartupError:
    return StartupError(
        f"the store {path} cannot be opened: {error.strerror or error}",
        next_step="check the path, its permissions and the room on its disk",
    )


def _in_use(path: Path, cause: str) -> StartupError:
    return StartupError(
        f"the store {path} is in use by another process: {cause}", next_step="stop it, or choose another --data-dir"
    )


def _is_busy(error: sqlite3.Error) -> bool:
    # Extended codes carry the primary one in their lowest byte.
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _one_line(text: object) -> str:
    return " ".join(str(text).split())

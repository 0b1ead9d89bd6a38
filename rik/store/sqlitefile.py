"""Opening an SQLite file of RIK's own: made when it is not there, refused untouched when it cannot be trusted.

An existing file is first looked at through a read-only connection, which changes neither it nor its write-ahead log;
only a file that has passed is opened for writing. A new file is made under another name and renamed into place, so
that a process killed meanwhile leaves nothing half-made behind, and an empty file is always a damaged one.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import stat
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TypeVar

import msgspec

from rik.errors import StartupError, StoreDamaged
from rik.store import wal

# `PRAGMA quick_check` reads the whole file, about 0.5 GB/s: what would delay a start by more than 0.2 s is not read.
QUICK_CHECK_BYTES = 100 * 2**20
# How long SQLite waits for somebody else's lock before an error: there should be nobody else.
BUSY_TIMEOUT_S = 2.0

_MAGIC = b"SQLite format 3\0"
_HEADER_BYTES = 100

T = TypeVar("T")


class Held(msgspec.Struct, frozen=True):
    """A file that other processes are kept out of by `lock`, a descriptor of it."""

    lock: int
    writer: sqlite3.Connection

    def close(self) -> None:
        """The lock last: closing any descriptor of the file would drop the locks that SQLite holds."""
        self.writer.close()
        os.close(self.lock)


class SqliteFile(msgspec.Struct, frozen=True):
    """One file, and what to say of it. `name` is what messages call it ("the store"); `application_id` tells it from
    other programs' databases; `version` is the newest format known (`PRAGMA user_version`, from 1 on); `moved_away`
    says what follows when the user moves it away. Everything blocks on the disk."""

    path: Path
    name: str
    application_id: int
    version: int
    moved_away: str
    max_idle_log_bytes: int  # the write-ahead log is cut back to this after a checkpoint
    page_cache_kib: int

    def open(
        self,
        create: Callable[[sqlite3.Connection], None],
        check: Callable[[sqlite3.Connection], T],
        prepare: Callable[[sqlite3.Connection, T], None],
    ) -> tuple[Held, T]:
        """Holds the file, and what `check` found in it.

        `create` fills a new one, `check` reads one that is to be trusted and raises `damaged`, `prepare` is the first
        to write. Raises StoreDamaged or StartupError with one sentence, the file as it was.
        """
        try:
            if not self._is_there():
                self._make(create)
            lock = self._lock()
        except OSError as error:
            raise self._unopenable(error) from None
        except sqlite3.Error as error:
            raise StartupError(f"{self} cannot be made: {error}", next_step="check the room on its disk") from None
        try:
            found = self._inspect(check)
            return Held(lock, self._open_for_writing(lambda connection: prepare(connection, found))), found
        except BaseException:
            os.close(lock)
            raise

    def connect(self, query: str = "mode=rw") -> sqlite3.Connection:
        """Statements and transactions as they are written; the connection may move between threads."""
        return _connect(self.path, query)

    def damaged(self, cause: object) -> StoreDamaged:
        return StoreDamaged(
            f"{self} is damaged: {_one_line(cause)}",
            next_step=f"restore it from a backup, or move it and its -wal file away: {self.moved_away}",
        )

    def __str__(self) -> str:
        return f"{self.name} {self.path}"

    def _is_there(self) -> bool:
        """Whether there is a file that at first sight can be what is looked for."""
        log = _beside(self.path, "-wal")
        try:
            status = self.path.stat()
        except FileNotFoundError:
            if log.exists() and log.stat().st_size:
                raise StoreDamaged(
                    f"{self} is missing, but its log {log.name} is there",
                    next_step=f"put {self.path.name} back beside it, or move {log.name} away: {self.moved_away}",
                ) from None
            return False
        if not stat.S_ISREG(status.st_mode):
            what = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise StoreDamaged(f"{self} is {what}", next_step="move it away, or choose another --data-dir")
        with self.path.open("rb") as file:
            head = file.read(len(_MAGIC))
        if not head:
            raise self.damaged("it is empty")
        if head != _MAGIC:
            raise self.damaged("it is not an SQLite database")
        if status.st_size < _HEADER_BYTES:
            raise self.damaged(f"it is cut off after {status.st_size} bytes")
        if log.exists() and not wal.is_log(log):
            raise StoreDamaged(
                f"{self} is damaged: its log {log.name} does not begin as one",
                next_step="restore both from a backup; without the log the last changes are lost",
            )
        return True

    def _make(self, create: Callable[[sqlite3.Connection], None]) -> None:
        new = _beside(self.path, ".new")
        for leftover in (new, _beside(new, "-journal")):
            leftover.unlink(missing_ok=True)
        os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        try:
            with closing(_connect(new)) as connection:
                connection.execute("BEGIN IMMEDIATE")
                connection.execute(f"PRAGMA application_id = {self.application_id}")
                create(connection)
                connection.execute(f"PRAGMA user_version = {self.version}")
                connection.execute("COMMIT")
            new.rename(self.path)
        except BaseException:
            new.unlink(missing_ok=True)
            raise
        directory = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def _lock(self) -> int:
        lock = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise self._in_use("another process holds its lock") from None
        return lock

    def _inspect(self, check: Callable[[sqlite3.Connection], T]) -> T:
        """Everything that can be checked without writing. Removes what SQLite itself put beside the file meanwhile."""
        beside = [_beside(self.path, "-shm"), _beside(self.path, "-wal")]
        strangers = [file for file in beside if not file.exists()]
        passed = False
        try:
            with closing(self.connect("mode=ro")) as connection:
                self._check_medium(connection)
                found = check(connection)
            passed = True
            return found
        except sqlite3.Error as error:
            if _is_busy(error):
                raise self._in_use(str(error)) from None
            raise self.damaged(error) from None
        except OSError as error:
            raise self._unopenable(error) from None
        finally:
            for file in strangers:
                if not passed:
                    file.unlink(missing_ok=True)

    def _check_medium(self, connection: sqlite3.Connection) -> None:
        """Raises what is wrong with the file whatever its records are."""
        if _pragma(connection, "application_id") != self.application_id:
            raise StoreDamaged(
                f"{self} is damaged: it is another program's database", next_step="choose another --data-dir"
            )
        version = format_version(connection)
        if version > self.version:
            raise StartupError(
                f"{self} was written by a newer RIK (format {version}; this one knows {self.version})",
                next_step="run that version of RIK, or choose another --data-dir",
            )
        if version < 1:
            raise self.damaged("it has no format version")
        if self.path.stat().st_size <= QUICK_CHECK_BYTES:
            found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            if found != "ok":
                raise self.damaged(found)
        # Reading `-shm` drops this process's locks on it, as POSIX has it; the lock on the file itself keeps others
        # out.
        damage = wal.find_damage(_beside(self.path, "-wal"), _beside(self.path, "-shm"))
        if damage:
            raise self.damaged(damage)

    def _open_for_writing(self, prepare: Callable[[sqlite3.Connection], None]) -> sqlite3.Connection:
        connection = self.connect()
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute(f"PRAGMA journal_size_limit = {self.max_idle_log_bytes}")
            connection.execute(f"PRAGMA cache_size = -{self.page_cache_kib}")
            prepare(connection)
        except sqlite3.Error as error:
            connection.close()
            if _is_busy(error):
                raise self._in_use(str(error)) from None
            raise StartupError(
                f"{self} cannot be written: {error}", next_step="check its permissions and the room on its disk"
            ) from None
        return connection

    def _unopenable(self, error: OSError) -> StartupError:
        return StartupError(
            f"{self} cannot be opened: {error.strerror or error}",
            next_step="check the path, its permissions and the room on its disk",
        )

    def _in_use(self, cause: str) -> StartupError:
        return StartupError(
            f"{self} is in use by another process: {cause}", next_step="stop it, or choose another --data-dir"
        )


def format_version(connection: sqlite3.Connection) -> int:
    return _pragma(connection, "user_version")


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])


def _connect(path: Path, query: str = "mode=rw") -> sqlite3.Connection:
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?{query}",
        uri=True,
        timeout=BUSY_TIMEOUT_S,
        isolation_level=None,
        check_same_thread=False,
    )


def _is_busy(error: sqlite3.Error) -> bool:
    # Extended codes carry the primary one in their lowest byte.
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _one_line(text: object) -> str:
    return " ".join(str(text).split())

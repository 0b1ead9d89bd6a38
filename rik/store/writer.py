"""The one thread that writes: whatever waits is written in one transaction, made durable by one fsync.

Within the transaction each job has a savepoint of its own, so that one that fails leaves nothing and the others are
not disturbed. When the transaction itself cannot be committed, each job is tried once more alone.
"""

from __future__ import annotations

import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import trio

from rik.errors import StoreUnavailable
from rik.store.records import Row

# Jobs that share a transaction: enough to make an fsync cheap, few enough that nobody waits long for the others.
GROUP_JOBS = 256
# The journal may exceed its length by this before it is cut, so that pages are freed by the run and not row by row.
PRUNE_SLACK = 1_000
# Rows dropped in one transaction: about 2 ms. It outpaces any writer, and a shortened journal shrinks step by step.
PRUNE_ROWS = 4_000


class Job:
    """Something to be written. `work` is called with the connection and the last revision; it returns the revision
    after it and the job's result."""

    def __init__(self, work: Callable[[sqlite3.Connection, int], tuple[int, Any]]) -> None:
        self.work = work
        self.result: Any = None
        self.error: Exception | None = None
        self.done = trio.Event()


class Writer:
    """Owns the write connection from `start` until `stop` has returned."""

    def __init__(self, path: Path, connection: sqlite3.Connection, revision: int, journal_revisions: int) -> None:
        self._path = path
        self._inode = path.stat().st_ino
        self._connection = connection
        self._revision = revision
        self._journal_revisions = journal_revisions
        self._oldest = connection.execute("SELECT min(revision) FROM journal").fetchone()[0] or revision + 1
        self._waiting: deque[Job] = deque()
        self._wake = threading.Condition()
        self._stopping = False
        self._token = trio.lowlevel.current_trio_token()
        self._thread = threading.Thread(target=self._run, name="rik-store-writer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(self, job: Job) -> None:
        """`job.done` is set when the job is durable or has failed."""
        with self._wake:
            if self._stopping:
                raise StoreUnavailable("the store is closed")
            self._waiting.append(job)
            self._wake.notify()

    def withdraw(self, job: Job) -> bool:
        """Takes a job back that has not been begun; whether that was so."""
        with self._wake:
            try:
                self._waiting.remove(job)
            except ValueError:
                return False
            return True

    def stop(self) -> None:
        """Blocks until everything that was submitted is done."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._waiting:
                    if self._stopping:
                        return
                    self._wake.wait()
                group = [self._waiting.popleft() for _ in range(min(len(self._waiting), GROUP_JOBS))]
            self._write(group)
            try:
                self._token.run_sync_soon(_tell, group)
            except trio.RunFinishedError:
                pass  # nobody is left who could be told

    def _write(self, group: Sequence[Job]) -> None:
        try:
            self._write_together(group)
        except Exception as error:  # noqa: BLE001 - every waiting job must hear of it, whatever it is
            self._roll_back()
            if len(group) == 1:
                group[0].error = error
                return
            for job in group:
                job.error = None
                self._write([job])

    def _write_together(self, group: Sequence[Job]) -> None:
        connection = self._connection
        self._check_path()
        connection.execute("BEGIN IMMEDIATE")
        revision = self._revision
        for job in group:
            connection.execute("SAVEPOINT job")
            try:
                revision, job.result = job.work(connection, revision)
            except Exception as error:
                if not connection.in_transaction:
                    raise  # SQLite gave up the whole transaction (a full disk)
                connection.execute("ROLLBACK TO job")
                job.error = error
            connection.execute("RELEASE job")
        if revision != self._revision:
            self._advance(revision)
        oldest = self._prune(revision)
        connection.execute("COMMIT")
        self._revision = revision
        self._oldest = oldest

    def _check_path(self) -> None:
        """SQLite would go on writing to a file that was removed, and everything acknowledged would be gone with it."""
        try:
            there = self._path.stat().st_ino == self._inode
        except OSError:
            there = False
        if not there:
            raise StoreUnavailable(
                f"the store {self._path} was removed or replaced while it was in use", next_step="restart RIK"
            )

    def _advance(self, revision: int) -> None:
        """Also notices whoever else writes to this file: revisions would be given twice."""
        cursor = self._connection.execute(
            "UPDATE meta SET value = ? WHERE key = 'revision' AND value = ?", (revision, self._revision)
        )
        if cursor.rowcount != 1:
            raise StoreUnavailable("another process has written to the store", next_step="stop one of them")

    def _prune(self, revision: int) -> int:
        """Drops the oldest part of the journal and its events when it is due; returns what is then the oldest."""
        oldest = self._oldest
        excess = revision - oldest + 1 - self._journal_revisions
        if excess < min(PRUNE_SLACK, self._journal_revisions):
            return oldest
        oldest += min(excess, PRUNE_ROWS)
        self._connection.execute("DELETE FROM journal WHERE revision < ?", (oldest,))
        self._connection.execute("DELETE FROM events WHERE revision < ?", (oldest,))
        return oldest

    def _roll_back(self) -> None:
        if self._connection.in_transaction:
            try:
                self._connection.execute("ROLLBACK")
            except sqlite3.Error:
                pass  # SQLite has rolled back by itself


def _tell(group: Sequence[Job]) -> None:
    for job in group:
        job.done.set()


def write_changes(connection: sqlite3.Connection, revision: int, rows: Sequence[Row]) -> int:
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

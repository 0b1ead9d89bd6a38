"""The one thread that writes to an SQLite file: whatever waits is written in one transaction, durable by one fsync.

Within the transaction each job has a savepoint of its own, so that one that fails leaves nothing and the others are
not disturbed. When the transaction itself cannot be committed, each job is tried once more alone.
"""

from __future__ import annotations

import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import trio

from rik.errors import StoreUnavailable

# Jobs that share a transaction: enough to make an fsync cheap, few enough that nobody waits long for the others.
GROUP_JOBS = 256

T = TypeVar("T")


class Owner(Protocol):
    """Whose file it is: what it adds to every transaction. Called in the writing thread."""

    def begin(self) -> None:
        """A transaction has begun; whatever was counted in one that failed is void."""
        ...

    def before_commit(self, connection: sqlite3.Connection) -> None:
        """Every job has written. What this raises undoes the transaction."""
        ...

    def after_commit(self) -> None:
        """It is durable, and nobody was told yet. Must not raise."""
        ...


class _Job:
    def __init__(self, work: Callable[[sqlite3.Connection], Any]) -> None:
        self.work = work
        self.result: Any = None
        self.error: Exception | None = None
        self.done = trio.Event()


class GroupCommit:
    """Has `connection` to itself from its making until `aclose` has returned, and does not close it. `name` is what
    messages call the file: "the store"."""

    def __init__(self, name: str, path: Path, connection: sqlite3.Connection, owner: Owner) -> None:
        self._name = f"{name} {path}"
        self._path = path
        self._inode = path.stat().st_ino
        self._connection = connection
        self._owner = owner
        self._waiting: deque[_Job] = deque()
        self._wake = threading.Condition()
        self._stopping = False
        self._token = trio.lowlevel.current_trio_token()
        self._thread = threading.Thread(target=self._run, name=f"rik-{path.stem}", daemon=True)
        self._thread.start()

    async def write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Returns what `work` returned, once that is durable.

        Raises StoreUnavailable when the medium refuses, and whatever else `work` raises; then nothing was written.
        Cancelled while it waits in line, nothing is written either; once its transaction has begun it goes on.
        """
        job = _Job(work)
        self._submit(job)
        try:
            await job.done.wait()
        except trio.Cancelled:
            self._withdraw(job)
            raise
        if isinstance(job.error, sqlite3.Error):
            raise StoreUnavailable(
                f"{self._name} cannot be written: {job.error}", next_step="check the room on its disk"
            ) from job.error
        if job.error is not None:
            raise job.error
        result: T = job.result
        return result

    async def aclose(self) -> None:
        """Waits until everything under way is done. Shielded: that takes milliseconds."""
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self._stop)

    def _submit(self, job: _Job) -> None:
        with self._wake:
            if self._stopping:
                raise StoreUnavailable(f"{self._name} is closed")
            self._waiting.append(job)
            self._wake.notify()

    def _withdraw(self, job: _Job) -> None:
        with self._wake:
            if job in self._waiting:
                self._waiting.remove(job)

    def _stop(self) -> None:
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

    def _write(self, group: Sequence[_Job]) -> None:
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

    def _write_together(self, group: Sequence[_Job]) -> None:
        connection = self._connection
        self._check_path()
        connection.execute("BEGIN IMMEDIATE")
        self._owner.begin()
        for job in group:
            connection.execute("SAVEPOINT job")
            try:
                job.result = job.work(connection)
            except Exception as error:
                if not connection.in_transaction:
                    raise  # SQLite gave up the whole transaction (a full disk)
                connection.execute("ROLLBACK TO job")
                job.error = error
            connection.execute("RELEASE job")
        self._owner.before_commit(connection)
        connection.execute("COMMIT")
        self._owner.after_commit()

    def _check_path(self) -> None:
        """SQLite would go on writing to a file that was removed, and everything acknowledged would be gone with it."""
        try:
            there = self._path.stat().st_ino == self._inode
        except OSError:
            there = False
        if not there:
            raise StoreUnavailable(f"{self._name} was removed or replaced while it was in use", next_step="restart RIK")

    def _roll_back(self) -> None:
        if self._connection.in_transaction:
            try:
                self._connection.execute("ROLLBACK")
            except sqlite3.Error:
                pass  # SQLite has rolled back by itself


def _tell(group: Sequence[_Job]) -> None:
    for job in group:
        job.done.set()

"""What a worker must know after a crash, without the primary: its identity, and what it has begun.

The intent is durable before the act, the outcome after it. `rik.worker.sqlitejournal` keeps it on disk, `MemoryJournal`
for simulations.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Protocol

import msgspec
import trio

from rik.errors import StoreUnavailable
from rik.messages import Assignment, Report, Stop
from rik.model.instance import Record


class Phase(StrEnum):
    """How far an instance has come, as far as it matters after a crash.

    ACCEPTED  the order is durable; preparing may be half done, nothing was executed
    STARTING  its commands may have been executed: they must never be executed again
    RUNNING   they were
    STOPPING  it is wanted gone
    REMOVING  how it ended is known and in `Entry.report`; what it leaves on the host is being removed
    """

    ACCEPTED = "accepted"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    REMOVING = "removing"


class Entry(Record, frozen=True):
    """One instance. `report` is the last state that is worth reporting after a restart, with every status it went
    through; its epoch and sequence are given when it is sent. `stop` is the wish to stop it, if there is one."""

    assignment: Assignment
    runtime: str
    report: Report
    phase: Phase = Phase.ACCEPTED
    stop: Stop | None = None

    @property
    def uid(self) -> str:
        return self.assignment.uid


class Opened(msgspec.Struct, frozen=True):
    """A journal's identity (`id`, made with it), how often it was opened (`epoch`, now included), whether the host was
    booted since `settle` was last called, and every instance that was not forgotten."""

    id: str
    epoch: int
    rebooted: bool
    entries: tuple[Entry, ...]


class Journal(Protocol):
    """Every method raises StoreUnavailable, with the cause, when the medium refuses; then nothing was written."""

    async def open(self, boot_id: str) -> Opened:
        """First of all. Raises StoreDamaged or StartupError, the file as it was."""
        ...

    async def settle(self, boot_id: str) -> None:
        """What the reboot ended has been taken care of."""
        ...

    async def put(self, entry: Entry) -> None:
        """Returns when it is durable. Cancelled, it may become durable or not; later puts win in any case."""
        ...

    async def forget(self, uid: str) -> None:
        """Drops it: its final status is durable elsewhere."""
        ...

    async def aclose(self) -> None:
        """Waits for what is under way. A closed journal can be opened again."""
        ...


class MemoryJournal:
    """No thread, no clock. Outlives workers, as a file would; `refuse(reason)` breaks the medium, `refuse("")` mends
    it.
    """

    def __init__(self, journal_id: str) -> None:
        self._id = journal_id
        self._epoch = 0
        self._boot_id = ""
        self._entries: dict[str, Entry] = {}
        self._refusal = ""

    def refuse(self, reason: str) -> None:
        self._refusal = reason

    def entries(self) -> dict[str, Entry]:
        """What is there now, by uid."""
        return dict(self._entries)

    async def open(self, boot_id: str) -> Opened:
        await self._write()
        self._epoch += 1
        rebooted = self._boot_id not in ("", boot_id)
        return Opened(self._id, self._epoch, rebooted, tuple(self._entries.values()))

    async def settle(self, boot_id: str) -> None:
        await self._write()
        self._boot_id = boot_id

    async def put(self, entry: Entry) -> None:
        await self._write()
        self._entries[entry.uid] = entry

    async def forget(self, uid: str) -> None:
        await self._write()
        self._entries.pop(uid, None)

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()

    async def _write(self) -> None:
        await trio.lowlevel.checkpoint()
        if self._refusal:
            raise StoreUnavailable(f"the worker's journal cannot be written: {self._refusal}")

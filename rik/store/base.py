"""What a store does, whatever holds it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from rik.model.change import Change, RecordedEvent
from rik.model.instance import Instance
from rik.model.node import Node
from rik.model.workload import Workload

DEFAULT_JOURNAL_REVISIONS = 100_000


class Compacted(Exception):
    """The revisions asked for are no longer kept; `oldest` is the oldest revision one can resume after."""

    def __init__(self, oldest: int) -> None:
        super().__init__(f"revisions up to {oldest} are no longer kept")
        self.oldest = oldest


class Loaded(msgspec.Struct, frozen=True):
    """Everything the scheduler keeps in memory, at `revision`."""

    cluster_id: str
    revision: int
    workloads: tuple[Workload, ...]
    instances: tuple[Instance, ...]
    nodes: tuple[Node, ...]


class Store(Protocol):
    """Raises StoreUnavailable whenever the medium refuses; what a failed commit held is not there afterwards."""

    async def load(self) -> Loaded:
        """The present state."""
        ...

    async def commit(self, changes: Sequence[Change]) -> int:
        """Makes a batch durable, all or nothing, under contiguous revisions; returns the last one.

        Every record of the batch is stored with its own revision. Commits that wait together share one fsync.
        """
        ...

    async def changes_since(self, revision: int, limit: int = 1000) -> list[Change]:
        """The changes after `revision`, oldest first, at most `limit`. Raises Compacted."""
        ...

    async def postmortem(self, name_or_uid: str, namespace: str | None = None) -> Instance | None:
        """By uid exactly that one, by name the latest."""
        ...

    async def events(
        self, *, uid: str = "", since: int = 0, namespace: str = "", limit: int = 1000
    ) -> list[RecordedEvent]:
        """Events after revision `since`, oldest first: of one instance, or of all. With a limit: the latest ones."""
        ...

    async def purge_postmortems(self, ended_before: int, keep: int) -> int:
        """Drops those that ended before that time or exceed the newest `keep`; returns how many."""
        ...

    async def aclose(self) -> None:
        """Waits for what is under way."""
        ...

"""Cluster state in memory, for simulations: same contract, nothing survives, no thread and no clock."""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Sequence

import trio

from rik.errors import StoreUnavailable
from rik.model.change import DELETE, POSTMORTEM, PUT, Change, Object, RecordedEvent
from rik.model.instance import Instance
from rik.model.node import Node
from rik.model.workload import Workload
from rik.store.base import DEFAULT_JOURNAL_REVISIONS, Compacted, Loaded
from rik.store.records import at_revision, check


class MemoryStore:
    """See `rik.store.base.Store`.

    `commit_s` is how long a commit takes; `refuse(reason)` makes every commit fail with that cause until
    `refuse("")`: the medium that a simulation breaks and mends.
    """

    name = "memory"

    def __init__(
        self,
        *,
        journal_revisions: int = DEFAULT_JOURNAL_REVISIONS,
        new_cluster_id: str = "",
        commit_s: float = 0.0,
    ) -> None:
        self.cluster_id = new_cluster_id or secrets.token_hex(16)
        self._commit_s = commit_s
        self._refusal = ""
        self._revision = 0
        self._objects: dict[tuple[str, str], Object] = {}
        self._journal: deque[Change] = deque(maxlen=journal_revisions)
        self._postmortems: dict[str, Instance] = {}
        self._closed = False

    def refuse(self, reason: str) -> None:
        self._refusal = reason

    async def load(self) -> Loaded:
        await trio.lowlevel.checkpoint()
        objects = sorted(self._objects.values(), key=lambda value: value.revision)
        return Loaded(
            cluster_id=self.cluster_id,
            revision=self._revision,
            workloads=tuple(value for value in objects if isinstance(value, Workload)),
            instances=tuple(value for value in objects if isinstance(value, Instance)),
            nodes=tuple(value for value in objects if isinstance(value, Node)),
        )

    async def commit(self, changes: Sequence[Change]) -> int:
        """Cancelled before the end, nothing of the batch is there."""
        self._check(changes)
        await trio.sleep(self._commit_s)
        if self._refusal or self._closed:
            raise StoreUnavailable(f"the store cannot be written: {self._refusal or 'it is closed'}")
        self._check(changes)
        for change in changes:
            self._apply(change)
        return self._revision

    def _check(self, changes: Sequence[Change]) -> None:
        new = set(self._postmortems)
        for change in changes:
            check(change)
            if change.kind == POSTMORTEM and change.op == PUT:
                if change.key in new:
                    raise ValueError(f"the post-mortem of {change.key} is written already, and never changes")
                new.add(change.key)

    def _apply(self, change: Change) -> None:
        self._revision += 1
        value = at_revision(change.value, self._revision)
        self._journal.append(
            Change(
                kind=change.kind,
                op=change.op,
                key=change.key,
                value=value,
                at=change.at,
                before=change.before,
                event=change.event,
                revision=self._revision,
            )
        )
        if change.kind == POSTMORTEM:
            if isinstance(value, Instance) and change.op == PUT:
                self._postmortems[change.key] = value
            else:
                self._postmortems.pop(change.key, None)
        elif change.op == DELETE:
            self._objects.pop((change.kind, change.key), None)
        else:
            self._objects[change.kind, change.key] = value

    async def changes_since(self, revision: int, limit: int = 1000) -> list[Change]:
        await trio.lowlevel.checkpoint()
        kept_after = self._journal[0].revision - 1 if self._journal else self._revision
        if revision < kept_after:
            raise Compacted(kept_after)
        start = revision - kept_after
        return [self._journal[index] for index in range(start, min(start + limit, len(self._journal)))]

    async def postmortem(self, name_or_uid: str, namespace: str | None = None) -> Instance | None:
        await trio.lowlevel.checkpoint()
        within = [value for value in self._postmortems.values() if namespace is None or value.namespace == namespace]
        exact = next((value for value in within if value.uid == name_or_uid), None)
        return exact or next((value for value in reversed(within) if value.name == name_or_uid), None)

    async def events(
        self, *, uid: str = "", since: int = 0, namespace: str = "", limit: int = 1000
    ) -> list[RecordedEvent]:
        await trio.lowlevel.checkpoint()
        found = [
            RecordedEvent(revision=change.revision, at=change.at, event=change.event)
            for change in self._journal
            if change.event is not None
            and change.revision > since
            and uid in ("", change.event.uid)
            and namespace in ("", change.event.namespace)
        ]
        return found[-limit:] if limit > 0 else []

    async def purge_postmortems(self, ended_before: int, keep: int) -> int:
        await trio.lowlevel.checkpoint()
        newest = sorted(self._postmortems.values(), key=lambda value: value.updated_at, reverse=True)
        gone = [value for number, value in enumerate(newest) if number >= keep or value.updated_at < ended_before]
        for value in gone:
            del self._postmortems[value.uid]
        return len(gone)

    async def aclose(self) -> None:
        self._closed = True
        await trio.lowlevel.checkpoint()

"""The read model: what is committed, indexed for the API's questions, and the latest changes for those who watch.

A `View` is written by the session alone, from one task, and never awaits; readers see it between two changes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import msgspec
import trio

from rik.messages import Committed, LiveNode, LiveProgress, Snapshot
from rik.model import change as changes
from rik.model.change import Change
from rik.model.instance import Instance, Progress, Status
from rik.model.node import Node, NodeStatus
from rik.model.public import render_instance, render_instance_in_full, requested_resources
from rik.model.resources import Resources
from rik.model.workload import Workload

# A frame with a larger text (long lines in its log tail) is made for each watcher, so that few of them fill no memory.
LARGEST_KEPT_CHARS = 32_768

IN_CREATION = frozenset({Status.PENDING, Status.CREATING})


class Frame:
    """One change as it is sent to every watcher; the text is made once, when the first of them wants it."""

    __slots__ = ("_leaving", "_text", "change")

    def __init__(self, change: Change) -> None:
        self.change = change
        self._text: str | None = None
        self._leaving: str | None = None

    @property
    def text(self) -> str:
        """`{"type":"instance",…}`; a final status comes with everything that is known of the instance."""
        if self._text is not None:
            return self._text
        text = self._render(self.change.op)
        if len(text) <= LARGEST_KEPT_CHARS:
            self._text = text
        return text

    @property
    def text_of_leaving(self) -> str:
        """The same as a delete, for those whose filter matched before this change and no longer does."""
        if self._leaving is None:
            self._leaving = self._render(changes.DELETE)
        return self._leaving

    def _render(self, op: str) -> str:
        record = self.change.value
        assert isinstance(record, Instance)
        shown = render_instance_in_full(record) if record.status.final else render_instance(record)
        frame = {"type": "instance", "revision": self.change.revision, "op": op, "instance": shown}
        return msgspec.json.encode(frame).decode()


class View:
    """Everything there is, at `revision`, and the last `kept` instance changes.

    `epoch` counts the snapshots: a watcher that notices a new one must fetch what it missed from the store. `floor` is
    the revision after which every change of an instance is in `recent`.
    """

    def __init__(self, kept: int) -> None:
        self.revision = 0
        self.epoch = 0
        self.floor = 0
        self.recent: deque[Frame] = deque()
        self.workloads: dict[str, Workload] = {}
        self.instances: dict[str, Instance] = {}
        self.nodes: dict[str, Node] = {}
        self.progress: dict[str, Progress] = {}
        self._kept = kept
        self._uid_of: dict[tuple[str, str], str] = {}
        self._uids_of_workload: dict[str, dict[str, None]] = {}
        self._workload_named: dict[tuple[str, str], str] = {}
        self._summaries: dict[str, bytes] = {}
        self._requested: dict[str, Resources] = {}
        self._changed = trio.Event()

    # --- written by the session ---

    def reset(self, snapshot: Snapshot) -> None:
        """Starts over from a snapshot; changes between the last revision and this one were not seen here."""
        self.workloads = {record.id: record for record in snapshot.workloads}
        self.nodes = {record.id: record for record in snapshot.nodes}
        self._workload_named = {(record.namespace, record.name): record.id for record in snapshot.workloads}
        self.instances = {}
        self._uid_of = {}
        self._uids_of_workload = {}
        self._summaries = {}
        self._requested = {}
        self.progress = {}
        for record in snapshot.instances:
            self._put_instance(record)
        self.recent.clear()
        self.revision = self.floor = snapshot.revision
        self.epoch += 1
        self.wake()

    def apply(self, committed: Committed) -> None:
        """Takes over changes; what an earlier snapshot already held is passed over."""
        for change in committed.changes:
            if change.revision <= self.revision:
                continue
            self._apply(change)
            self.revision = change.revision
        self.wake()

    def take_progress(self, live: LiveProgress) -> bool:
        """Whether it is news: only instances in creation have progress."""
        record = self.instances.get(live.uid)
        if record is None or record.status not in IN_CREATION or self.progress.get(live.uid) == live.progress:
            return False
        self.progress[live.uid] = live.progress
        return True

    def take_heartbeat(self, live: LiveNode) -> None:
        """The node's record with its latest heartbeat; the next change of the record takes its place."""
        node = self.nodes.get(live.id)
        if node is not None:
            self.nodes[live.id] = msgspec.structs.replace(node, heartbeat_at=live.heartbeat_at, metrics=live.metrics)

    def _apply(self, change: Change) -> None:
        record = change.value
        if change.kind == changes.INSTANCE and isinstance(record, Instance):
            if change.op == changes.PUT:
                self._put_instance(record)
            else:
                self._drop_instance(record)
            self.recent.append(Frame(change))
            while len(self.recent) > self._kept:
                self.floor = self.recent.popleft().change.revision
        elif change.kind == changes.WORKLOAD and isinstance(record, Workload):
            if change.op == changes.PUT:
                self.workloads[record.id] = record
                self._workload_named[record.namespace, record.name] = record.id
            else:
                self.workloads.pop(record.id, None)
                if self._workload_named.get((record.namespace, record.name)) == record.id:
                    del self._workload_named[record.namespace, record.name]
        elif change.kind == changes.NODE and isinstance(record, Node):
            if change.op == changes.PUT:
                known = self.nodes.get(record.id)
                if known is not None and known.heartbeat_at > record.heartbeat_at:
                    record = msgspec.structs.replace(record, heartbeat_at=known.heartbeat_at, metrics=known.metrics)
                self.nodes[record.id] = record
            else:
                self.nodes.pop(record.id, None)

    def _put_instance(self, record: Instance) -> None:
        self.instances[record.uid] = record
        self._uid_of[record.namespace, record.name] = record.uid
        self._uids_of_workload.setdefault(record.workload_id, {})[record.uid] = None
        self._summaries.pop(record.uid, None)
        if record.status not in IN_CREATION:
            self.progress.pop(record.uid, None)

    def _drop_instance(self, record: Instance) -> None:
        self.instances.pop(record.uid, None)
        if self._uid_of.get((record.namespace, record.name)) == record.uid:
            del self._uid_of[record.namespace, record.name]
        uids = self._uids_of_workload.get(record.workload_id)
        if uids is not None:
            uids.pop(record.uid, None)
            if not uids:
                del self._uids_of_workload[record.workload_id]
        self._summaries.pop(record.uid, None)
        self._requested.pop(record.uid, None)
        self.progress.pop(record.uid, None)

    def wake(self) -> None:
        """Has every watcher look again."""
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    # --- read by everybody ---

    def changed(self) -> trio.Event:
        """Set at the next change; take it before looking, then wait."""
        return self._changed

    def workload(self, id_or_name: str, namespace: str) -> Workload | None:
        """An id wins over a name."""
        return self.workloads.get(id_or_name) or self.workloads.get(
            self._workload_named.get((namespace, id_or_name), "")
        )

    def instance(self, name_or_uid: str, namespace: str) -> Instance | None:
        """A name wins over a uid."""
        return self.instances.get(self._uid_of.get((namespace, name_or_uid), name_or_uid))

    def node(self, id_or_name: str) -> Node | None:
        """An id wins over a name; of several nodes of one name (a reinstalled host), a ready one, then the newest."""
        found = self.nodes.get(id_or_name)
        if found is not None:
            return found
        named = [node for node in self.nodes.values() if node.name == id_or_name]
        return max(named, key=lambda node: (node.status is NodeStatus.READY, node.created_at), default=None)

    def instances_of(self, workload_id: str) -> list[Instance]:
        """Oldest first."""
        return sorted((self.instances[uid] for uid in self._uids_of_workload.get(workload_id, ())), key=order)

    def summary(self, record: Instance) -> msgspec.Raw:
        """The summary as JSON, kept until the record changes; with live progress made afresh."""
        live = self.progress.get(record.uid)
        if live is not None:
            return msgspec.Raw(msgspec.json.encode(render_instance(record, live)))
        kept = self._summaries.get(record.uid)
        if kept is None:
            kept = msgspec.json.encode(render_instance(record))
            if self.instances.get(record.uid) is record:
                self._summaries[record.uid] = kept
        return msgspec.Raw(kept)

    def allocated(self) -> dict[str, tuple[Resources, int]]:
        """Per node id what its instances that are not final ask for together, and how many they are."""
        totals: dict[str, tuple[Resources, int]] = {}
        for record in self.instances.values():
            if not record.node_id or record.status.final:
                continue
            wanted = self._requested.get(record.uid)
            if wanted is None:
                wanted = self._requested[record.uid] = requested_resources(record)
            total, count = totals.get(record.node_id, (Resources(), 0))
            totals[record.node_id] = (total + wanted, count + 1)
        return totals

    def since(self, revision: int) -> Iterator[Frame]:
        """The kept changes of instances after `revision` (which must not be before `floor`), oldest first."""
        newer: list[Frame] = []
        for frame in reversed(self.recent):
            if frame.change.revision <= revision:
                break
            newer.append(frame)
        return reversed(newer)


def order(record: Instance) -> tuple[int, str]:
    """The order of lists: by age, the uid deciding among equals."""
    return record.created_at, record.uid

"""All cluster state in memory, indexed for the scheduler's questions. Nothing here waits or decides.

Every change goes through `put` or `delete`, which give it the next revision, the one that the store will give it too,
because nobody else commits.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator

import msgspec

from rik.model.change import DELETE, NODE, POSTMORTEM, PUT, WORKLOAD, Change, Event
from rik.model.instance import Instance, Status
from rik.model.node import Node
from rik.model.resources import Resources
from rik.model.workload import Spec, Workload, parse_spec
from rik.scheduler.lifecycle import Step, backstop_at
from rik.scheduler.placement import Holder, NodePort, Room, chosen_ports, claimed_ports
from rik.store.base import Loaded


class Allocation:
    """What the instances of one node that are not final have together."""

    def __init__(self) -> None:
        self.used = Resources()
        self.uids: dict[str, None] = {}
        self.ports: dict[NodePort, Holder] = {}


class State:
    """`deadlines` are found by `due`; margins in seconds as in SchedulerSettings."""

    def __init__(self, loaded: Loaded, creating_margin_s: float, destroying_margin_s: float) -> None:
        self.revision = loaded.revision
        self.workloads: dict[str, Workload] = {}
        self.instances: dict[str, Instance] = {}
        self.nodes: dict[str, Node] = {}
        self.pending: dict[str, None] = {}
        self.finished: dict[str, None] = {}
        self.allocations: dict[str, Allocation] = {}
        self._margins_s = (creating_margin_s, destroying_margin_s)
        self._workload_named: dict[tuple[str, str], str] = {}
        self._instance_named: dict[tuple[str, str], str] = {}
        self._of_workload: dict[str, dict[str, None]] = {}
        self._node_named: dict[str, str] = {}
        self._specs: dict[str, Spec] = {}
        self._deadlines: list[tuple[int, str]] = []
        for workload in loaded.workloads:
            self._index_workload(workload)
        for node in loaded.nodes:
            self._index_node(node)
        order = sorted(loaded.instances, key=lambda one: one.updated_at if one.status.final else one.created_at)
        for instance in order:
            self._index_instance(self._with_shared_spec(instance))

    # --- questions ---

    def workload(self, name_or_id: str, namespace: str) -> Workload | None:
        found = self.workloads.get(name_or_id)
        if found is None or found.namespace != namespace:
            found = self.workloads.get(self._workload_named.get((namespace, name_or_id), ""))
        return found

    def instance(self, name_or_uid: str, namespace: str) -> Instance | None:
        found = self.instances.get(name_or_uid)
        if found is None or found.namespace != namespace:
            found = self.instances.get(self._instance_named.get((namespace, name_or_uid), ""))
        return found

    def is_taken(self, namespace: str, name: str) -> bool:
        """Whether a listed instance has this name."""
        return (namespace, name) in self._instance_named

    def node_named(self, name: str) -> Node | None:
        return self.nodes.get(self._node_named.get(name, ""))

    def of_workload(self, workload_id: str) -> list[Instance]:
        return [self.instances[uid] for uid in self._of_workload.get(workload_id, ())]

    def on_node(self, node_id: str) -> list[Instance]:
        """Those that are not final."""
        allocation = self.allocations.get(node_id)
        return [self.instances[uid] for uid in allocation.uids] if allocation else []

    def spec(self, of: Instance | Workload) -> Spec:
        """Parsed once for a workload and all its instances: documents never change."""
        workload_id = of.id if isinstance(of, Workload) else of.workload_id
        spec = self._specs.get(workload_id)
        if spec is None:
            raw = of.document["spec"] if isinstance(of, Workload) else of.spec
            spec = self._specs[workload_id] = parse_spec(of.kind, raw)
        return spec

    def rooms(self, without: Instance | None = None) -> Iterator[Room]:
        """Every node as placement sees it; `without` is taken to be nowhere."""
        for node in self.nodes.values():
            allocation = self.allocations[node.id]
            if without is not None and without.uid in allocation.uids:
                ports = {key: holder for key, holder in allocation.ports.items() if holder.uid != without.uid}
                used = allocation.used - self.spec(without).resources
                yield Room(node, used, len(allocation.uids) - 1, ports)
            else:
                yield Room(node, allocation.used, len(allocation.uids), allocation.ports)

    def due(self, now: int) -> list[Instance]:
        """Instances whose present deadline has passed; each is returned once, and again only if `postpone`d."""
        found = []
        while self._deadlines and self._deadlines[0][0] <= now:
            at, uid = heapq.heappop(self._deadlines)
            instance = self.instances.get(uid)
            if instance is not None and backstop_at(instance, *self._margins_s) == at:
                found.append(instance)
        return found

    def postpone(self, instance: Instance) -> None:
        """Its deadline has passed, but somebody else will end it; it comes up again at the next `due`."""
        heapq.heappush(self._deadlines, (backstop_at(instance, *self._margins_s), instance.uid))

    # --- changes ---

    def put_workload(self, workload: Workload, at: int, event: Event | None = None) -> Change:
        value = msgspec.structs.replace(workload, revision=self._next())
        self._index_workload(value)
        return Change(WORKLOAD, PUT, value.id, value, at, event=event, revision=value.revision)

    def delete_workload(self, workload: Workload, at: int, event: Event | None = None) -> Change:
        del self.workloads[workload.id]
        del self._workload_named[workload.namespace, workload.name]
        self._drop_unused_spec(workload.id)
        value = msgspec.structs.replace(workload, revision=self._next())
        return Change(WORKLOAD, DELETE, value.id, value, at, event=event, revision=value.revision)

    def put_node(self, node: Node, at: int, event: Event | None = None) -> Change:
        value = msgspec.structs.replace(node, revision=self._next())
        self._index_node(value)
        return Change(NODE, PUT, value.id, value, at, event=event, revision=value.revision)

    def delete_node(self, node: Node, at: int, event: Event | None = None) -> Change:
        """Its instances must have become final before."""
        del self.nodes[node.id]
        del self.allocations[node.id]
        if self._node_named.get(node.name) == node.id:
            del self._node_named[node.name]
        value = msgspec.structs.replace(node, revision=self._next())
        return Change(NODE, DELETE, value.id, value, at, event=event, revision=value.revision)

    def take(self, steps: Iterable[Step], at: int) -> list[Change]:
        """The steps of one instance, in order, as changes."""
        changes = []
        before: Instance | None = None
        for step in steps:
            # What an earlier step of the same run was given as its revision belongs to what was "before".
            before = before if before is not None and step.before is not None else step.before
            value = msgspec.structs.replace(step.value, revision=self._next())
            changes.append(Change(step.kind, step.op, value.uid, value, at, before, step.event, value.revision))
            if step.kind == POSTMORTEM:
                continue
            if step.op == PUT:
                self._index_instance(value)
                before = value
            else:
                self._drop_instance(value)
        return changes

    def _next(self) -> int:
        self.revision += 1
        return self.revision

    def _index_workload(self, workload: Workload) -> None:
        self.workloads[workload.id] = workload
        self._workload_named[workload.namespace, workload.name] = workload.id

    def _index_node(self, node: Node) -> None:
        old = self.nodes.get(node.id)
        if old is not None and old.name != node.name and self._node_named.get(old.name) == node.id:
            del self._node_named[old.name]
        self.nodes[node.id] = node
        self._node_named[node.name] = node.id
        self.allocations.setdefault(node.id, Allocation())

    def _index_instance(self, instance: Instance) -> None:
        uid = instance.uid
        old = self.instances.get(uid)
        self.instances[uid] = instance
        if old is None:
            self._instance_named[instance.namespace, instance.name] = uid
            self._of_workload.setdefault(instance.workload_id, {})[uid] = None
        self._allocate(old, instance)
        if instance.status == Status.PENDING:
            self.pending[uid] = None
        else:
            self.pending.pop(uid, None)
        if instance.status.final:
            self.finished[uid] = None
        deadline = backstop_at(instance, *self._margins_s)
        if deadline and (old is None or backstop_at(old, *self._margins_s) != deadline):
            heapq.heappush(self._deadlines, (deadline, uid))

    def _drop_instance(self, instance: Instance) -> None:
        old = self.instances.pop(instance.uid)
        self._allocate(old, None)
        self._instance_named.pop((instance.namespace, instance.name), None)
        self.pending.pop(instance.uid, None)
        self.finished.pop(instance.uid, None)
        siblings = self._of_workload[instance.workload_id]
        del siblings[instance.uid]
        if not siblings:
            del self._of_workload[instance.workload_id]
            self._drop_unused_spec(instance.workload_id)

    def _drop_unused_spec(self, workload_id: str) -> None:
        if workload_id not in self.workloads and workload_id not in self._of_workload:
            self._specs.pop(workload_id, None)

    def _with_shared_spec(self, instance: Instance) -> Instance:
        """The workload's own dictionary instead of an equal one for each instance."""
        workload = self.workloads.get(instance.workload_id)
        if workload is None or workload.document["spec"] != instance.spec:
            return instance
        return msgspec.structs.replace(instance, spec=workload.document["spec"])

    # --- allocation ---

    def _allocate(self, old: Instance | None, new: Instance | None) -> None:
        held = old if old is not None and _holds(old) else None
        holds = new if new is not None and _holds(new) else None
        if held is not None and holds is not None and _same_hold(held, holds):
            return
        if held is not None:
            self._release(held)
        if holds is not None:
            self._claim(holds)

    def _claim(self, instance: Instance) -> None:
        allocation = self.allocations.setdefault(instance.node_id, Allocation())
        spec = self.spec(instance)
        allocation.used += spec.resources
        allocation.uids[instance.uid] = None
        holder = Holder(instance.uid, instance.name, leaving=instance.status == Status.DESTROYING)
        for key in claimed_ports(spec) | chosen_ports(instance.ports):
            allocation.ports.setdefault(key, holder)

    def _release(self, instance: Instance) -> None:
        allocation = self.allocations[instance.node_id]
        spec = self.spec(instance)
        allocation.used -= spec.resources
        del allocation.uids[instance.uid]
        for key in claimed_ports(spec) | chosen_ports(instance.ports):
            holder = allocation.ports.get(key)
            if holder is not None and holder.uid == instance.uid:
                del allocation.ports[key]


def _holds(instance: Instance) -> bool:
    return bool(instance.node_id) and not instance.status.final


def _same_hold(old: Instance, new: Instance) -> bool:
    leaving = Status.DESTROYING
    return (
        old.node_id == new.node_id and (old.status == leaving) == (new.status == leaving) and (old.ports == new.ports)
    )

"""Nodes: their hello and what both sides then know of each other, their reports, and their silence."""

from __future__ import annotations

import logging

import msgspec

from rik.messages import Forget, Hello, Order, Report, Reports, Stop, Welcome
from rik.model.change import Event
from rik.model.instance import Instance, Progress, Status
from rik.model.node import Node, NodeStatus
from rik.scheduler import lifecycle
from rik.scheduler.leases import Leases
from rik.scheduler.ledger import Ledger
from rik.scheduler.lifecycle import Step
from rik.scheduler.sessions import NodeSession

log = logging.getLogger("rik.scheduler")


class Nodes:
    """`sessions` (by node id), `leases` and `progress` (by uid) are the scheduler's: they outlive a reload."""

    def __init__(
        self, ledger: Ledger, sessions: dict[str, NodeSession], leases: Leases, progress: dict[str, Progress]
    ) -> None:
        self._ledger = ledger
        self._progress = progress
        self._state = ledger.state
        self._sessions = sessions
        self._leases = leases
        # The last (epoch, sequence) that was taken in from a worker, by uid of the instance.
        self._last: dict[str, tuple[int, int]] = {}

    # --- hello ---

    def greet(self, session: NodeSession, hello: Hello, clock: float) -> None:
        """Takes the node in, or rejects it; then both sides converge on what the inventory and the records say."""
        refusal = self._objection(session, hello, clock)
        if refusal:
            log.warning("node %s is rejected: %s", hello.node.name, refusal)
            self._ledger.batch.rejections.append((session, refusal))
            return
        namesake = self._state.node_named(hello.node.name)
        if namesake is not None and namesake.id != hello.journal_id:
            self._replace(namesake)
        known = self._state.nodes.get(hello.journal_id)
        restored = known is not None and hello.epoch < known.epoch
        other = self._sessions.get(hello.journal_id)
        if other is not None and other is not session:
            other.close()
        session.node_id = hello.journal_id
        session.epoch = max(hello.epoch, known.epoch if known is not None else 0)
        self._sessions[hello.journal_id] = session
        self._leases.hear(hello.journal_id, clock)
        self._register(hello, known)
        self._converge(session, hello, restored)

    def _objection(self, session: NodeSession, hello: Hello, clock: float) -> str:
        if not hello.journal_id or not hello.node.name:
            return "a node must say its name and the identity of its journal"
        if session.node_id and session.node_id != hello.journal_id:
            return "this session belongs to another node already"
        namesake = self._state.node_named(hello.node.name)
        if namesake is None or namesake.id == hello.journal_id:
            return ""
        other = self._sessions.get(namesake.id)
        if other is not None and not other.closed and self._leases.valid(namesake.id, clock):
            return (
                f"there is a connected node {hello.node.name!r} already, with another data directory: "
                "give this one another name by --node"
            )
        return ""

    def _replace(self, old: Node) -> None:
        """A new journal under an old name is a new node: what the old one held is beyond reach."""
        message = f"node {old.name} came back with a new data directory: what it ran before is unknown to it"
        for instance in self._state.on_node(old.id):
            self._ledger.take(lifecycle.lose(instance, message, self._ledger.now))
        session = self._sessions.pop(old.id, None)
        if session is not None:
            session.close()
        self._leases.forget(old.id)
        event = _told(old, "Replaced", message, lifecycle.WARNING)
        self._ledger.batch.changes.append(self._state.delete_node(old, self._ledger.now, event))

    def _register(self, hello: Hello, known: Node | None) -> None:
        now = self._ledger.now
        said = hello.node
        node = Node(
            id=hello.journal_id,
            name=said.name,
            status=NodeStatus.READY,
            roles=said.roles,
            labels=said.labels,
            capabilities=said.capabilities,
            capacity=said.capacity,
            version=said.version,
            epoch=max(hello.epoch, known.epoch if known else 0),
            boot_id=said.boot_id,
            cordoned=known.cordoned if known else False,
            created_at=known.created_at if known else now,
            heartbeat_at=now,
        )
        if known is None:
            event = _told(node, "Registered", f"node {node.name} has joined")
        elif known.status != NodeStatus.READY:
            event = _told(node, "Ready", f"node {node.name} is heard again")
        elif _same(known, node):
            return
        else:
            event = _told(node, "Ready", f"node {node.name} has said hello")
        self._ledger.batch.changes.append(self._state.put_node(node, now, event))
        self._ledger.room_appeared = True
        if known is not None and known.name != node.name:
            for instance in self._state.on_node(node.id):
                record = msgspec.structs.replace(instance, node=node.name, updated_at=now)
                self._ledger.take([lifecycle.changed(instance, record)])
        self._refresh(node.id)

    def _converge(self, session: NodeSession, hello: Hello, restored: bool) -> None:
        held: dict[str, Report] = {}
        for report in sorted(hello.inventory, key=lambda report: (report.epoch, report.sequence)):
            held[report.uid] = report
        # Before this inventory is taken in: what this worker is known to have acknowledged earlier, by a report then.
        mine = self._state.on_node(session.node_id)
        acknowledged = {instance.uid for instance in mine if instance.uid in self._last or instance.step}
        if restored:  # its numbers begin again below those that were seen
            for instance in mine:
                self._last.pop(instance.uid, None)
        session.held = set(held)
        acknowledgements: dict[str, int] = {}
        orders: list[Order] = []
        for report in held.values():
            if not self._report(session, report):
                continue
            acknowledgements[report.uid] = report.sequence
            order = self._reply(session, report)
            if order is not None:
                orders.append(order)
        for instance in self._state.on_node(session.node_id):
            if instance.uid not in held:
                may_start = instance.status == Status.CREATING and not restored and instance.uid not in acknowledged
                if not may_start:
                    self._ledger.take(lifecycle.miss(instance, self._ledger.now))
                    continue
            if instance.status == Status.DESTROYING and instance.deleted:
                orders.append(Stop(instance.uid))
            else:
                orders.append(self._ledger.run_order(instance))
        batch = self._ledger.batch
        batch.welcomes.append((session, Welcome(session.node_id, tuple(orders))))
        if acknowledgements:
            batch.acknowledgements.append((session, acknowledgements))

    # --- reports ---

    def hear_reports(self, session: NodeSession, reports: Reports) -> None:
        acknowledgements: dict[str, int] = {}
        for report in reports.reports:
            if not self._report(session, report):
                continue
            acknowledgements[report.uid] = max(report.sequence, acknowledgements.get(report.uid, 0))
            order = self._reply(session, report)
            if order is not None:
                self._ledger.order(session.node_id, order)
        if acknowledgements:
            self._ledger.batch.acknowledgements.append((session, acknowledgements))

    def _reply(self, session: NodeSession, report: Report) -> Order | None:
        """What its worker is told upon a report: to forget what is over, to stop what is not wanted."""
        if report.status.final:
            return Forget(report.uid)
        instance = self._state.instances.get(report.uid)
        if instance is None or instance.node_id != session.node_id:
            return Stop(report.uid)
        if not instance.status.final:
            return None
        return Stop(report.uid, instance.reason, instance.message if instance.reason else "")

    def _report(self, session: NodeSession, report: Report) -> bool:
        """Takes a report over, if it is about an instance of this node and news. False for nonsense, which is not
        acknowledged either."""
        if report.epoch > session.epoch or report.epoch < 0 or report.sequence < 0 or not report.uid:
            log.warning(
                "node %s reports %r with epoch %d and sequence %d, which cannot be; it is ignored",
                session.node_id,
                report.uid,
                report.epoch,
                report.sequence,
            )
            return False
        instance = self._state.instances.get(report.uid)
        if instance is None:
            return True
        if instance.node_id != session.node_id:
            log.warning(
                "node %s reports on instance %s, which was never given to it; it is ignored",
                session.node_id,
                report.uid,
            )
            return True
        if (report.epoch, report.sequence) > self._last.get(report.uid, (-1, -1)):
            self._last[report.uid] = (report.epoch, report.sequence)
            self._ledger.take(self._observe(instance, report))
        if report.uid not in self._state.instances or self._state.instances[report.uid].status.final:
            self._last.pop(report.uid, None)
        return True

    def _observe(self, instance: Instance, report: Report) -> list[Step]:
        now = self._ledger.now
        try:
            return lifecycle.observe(instance, self._state.spec(instance), report, now)
        except Exception as error:
            log.exception("a report on instance %s could not be taken in", instance.uid)
            return lifecycle.break_down(instance, error, now)

    def never_reached(self, uid: str) -> None:
        """It was to be stopped before its worker had been told of it."""
        instance = self._state.instances.get(uid)
        if instance is not None and instance.status == Status.DESTROYING:
            self._ledger.take(lifecycle.miss(instance, self._ledger.now))

    # --- silence ---

    def heard(self, node_id: str) -> None:
        """A message came from a node that had been given up on."""
        node = self._state.nodes.get(node_id)
        if node is None or node.status == NodeStatus.READY:
            return
        now = self._ledger.now
        ready = msgspec.structs.replace(node, status=NodeStatus.READY, heartbeat_at=now)
        event = _told(ready, "Ready", f"node {node.name} is heard again")
        self._ledger.batch.changes.append(self._state.put_node(ready, now, event))
        self._ledger.room_appeared = True
        self._refresh(node_id)

    def check(self, clock: float) -> None:
        """Marks what has been silent for longer than a lease, and gives up what has been for much longer."""
        for node_id in self._leases.run_out(clock):
            node = self._state.nodes.get(node_id)
            if node is None:
                self._leases.forget(node_id)
            elif node.status == NodeStatus.READY:
                self._suspect(node)
        for node_id in self._leases.lost(clock):
            node = self._state.nodes.get(node_id)
            if node is not None:
                message = f"node {node.name} has not been heard of for too long; if it returns, the instance is stopped"
                for instance in self._state.on_node(node_id):
                    self._ledger.take(lifecycle.lose(instance, message, self._ledger.now))

    def expire(self) -> None:
        """Ends what has outstayed its deadline; what is on a silent node is left to the lease."""
        now = self._ledger.now
        for instance in self._state.due(now):
            node = self._state.nodes.get(instance.node_id)
            if node is not None and node.status == NodeStatus.NOT_READY:
                self._state.postpone(instance)
            else:
                progress = self._progress.get(instance.uid)
                self._ledger.take(lifecycle.expire(instance, now, progress.step if progress else ""))

    def _suspect(self, node: Node) -> None:
        now = self._ledger.now
        silent = msgspec.structs.replace(node, status=NodeStatus.NOT_READY)
        event = _told(
            silent, "NotReady", f"nothing has been heard of node {node.name} for a whole lease", lifecycle.WARNING
        )
        self._ledger.batch.changes.append(self._state.put_node(silent, now, event))
        for instance in self._state.on_node(node.id):
            self._ledger.take(lifecycle.go_stale(instance, now, now))

    def _refresh(self, node_id: str) -> None:
        for instance in self._state.on_node(node_id):
            self._ledger.take(lifecycle.come_back(instance, self._ledger.now))


def _same(old: Node, new: Node) -> bool:
    live = msgspec.structs.replace(new, revision=old.revision, heartbeat_at=old.heartbeat_at, metrics=old.metrics)
    return live == old


def _told(node: Node, reason: str, message: str, kind: str = lifecycle.NORMAL) -> Event:
    return Event(object=f"node/{node.name}", type=kind, reason=reason, message=message, node=node.name)

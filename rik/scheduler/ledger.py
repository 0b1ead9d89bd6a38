"""What has been decided and is not durable yet: the state that runs ahead, and the batch that will make it true."""

from __future__ import annotations

from collections.abc import Iterable

from rik.environment import Environment
from rik.messages import Answer, Order, Run, Snapshot, Stop, Welcome
from rik.model.change import POSTMORTEM, PUT, Change
from rik.model.instance import Instance, Reason, Status
from rik.scheduler.lifecycle import Step, assignment
from rik.scheduler.sessions import ApiSession, NodeSession
from rik.scheduler.state import State

# Reasons by which the scheduler ends what a worker may still hold.
ENDED_HERE = (Reason.DEADLINE_EXCEEDED, Reason.DESTROY_FAILED, Reason.NODE_LOST, Reason.INTERNAL_ERROR)


class Batch:
    """Changes, and what may leave only once they are durable: in this order frames, answers, then nodes' messages.

    `asked` are the requests that wait for it; `nodes` the sessions whose messages it took in.
    """

    def __init__(self) -> None:
        self.changes: list[Change] = []
        self.newcomers: list[tuple[ApiSession, Snapshot]] = []
        self.answers: list[tuple[ApiSession, Answer]] = []
        self.rejections: list[tuple[NodeSession, str]] = []
        self.welcomes: list[tuple[NodeSession, Welcome]] = []
        self.acknowledgements: list[tuple[NodeSession, dict[str, int]]] = []
        self.orders: list[tuple[str, Order]] = []
        self.nodes: dict[NodeSession, None] = {}

    @property
    def empty(self) -> bool:
        return not (
            self.changes
            or self.newcomers
            or self.answers
            or self.rejections
            or self.welcomes
            or self.acknowledgements
            or self.orders
        )


class Ledger:
    """Every decision is recorded here. `now` is the time of what is being handled."""

    def __init__(self, environment: Environment, state: State) -> None:
        self.environment = environment
        self.state = state
        self.batch = Batch()
        self.room_appeared = False

    @property
    def now(self) -> int:
        return self.environment.now()

    def take(self, steps: Iterable[Step]) -> Instance | None:
        """Records the steps of one instance and gives the orders that follow; the last record, None when nothing
        changed."""
        changes = self.state.take(steps, self.now)
        self.batch.changes += changes
        last: Instance | None = None
        for change in changes:
            record = change.value
            if change.kind == POSTMORTEM or not isinstance(record, Instance):
                continue
            last = record
            before = change.before
            if record.node_id and record.status.final and before is not None and not before.status.final:
                self.room_appeared = True
            if change.op == PUT:
                self._order(before, record)
        return last

    def order(self, node_id: str, order: Order) -> None:
        self.batch.orders.append((node_id, order))

    def snapshot(self) -> Snapshot:
        state = self.state
        return Snapshot(
            revision=state.revision,
            workloads=tuple(state.workloads.values()),
            instances=tuple(state.instances.values()),
            nodes=tuple(state.nodes.values()),
        )

    def run_order(self, instance: Instance) -> Run:
        return Run(assignment(instance, self.state.spec(instance)))

    def _order(self, before: Instance | None, record: Instance) -> None:
        """A worker is told what the scheduler itself decided; what it reported it knows."""
        previous = before.status if before is not None else None
        if record.status == Status.CREATING and previous == Status.PENDING:
            self.order(record.node_id, self.run_order(record))
        elif record.status == Status.DESTROYING and record.deleted and (before is None or not before.deleted):
            self.order(record.node_id, Stop(record.uid))
        elif record.node_id and record.status == Status.FAILED and record.reason in ENDED_HERE:
            self.order(record.node_id, Stop(record.uid, record.reason, record.message))

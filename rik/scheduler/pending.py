"""Gives Pending instances a node, the oldest first, or says why there is none yet."""

from __future__ import annotations

import logging

from rik.model.instance import Instance, Status
from rik.scheduler import lifecycle
from rik.scheduler.ledger import Ledger
from rik.scheduler.placement import Demand, Impossible, Outcome, Placed, Waiting, place

log = logging.getLogger("rik.scheduler")

# Instances placed in one turn of the scheduler: about 20 ms, so that messages are not kept waiting.
PER_TURN = 500
# What it costs, in instances placed, to pass over one that its siblings' refusal settles.
PASSED_OVER = 0.01
# A Pending instance's message is renewed at most this often: with many of them every release would cost a commit each.
MESSAGE_INTERVAL_S = 5.0


class Placer:
    """`wanted` says that a pass over all Pending instances is due; a pass may take several turns."""

    def __init__(self, ledger: Ledger, policy: str) -> None:
        self.policy = policy
        self.wanted = True
        self._ledger = ledger
        self._waiting: list[str] = []
        self._refused: dict[str, Outcome] = {}

    @property
    def busy(self) -> bool:
        """Whether another turn is needed."""
        return self.wanted or bool(self._waiting)

    def turn(self) -> None:
        """Looks at the next few. What one instance of a workload was refused, its siblings are refused too, without
        asking again: within a pass room only shrinks."""
        state = self._ledger.state
        if self._ledger.room_appeared:
            self._ledger.room_appeared = False
            self.wanted = True
        if self.wanted:
            self.wanted = False
            self._waiting = list(reversed(state.pending))
            self._refused = {}
        cost = 0.0
        while self._waiting and cost < PER_TURN:
            instance = state.instances.get(self._waiting.pop())
            if instance is not None and instance.status == Status.PENDING:
                cost += 1 if self._settle(instance) else PASSED_OVER

    def _settle(self, instance: Instance) -> bool:
        """Whether there was anything to do."""
        state, ledger = self._ledger.state, self._ledger
        spec = state.spec(instance)
        now = ledger.now
        outcome = self._refused.get(instance.workload_id)
        if outcome is None:
            try:
                outcome = place(Demand.of(spec), state.rooms(), self.policy)
            except Exception as error:
                log.exception("instance %s could not be placed", instance.uid)
                ledger.take(lifecycle.break_down(instance, error, now))
                return True
        match outcome:
            case Placed(node=node, decision=decision):
                ledger.take(lifecycle.place(instance, spec, node, decision, now))
            case Impossible(reason=reason, message=message):
                self._refused[instance.workload_id] = outcome
                ledger.take(lifecycle.end(instance, Status.FAILED, reason, message, now))
            case Waiting(message=message):
                self._refused[instance.workload_id] = outcome
                first = len(instance.history) == 1 and instance.updated_at == instance.created_at
                late = now - instance.updated_at >= lifecycle.millis(MESSAGE_INTERVAL_S)
                return (first or late) and ledger.take(lifecycle.wait(instance, message, now)) is not None
        return True

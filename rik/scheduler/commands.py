"""The api's commands: validated against the state, decided, recorded. After `Refused` nothing was recorded."""

from __future__ import annotations

from typing import Any

import msgspec

from rik.errors import BadRequest, Conflict, NotFound
from rik.messages import Command, CreateInstances, CreateWorkload, DeleteInstance, DeleteWorkload, Explain
from rik.model.change import Event
from rik.model.instance import Instance, Status
from rik.model.limits import MAX_REPLICAS, NAME
from rik.model.workload import Workload, parse_spec
from rik.scheduler import lifecycle
from rik.scheduler.ledger import Ledger
from rik.scheduler.pending import Placer
from rik.scheduler.placement import Demand, Impossible, Placed, Waiting, explain, place

# Document times replicas of one request; 10,000 instances of an ordinary document (2 KB) are a third of it.
MAX_BYTES_AT_ONCE = 64 * 2**20


class Commands:
    """Runs commands; each answer is what `rik.messages` says for the command."""

    def __init__(self, ledger: Ledger, placer: Placer) -> None:
        self._ledger = ledger
        self._state = ledger.state
        self._placer = placer

    def run(self, command: Command) -> Any:
        match command:
            case CreateWorkload():
                return self._create_workload(command)
            case DeleteWorkload():
                return self._delete_workload(command)
            case CreateInstances():
                return self._create_instances(command)
            case DeleteInstance():
                return self._delete_instance(command)
            case Explain():
                return self._explain(command)

    def _create_workload(self, command: CreateWorkload) -> str:
        ledger, state = self._ledger, self._state
        name = str(command.document["name"])
        known = state.workload(name, command.namespace)
        if known is not None and known.name == name:
            raise Conflict(
                f"there is a workload {name!r} already",
                next_step=f"choose another name, or `rik delete workload {name}` first",
            )
        now = ledger.now
        workload = Workload(
            id=ledger.environment.uid(),
            name=name,
            namespace=command.namespace,
            document=command.document,
            created_at=now,
        )
        try:
            parse_spec(workload.kind, command.document["spec"])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            # Whoever checked the document should have seen it; what cannot be read must not get into the store.
            raise BadRequest(f"the spec of workload {name!r} cannot be read: {error!r}") from None
        ledger.batch.changes.append(state.put_workload(workload, now, _told(workload, "Created", "created")))
        return workload.id

    def _delete_workload(self, command: DeleteWorkload) -> None:
        ledger, state = self._ledger, self._state
        workload = self._workload(command.workload, command.namespace)
        for instance in state.of_workload(workload.id):
            ledger.take(lifecycle.delete(instance, state.spec(instance), ledger.now))
        event = _told(workload, "Deleted", "deleted, and its instances with it")
        ledger.batch.changes.append(state.delete_workload(workload, ledger.now, event))

    def _create_instances(self, command: CreateInstances) -> list[str]:
        ledger, state = self._ledger, self._state
        if not 1 <= command.replicas <= MAX_REPLICAS:
            raise BadRequest(f"replicas must be between 1 and {MAX_REPLICAS}, not {command.replicas}")
        if command.name and command.replicas > 1:
            raise BadRequest(
                f"one name cannot be given to {command.replicas} instances", next_step="leave out the name or replicas"
            )
        if command.name and not NAME.fullmatch(command.name):
            raise BadRequest(
                f"{command.name[:80]!r} is no name: 1 to 63 of a-z, 0-9 and -, with a letter or digit at both ends"
            )
        workload = self._workload(command.workload, command.namespace)
        if command.name and state.is_taken(workload.namespace, command.name):
            raise Conflict(
                f"there is an instance {command.name!r} already",
                next_step=f"choose another name, or `rik delete instance {command.name}` first",
            )
        self._refuse_too_much(workload, command.replicas)
        spec = state.spec(workload)
        names = []
        for _ in range(command.replicas):
            name = command.name or self._new_name(workload.namespace)
            names.append(name)
            ledger.take(lifecycle.accept(workload, spec, ledger.environment.uid(), name, ledger.now))
        self._placer.wanted = True
        return names

    def _refuse_too_much(self, workload: Workload, replicas: int) -> None:
        """Every instance carries its spec through several changes, each of them stored: a request must not be able to
        turn one large document into gigabytes."""
        if replicas == 1:
            return
        size = len(msgspec.json.encode(workload.document))
        if size * replicas > MAX_BYTES_AT_ONCE:
            raise BadRequest(
                f"{replicas} instances of a document of {size:,} bytes are too much for one request: at most"
                f" {MAX_BYTES_AT_ONCE:,} bytes in all",
                next_step="create fewer at a time, or make the document smaller",
            )

    def _new_name(self, namespace: str) -> str:
        while True:
            name = self._ledger.environment.name()
            if not self._state.is_taken(namespace, name):
                return name

    def _delete_instance(self, command: DeleteInstance) -> None:
        instance = self._instance(command.instance, command.namespace)
        self._ledger.take(lifecycle.delete(instance, self._state.spec(instance), self._ledger.now))

    def _explain(self, command: Explain) -> dict[str, Any]:
        """What the contract calls `instances.explain`: the decision taken, and every node's answer at this moment."""
        state = self._state
        instance = self._instance(command.instance, command.namespace)
        demand = Demand.of(state.spec(instance))
        policy = self._placer.policy
        match place(demand, state.rooms(instance), policy):
            case Placed(decision=decision):
                now = decision
            case Waiting(message=message) | Impossible(message=message):
                now = message
        return {
            "id": instance.name,
            "instance": instance.name,
            "uid": instance.uid,
            "status": instance.status.value,
            "reason": instance.reason,
            "message": instance.message,
            "node": instance.node,
            "decision": instance.decision or (instance.message if instance.status == Status.PENDING else ""),
            "now": now,
            "policy": policy,
            "nodes": [
                {
                    "name": verdict.node.name,
                    "fits": verdict.fits,
                    "why": verdict.why,
                    "allocated": round(abs(verdict.score[0]), 4),
                    "instances": abs(verdict.score[1]),
                }
                for verdict in explain(demand, state.rooms(instance), policy)
            ],
        }

    def _workload(self, name_or_id: str, namespace: str) -> Workload:
        found = self._state.workload(name_or_id, namespace)
        if found is None:
            raise NotFound(f"there is no workload {name_or_id[:80]!r}", next_step="see `rik get workloads`")
        return found

    def _instance(self, name_or_uid: str, namespace: str) -> Instance:
        found = self._state.instance(name_or_uid, namespace)
        if found is None:
            raise NotFound(f"there is no instance {name_or_uid[:80]!r}", next_step="see `rik get instances`")
        return found


def _told(workload: Workload, reason: str, what: str) -> Event:
    return Event(
        object=f"workload/{workload.name}",
        type=lifecycle.NORMAL,
        reason=reason,
        message=f"the workload {workload.name} was {what}",
        namespace=workload.namespace,
    )

"""What becomes of an instance. Pure: from a record, what happened, and the time, to the records that follow.

Every function returns steps: each is the next record of one instance, with the event to tell, to be committed as one
change; an empty list means that nothing changes. What does not follow by `Status.can_follow` is dropped here.

The steps to a final status end with what the final status brings along: a post-mortem, and for an instance that was
to be deleted the removal of its record.
"""

from __future__ import annotations

from typing import Any

import msgspec

from rik.messages import Assignment, Report
from rik.model.change import DELETE, INSTANCE, POSTMORTEM, PUT, Event
from rik.model.instance import ContainerState, Instance, Reason, Status, Transition
from rik.model.node import Node
from rik.model.workload import Spec, Workload
from rik.scheduler.images import tell_of_use
from rik.settings import DESTROY_S

NORMAL = "Normal"
WARNING = "Warning"
# The reason of the event that tells of an image.
PULLED = "Pulled"

# What is said of a status when its worker says nothing.
UNEXPLAINED = {
    Status.RUNNING: "every command was executed and is alive",
    Status.DESTROYING: "being stopped",
}


class Step(msgspec.Struct, frozen=True):
    """One change to come, of an instance or (kind postmortem) of its post-mortem."""

    kind: str
    op: str
    value: Instance
    before: Instance | None = None
    event: Event | None = None


def accept(workload: Workload, spec: Spec, uid: str, name: str, at: int, message: str = "") -> list[Step]:
    """A new instance, Pending; `message` says what it waits for."""
    record = Instance(
        uid=uid,
        name=name,
        kind=workload.kind,
        namespace=workload.namespace,
        workload_id=workload.id,
        workload=workload.name,
        spec=workload.document["spec"],
        created_at=at,
        updated_at=at,
        message=message or "accepted, and about to be placed",
        deadline_at=at + millis(spec.pending_s),
        history=(Transition(Status.PENDING, at, message or "accepted"),),
        containers=tuple(ContainerState(container.name, container.image) for container in spec.containers),
    )
    return [Step(INSTANCE, PUT, record, None, _event(record, Status.PENDING.value, record.message))]


def wait(instance: Instance, message: str, at: int) -> list[Step]:
    """Still Pending, for a reason that has changed."""
    if instance.status != Status.PENDING or instance.message == message:
        return []
    record = msgspec.structs.replace(instance, message=message, updated_at=at)
    return [Step(INSTANCE, PUT, record, instance)]


def place(instance: Instance, spec: Spec, node: Node, decision: str, at: int) -> list[Step]:
    """Pending becomes Creating on `node`."""
    if not Status.CREATING.can_follow(instance.status):
        return []
    return _advance(
        instance,
        Status.CREATING,
        at,
        f"placed on node {node.name}",
        node=node.name,
        node_id=node.id,
        decision=decision,
        placed_at=at,
        deadline_at=at + millis(spec.creating_s),
    )


def observe(instance: Instance, spec: Spec, report: Report, now: int) -> list[Step]:
    """Takes over what a worker reports: one step for each status it went through that can follow, in order; one step
    without a status when only what was observed has changed. Before them one for each image that is first heard of."""
    steps = _given_images(instance, report, now)
    record = steps[-1].value if steps else instance
    passed = list(report.transitions)
    if not passed or passed[-1].status != report.status:
        passed.append(Transition(report.status, now, report.message))
    for transition in passed[:-1]:
        if transition.status.can_follow(record.status) and not transition.status.final:
            at = _clamp(record, transition.at, now)
            steps += _observed(record, transition.status, at, transition.message, spec)
            record = steps[-1].value
    last = passed[-1]
    if report.status.can_follow(record.status):
        at = _clamp(record, last.at, now)
        message = report.message or last.message
        observed = _observations(record, report)
        if report.status.final:
            reason = report.reason
            if report.status == Status.FAILED and not reason:
                reason = record.reason or Reason.INTERNAL_ERROR.value
            steps += end(record, report.status, reason, message, at, **observed)
        else:
            steps += _observed(record, report.status, at, message, spec, reason=report.reason, **observed)
    elif report.status == record.status and not record.status.final:
        observed = _observations(record, report)
        if report.status != Status.DESTROYING or not record.deleted:  # what was deleted is stopped for that reason
            observed |= {"reason": report.reason, "message": report.message or record.message}
        if record.step and record.status == Status.CREATING:
            observed["step"] = record.step  # how far it came is told live; that it was begun is known already
        updated = msgspec.structs.replace(record, **observed)
        if updated != record:
            steps.append(Step(INSTANCE, PUT, msgspec.structs.replace(updated, updated_at=now), record))
    return steps


def end(
    instance: Instance, status: Status, reason: str, message: str, at: int, *, step: str = "", **fields: Any
) -> list[Step]:
    """The final status, its post-mortem, and the removal of a record that was to be deleted.

    A deleted instance is Terminated whatever its exit codes were; only what went wrong with the deletion itself
    (DestroyFailed, NodeLost) stays Failed.
    """
    if not status.can_follow(instance.status):
        return []
    if instance.deleted and status == Status.FAILED and reason not in (Reason.DESTROY_FAILED, Reason.NODE_LOST):
        status, reason, message = Status.TERMINATED, "", "deleted"
    elif instance.deleted and status == Status.TERMINATED:
        reason, message = "", message or "deleted"
    if status == Status.TERMINATED and not message:
        message = "completed: every container exited 0"
    last_step = step or (instance.step if status == Status.FAILED else "")
    steps = _advance(
        instance,
        status,
        at,
        message,
        reason=str(reason),
        deadline_at=0,
        stale_since=None,
        step=last_step,
        **fields,
    )
    record = steps[-1].value
    steps.append(Step(POSTMORTEM, PUT, record))
    if record.deleted:
        steps.append(Step(INSTANCE, DELETE, record, record))
    return steps


def delete(instance: Instance, spec: Spec, at: int) -> list[Step]:
    """The wish to have it gone. The caller orders the worker to stop what becomes (or stays) Destroying."""
    if instance.status.final:
        return [Step(INSTANCE, DELETE, instance, instance)]
    if instance.deleted:
        return []
    if instance.status == Status.PENDING:
        marked = msgspec.structs.replace(instance, deleted=True)
        steps = end(marked, Status.TERMINATED, "", "deleted before it was placed", at)
        return [msgspec.structs.replace(steps[0], before=instance), *steps[1:]]
    if instance.status == Status.DESTROYING:
        record = msgspec.structs.replace(instance, deleted=True, updated_at=at)
        return [Step(INSTANCE, PUT, record, instance)]
    return _advance(
        instance,
        Status.DESTROYING,
        at,
        "being stopped: it was deleted",
        deleted=True,
        deadline_at=_destroying_deadline(spec, at),
    )


def remove(instance: Instance) -> list[Step]:
    """A final record that has been listed for long enough."""
    return [Step(INSTANCE, DELETE, instance, instance)] if instance.status.final else []


def expire(instance: Instance, now: int, progress_step: str = "") -> list[Step]:
    """What the passing of its deadline makes of it. `progress_step` is how far its creation was last seen to be."""
    if instance.status == Status.PENDING:
        since = _duration(now - instance.created_at)
        return end(instance, Status.FAILED, Reason.UNSCHEDULABLE, f"no node for {since}: {instance.message}", now)
    if instance.status == Status.CREATING:
        step = progress_step or instance.step
        where = f"it was still in the step {step!r}" if step else "its worker never said how far it came"
        since = _duration(now - instance.placed_at)
        message = f"not running {since} after it was placed on node {instance.node}: {where}"
        return end(instance, Status.FAILED, Reason.DEADLINE_EXCEEDED, message, now, step=step)
    if instance.status == Status.DESTROYING:
        message = (
            f"node {instance.node} has not said in time that nothing of it is left; "
            f"its worker keeps trying, and `rik audit --node {instance.node}` names what remains"
        )
        if instance.reason:
            message = f"{message}; it was being stopped because: {instance.reason}: {instance.message}"
        return end(instance, Status.FAILED, Reason.DESTROY_FAILED, message, now)
    return []


def backstop_at(instance: Instance, creating_margin_s: float, destroying_margin_s: float) -> int:
    """When the scheduler itself ends the present status; 0 is never. A worker is given time to do so before."""
    if instance.status == Status.CREATING:
        return instance.deadline_at + millis(creating_margin_s)
    if instance.status == Status.DESTROYING:
        return instance.deadline_at + millis(destroying_margin_s)
    return instance.deadline_at if instance.status == Status.PENDING else 0


def go_stale(instance: Instance, since: int, at: int) -> list[Step]:
    """Its node is silent: what was observed stays, and it is said since when nothing is known."""
    if instance.status.final or instance.stale_since is not None:
        return []
    record = msgspec.structs.replace(instance, stale_since=since, updated_at=at)
    message = f"node {instance.node} is silent; {instance.status.value} is what was last known"
    return [Step(INSTANCE, PUT, record, instance, _event(record, Reason.NODE_UNREACHABLE, message, WARNING))]


def come_back(instance: Instance, at: int) -> list[Step]:
    """Its node is heard again."""
    if instance.status.final or instance.stale_since is None:
        return []
    record = msgspec.structs.replace(instance, stale_since=None, updated_at=at)
    return [Step(INSTANCE, PUT, record, instance)]


def lose(instance: Instance, message: str, at: int) -> list[Step]:
    """Given up with its node."""
    return end(instance, Status.FAILED, Reason.NODE_LOST, message, at)


def miss(instance: Instance, at: int) -> list[Step]:
    """Its worker, asked for all it holds, does not hold it."""
    if instance.status == Status.DESTROYING and instance.deleted:
        return end(instance, Status.TERMINATED, "", "deleted", at)
    if instance.status == Status.DESTROYING and instance.reason:
        return end(instance, Status.FAILED, instance.reason, instance.message, at)
    message = f"the worker on node {instance.node} no longer knows of it: how it ended cannot be told"
    return end(instance, Status.FAILED, Reason.STOPPED_WITHOUT_STATUS, message, at)


def break_down(instance: Instance, error: Exception, at: int) -> list[Step]:
    """A bug in RIK ends the one instance whose handling it broke."""
    message = f"RIK itself failed while it handled this instance: {error!r}"
    return end(instance, Status.FAILED, Reason.INTERNAL_ERROR, message, at)


def changed(before: Instance, record: Instance) -> Step:
    """A change that is none of its status."""
    return Step(INSTANCE, PUT, record, before)


def assignment(instance: Instance, spec: Spec) -> Assignment:
    """What its worker is told."""
    return Assignment(
        uid=instance.uid,
        name=instance.name,
        namespace=instance.namespace,
        workload=instance.workload,
        kind=instance.kind,
        spec=instance.spec,
        creating_deadline_at=instance.placed_at + millis(spec.creating_s),
        node_id=instance.node_id,
    )


def millis(seconds: float) -> int:
    return round(seconds * 1000)


def _observed(
    instance: Instance, status: Status, at: int, message: str, spec: Spec, *, reason: str = "", **fields: Any
) -> list[Step]:
    deadline = _destroying_deadline(spec, at) if status == Status.DESTROYING else 0
    return _advance(
        instance, status, at, message or UNEXPLAINED.get(status, ""), reason=reason, deadline_at=deadline, **fields
    )


def _given_images(instance: Instance, report: Report, now: int) -> list[Step]:
    """A step, and an event, for each image; a worker names them all at once, when the instance was prepared."""
    if instance.images or instance.status.final:
        return []
    steps: list[Step] = []
    record = instance
    at = _clamp(instance, report.transitions[-1].at if report.transitions else now, now)
    for count, image in enumerate(report.images, 1):
        before = record
        record = msgspec.structs.replace(before, images=report.images[:count], updated_at=max(at, before.updated_at))
        steps.append(Step(INSTANCE, PUT, record, before, _event(record, PULLED, tell_of_use(image, now))))
    return steps


def _observations(instance: Instance, report: Report) -> dict[str, Any]:
    """What a report shows, keeping what it leaves out."""
    return {
        "containers": report.containers or instance.containers,
        "ip": report.ip or instance.ip,
        "ports": report.ports or instance.ports,
        "enforced": report.enforced or instance.enforced,
        "images": report.images or instance.images,
        "log_tail": report.log_tail or instance.log_tail,
        "step": report.step if report.status == Status.RUNNING else report.step or instance.step,
    }


def _advance(instance: Instance, status: Status, at: int, message: str, **fields: Any) -> list[Step]:
    record = msgspec.structs.replace(
        instance,
        status=status,
        message=message,
        updated_at=at,
        history=(*instance.history, Transition(status, at, message)),
        **fields,
    )
    kind = WARNING if status == Status.FAILED or (status == Status.DESTROYING and record.reason) else NORMAL
    return [Step(INSTANCE, PUT, record, instance, _event(record, record.reason or status.value, message, kind))]


def _event(record: Instance, reason: str, message: str, kind: str = NORMAL) -> Event:
    return Event(
        object=f"instance/{record.name}",
        type=kind,
        reason=str(reason),
        message=message,
        namespace=record.namespace,
        node=record.node,
        uid=record.uid,
    )


def _destroying_deadline(spec: Spec, at: int) -> int:
    return at + millis(spec.stop_grace_s + DESTROY_S)


def _clamp(instance: Instance, at: int, now: int) -> int:
    """A worker's clock may be wrong: its times stay between the last one known and now."""
    last = instance.history[-1].at if instance.history else instance.created_at
    return max(last, min(at, now))


def _duration(elapsed_ms: int) -> str:
    seconds = max(elapsed_ms, 0) / 1000
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"

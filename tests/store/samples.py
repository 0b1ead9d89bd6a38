"""Objects and changes to fill a store with."""

from __future__ import annotations

from rik.model.change import Change, Event
from rik.model.instance import Instance, Status, Transition
from rik.model.node import Node
from rik.model.workload import Workload

AT = 1_700_000_000_000
SPEC = {"containers": [{"name": "main", "image": "host", "command": ["sleep", "1000"]}]}


def workload(number: int = 1) -> Workload:
    name = f"hello-{number}"
    document = {"apiVersion": "v1", "kind": "Pod", "name": name, "replicas": 1, "spec": SPEC}
    return Workload(id=f"w{number}", name=name, namespace="default", document=document, created_at=AT)


def instance(number: int = 1, status: Status = Status.PENDING, *, name: str = "", at: int = AT) -> Instance:
    return Instance(
        uid=f"u{number}",
        name=name or f"cobra-citer-{number}",
        kind="Pod",
        namespace="default",
        workload_id="w1",
        workload="hello-1",
        spec=SPEC,
        created_at=AT,
        updated_at=at,
        status=status,
        history=(Transition(status, at, "so it is"),),
    )


def node(number: int = 1) -> Node:
    return Node(id=f"n{number}", name=f"host-{number}", created_at=AT, labels={"zone": "a"})


def put(value: Workload | Instance | Node, *, before: Instance | None = None, event: Event | None = None) -> Change:
    kind = type(value).__name__.lower()
    key = value.uid if isinstance(value, Instance) else value.id
    return Change(kind=kind, op="put", key=key, value=value, at=AT, before=before, event=event)


def delete(value: Workload | Instance | Node) -> Change:
    kind = type(value).__name__.lower()
    key = value.uid if isinstance(value, Instance) else value.id
    return Change(kind=kind, op="delete", key=key, value=value, at=AT)


def postmortem(value: Instance) -> Change:
    return Change(kind="postmortem", op="put", key=value.uid, value=value, at=AT)


def event(uid: str = "u1", *, message: str = "it was accepted", namespace: str = "default") -> Event:
    return Event(
        object=f"instance/{uid}", type="Normal", reason="Pending", message=message, namespace=namespace, uid=uid
    )

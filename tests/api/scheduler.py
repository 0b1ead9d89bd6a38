"""The scheduler's and a worker's end of the api's links, speaking the real messages, with a real store behind them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec
import trio

from rik.errors import StoreUnavailable
from rik.link.base import Link, LinkClosed, Stream
from rik.link.local import link_pair
from rik.link.switchboard import Switchboard
from rik.messages import (
    Answer,
    Command,
    Committed,
    CreateInstances,
    CreateWorkload,
    DeleteInstance,
    DeleteWorkload,
    Explain,
    FromWorker,
    LiveNode,
    LiveProgress,
    Request,
    Snapshot,
    StreamRequest,
    ToApi,
    ToScheduler,
    ToWorker,
)
from rik.model.change import DELETE, INSTANCE, NODE, POSTMORTEM, PUT, WORKLOAD, Change, Event
from rik.model.instance import ContainerState, Instance, LogLine, Progress, Status, Transition
from rik.model.node import Capability, Node
from rik.model.resources import Resources
from rik.model.workload import Workload
from rik.store.memory import MemoryStore

NOW = 1_790_000_000_123
SPEC = {
    "containers": [{"name": "main", "image": "host", "command": ["/bin/true"]}],
    "resources": {"cpu": "500m", "memory": "64Mi"},
}
DOCUMENT = {"apiVersion": "v1", "kind": "Pod", "name": "hello", "spec": SPEC}

StreamHandler = Callable[[StreamRequest, Stream], Awaitable[None]]


def instance(number: int, status: Status = Status.RUNNING, **fields: Any) -> Instance:
    """The record of the `number`-th instance, as a scheduler would have written it."""
    values: dict[str, Any] = {
        "uid": f"uid{number:017d}",
        "name": f"instance-{number}",
        "kind": "Pod",
        "namespace": "default",
        "workload_id": "workload-id",
        "workload": "hello",
        "spec": SPEC,
        "created_at": NOW + number,
        "updated_at": NOW + number,
        "status": status,
        "history": (Transition(Status.PENDING, NOW), Transition(status, NOW + 1, "so it went")),
        "node": "node-a" if status is not Status.PENDING else "",
        "node_id": "node-id-a" if status is not Status.PENDING else "",
        "containers": (ContainerState("main", "host", "running", started_at=NOW),),
        "log_tail": (LogLine("main", "stdout", NOW, "last words"),),
    }
    return Instance(**{**values, **fields})


NODE_A = Node(
    id="node-id-a",
    name="node-a",
    roles=("worker",),
    labels={"disk": "ssd"},
    capabilities=(Capability("process", True, "as root", ("Pod",), {"cpu": True, "memory": "no writable cgroup"}),),
    capacity=Resources(2000, 2**31, 1000),
    version="0.1.0",
    boot_id="boot",
    created_at=NOW,
    heartbeat_at=NOW,
    metrics={"cpu_percent": 3.5},
)


class Scheduler:
    """As much of a scheduler as the api can tell: it makes changes durable, then says so, then answers."""

    def __init__(self, journal_revisions: int = 100_000) -> None:
        self.store = MemoryStore(journal_revisions=journal_revisions)
        self.requests: list[Command] = []
        self.deaf = False
        self._workloads: dict[str, Workload] = {}
        self._instances: dict[str, Instance] = {}
        self._nodes: dict[str, Node] = {}
        self._links: list[Link[ToApi, ToScheduler]] = []
        self._nursery: trio.Nursery | None = None
        self._count = 0

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            await trio.sleep_forever()

    async def connect(self) -> Link[ToScheduler, ToApi]:
        """A new session of the api, which begins with a snapshot."""
        theirs: Link[ToScheduler, ToApi]
        ours: Link[ToApi, ToScheduler]
        theirs, ours = link_pair()
        assert self._nursery is not None
        self._nursery.start_soon(self._serve, ours)
        return theirs

    def hang_up(self) -> None:
        """Ends every session; the api may open new ones."""
        for link in self._links:
            link.close()

    async def commit(self, *changes: Change) -> int:
        """Durable, then told to every api; returns the last revision."""
        last = await self.store.commit(changes)
        committed = await self.store.changes_since(last - len(changes), len(changes))
        for change in committed:
            self._apply(change)
        self._tell(Committed(tuple(committed)))
        return last

    async def put(self, *records: Instance) -> int:
        """Instances, new or changed; a final one's post-mortem is written too."""
        changes: list[Change] = []
        for record in records:
            before = self._instances.get(record.uid)
            event = Event(
                f"instance/{record.name}", "Normal", record.status.value, "so it is", record.namespace, "", record.uid
            )
            changes.append(Change(INSTANCE, PUT, record.uid, record, NOW, before, event))
            if record.status.final and not (before and before.status.final):
                changes.append(Change(POSTMORTEM, PUT, record.uid, record, NOW))
        return await self.commit(*changes)

    async def put_silently(self, record: Instance) -> None:
        """Durable, but told to nobody: as if the api had fallen behind."""
        await self.store.commit([Change(INSTANCE, PUT, record.uid, record, NOW)])
        self._instances[record.uid] = record

    async def begin_anew(self) -> None:
        """Another snapshot within the same sessions."""
        loaded = await self.store.load()
        self._tell(Snapshot(loaded.revision, loaded.workloads, loaded.instances, loaded.nodes))

    async def remove(self, uid: str) -> int:
        record = self._instances[uid]
        return await self.commit(Change(INSTANCE, DELETE, uid, record, NOW, record))

    async def add_node(self, node: Node = NODE_A) -> int:
        return await self.commit(Change(NODE, PUT, node.id, node, NOW))

    def progress(self, uid: str, progress: Progress) -> None:
        self._tell(LiveProgress(uid, progress))

    def heartbeat(self, node_id: str, at: int, metrics: dict[str, Any]) -> None:
        self._tell(LiveNode(node_id, at, metrics))

    def _tell(self, message: ToApi) -> None:
        for link in list(self._links):
            try:
                link.send_nowait(message)
            except (LinkClosed, trio.WouldBlock):
                self._links.remove(link)

    def _apply(self, change: Change) -> None:
        tables: dict[str, dict[str, Any]] = {
            WORKLOAD: self._workloads,
            INSTANCE: self._instances,
            NODE: self._nodes,
            POSTMORTEM: {},
        }
        if change.op == PUT:
            tables[change.kind][change.key] = change.value
        else:
            tables[change.kind].pop(change.key, None)

    async def _serve(self, link: Link[ToApi, ToScheduler]) -> None:
        loaded = await self.store.load()
        link.send_nowait(Snapshot(loaded.revision, loaded.workloads, loaded.instances, loaded.nodes))
        self._links.append(link)
        while True:
            try:
                request = await link.receive()
            except LinkClosed:
                return
            if self.deaf:
                continue
            assert isinstance(request, Request)
            self.requests.append(request.command)
            answer = await self._answer(request)
            try:
                await link.send(answer)
            except LinkClosed:
                return

    async def _answer(self, request: Request) -> Answer:
        try:
            return await self._do(request.id, request.command)
        except StoreUnavailable as error:
            return Answer(request.id, error="unavailable", message=error.message)

    async def _do(self, number: int, command: Command) -> Answer:
        match command:
            case CreateWorkload(document=document):
                if any(record.name == document["name"] for record in self._workloads.values()):
                    return Answer(number, error="conflict", message="the name is taken", next_step="take another")
                identity = f"workload-{document['name']}"
                record = Workload(identity, document["name"], "default", document, NOW)
                await self.commit(Change(WORKLOAD, PUT, identity, record, NOW))
                return Answer(number, identity)
            case DeleteWorkload(workload=wanted):
                found = next((w for w in self._workloads.values() if wanted in (w.id, w.name)), None)
                if found is None:
                    return Answer(number, error="not-found", message=f"there is no workload {wanted!r}")
                await self.commit(Change(WORKLOAD, DELETE, found.id, found, NOW))
                return Answer(number)
            case CreateInstances(workload=wanted, name=name, replicas=replicas):
                found = next((w for w in self._workloads.values() if wanted in (w.id, w.name)), None)
                if found is None:
                    return Answer(number, error="not-found", message=f"there is no workload {wanted!r}")
                records = []
                for _ in range(replicas):
                    self._count += 1
                    record_name = name or f"instance-{1000 + self._count}"
                    records.append(
                        instance(
                            1000 + self._count,
                            Status.PENDING,
                            name=record_name,
                            workload_id=found.id,
                            workload=found.name,
                            spec=found.document["spec"],
                        )
                    )
                await self.put(*records)
                return Answer(number, [record.name for record in records])
            case DeleteInstance(instance=wanted):
                known = next((i for i in self._instances.values() if wanted in (i.uid, i.name)), None)
                if known is None:
                    return Answer(number, error="not-found", message=f"there is no instance {wanted!r}")
                await self.put(msgspec.structs.replace(known, status=Status.DESTROYING, deleted=True))
                return Answer(number)
            case Explain(instance=wanted):
                told = {"instance": wanted, "status": "Pending", "node": "", "decision": "no node yet", "nodes": []}
                return Answer(number, told)


class Worker:
    """The worker's end of a node's link: hands every stream to `handler`."""

    def __init__(self, handler: StreamHandler) -> None:
        self.handler = handler
        self.requests: list[StreamRequest] = []

    async def run(self, switchboard: Switchboard, node_id: str = NODE_A.id) -> None:
        ours: Link[ToWorker, FromWorker]
        theirs: Link[FromWorker, ToWorker]
        ours, theirs = link_pair()
        switchboard.attach(node_id, ours)
        async with trio.open_nursery() as nursery:
            while True:
                request, stream = await theirs.accept_stream()
                self.requests.append(request)
                nursery.start_soon(self._serve, request, stream)

    async def _serve(self, request: StreamRequest, stream: Stream) -> None:
        try:
            await self.handler(request, stream)
        except LinkClosed:
            return  # the api has hung up


def frames_of(lines: Sequence[dict[str, Any]]) -> bytes:
    """A batch of log lines as workers send it."""
    return b"\n".join(msgspec.json.encode(line) for line in lines) + b"\n"

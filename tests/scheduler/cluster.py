"""A scheduler with scripted ends: an api that remembers what it is told, and workers that speak the real messages."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import trio

from rik.link.base import Link, LinkClosed
from rik.link.local import LocalLink, link_pair
from rik.link.switchboard import Switchboard
from rik.messages import (
    Answer,
    Command,
    Committed,
    CreateInstances,
    CreateWorkload,
    FromWorker,
    Heartbeat,
    Hello,
    LiveNode,
    LiveProgress,
    NodeDescription,
    Order,
    Orders,
    Rejected,
    Report,
    Reports,
    ReportsAcknowledged,
    Request,
    Run,
    Snapshot,
    Stop,
    ToApi,
    ToScheduler,
    ToWorker,
    Welcome,
)
from rik.model.change import Change
from rik.model.instance import Instance, Status, Transition
from rik.model.node import Capability, Node
from rik.model.resources import Resources
from rik.scheduler.scheduler import Scheduler
from rik.settings import SchedulerSettings
from rik.store.base import Store

START = 1_700_000_000_000
NAMESPACE = "default"


class SimulatedEnvironment:
    """Trio's clock (a mock one, in tests), and randomness from a seed."""

    def __init__(self, seed: int = 0) -> None:
        self.random = random.Random(seed)
        self.steps: list[str] = []

    def now(self) -> int:
        return START + round(trio.current_time() * 1000)

    def uid(self) -> str:
        return "".join(self.random.choices("0123456789abcdefghjkmnpqrstvwxyz", k=20))

    def name(self) -> str:
        return f"cobra-citer-{self.random.randrange(1000, 10_000)}"

    def jitter(self, seconds: float) -> float:
        return seconds * self.random.uniform(0.5, 1)

    def step(self, name: str) -> None:
        self.steps.append(name)


def document(name: str = "hello", kind: str = "Pod", **spec: Any) -> dict[str, Any]:
    """A normalised document; `spec` are further fields of its spec."""
    containers = [{"name": "main", "image": "host", "command": ["sleep", "1000"]}] if kind == "Pod" else []
    return {
        "apiVersion": "v1",
        "kind": kind,
        "name": name,
        "replicas": 1,
        "spec": {"containers": containers, **spec},
    }


def ports(*numbers: int) -> list[dict[str, Any]]:
    """Containers of a pod that publishes these ports of the node."""
    published = [{"port": number, "targetPort": 80, "protocol": "TCP", "type": "NodePort"} for number in numbers]
    return [{"name": "main", "image": "host", "command": ["sleep", "1000"], "ports": published}]


class ScriptedApi:
    """One end of an api's link. Keeps a view, and checks that revisions come without a hole."""

    def __init__(self, link: Link[ToScheduler, ToApi]) -> None:
        self.link = link
        self.revision = -1
        self.changes: list[Change] = []
        self.snapshots: list[Snapshot] = []
        self.instances: dict[str, Instance] = {}
        self.nodes: dict[str, Node] = {}
        self.live: list[LiveNode | LiveProgress] = []
        self.closed = trio.Event()
        self._answers: dict[int, Answer] = {}
        self._answered: dict[int, trio.Event] = {}
        self._number = 0
        self._moved = trio.Event()

    async def run(self) -> None:
        try:
            while True:
                self._take(await self.link.receive())
        except LinkClosed:
            self.closed.set()
            self._wake()

    def _take(self, message: ToApi) -> None:
        match message:
            case Snapshot():
                assert message.revision >= self.revision
                self.revision = message.revision
                self.snapshots.append(message)
                self.instances = {one.uid: one for one in message.instances}
                self.nodes = {one.id: one for one in message.nodes}
            case Committed(changes=changes):
                for change in changes:
                    assert change.revision == self.revision + 1, "revisions come each once, in order"
                    assert change.value.revision == change.revision
                    self.revision = change.revision
                    self.changes.append(change)
                    self._apply(change)
            case Answer(id=number):
                self._answers[number] = message
                self._answered[number].set()
            case _:
                self.live.append(message)
        self._wake()

    def _apply(self, change: Change) -> None:
        value = change.value
        if change.kind == "instance" and isinstance(value, Instance):
            if change.op == "put":
                assert change.before == self.instances.get(change.key)
                self.instances[change.key] = value
            else:
                del self.instances[change.key]
        elif isinstance(value, Node):
            if change.op == "put":
                self.nodes[change.key] = value
            else:
                del self.nodes[change.key]

    def _wake(self) -> None:
        self._moved.set()
        self._moved = trio.Event()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Waits until something told makes it true."""
        while not condition():
            await self._moved.wait()

    async def ask(self, command: Command) -> Answer:
        self._number += 1
        number = self._number
        done = self._answered[number] = trio.Event()
        await self.link.send(Request(number, command))
        await done.wait()
        return self._answers.pop(number)

    async def do(self, command: Command) -> Any:
        """The result of a command that is not refused."""
        answer = await self.ask(command)
        assert not answer.error, answer
        return answer.result

    async def create(self, replicas: int = 1, *, workload: dict[str, Any] | None = None) -> list[Instance]:
        """A workload, and instances of it."""
        made = workload or document()
        identity = await self.do(CreateWorkload(made, NAMESPACE))
        names = await self.do(CreateInstances(identity, NAMESPACE, replicas=replicas))
        return [self.named(name) for name in names]

    def named(self, name: str) -> Instance:
        return next(one for one in self.instances.values() if one.name == name)

    def history(self, uid: str) -> list[str]:
        """What became of an instance, change by change: statuses, `postmortem` and `delete`."""
        told: list[str] = []
        for change in self.changes:
            if change.key == uid and isinstance(change.value, Instance):
                if change.kind == "postmortem":
                    told.append("postmortem")
                elif change.op == "delete":
                    told.append("delete")
                else:
                    told.append(change.value.status.value)
        return told


class ScriptedWorker:
    """One end of a node's link. Does nothing by itself; remembers its orders."""

    def __init__(
        self,
        link: Link[FromWorker, ToWorker],
        name: str = "alpha",
        *,
        journal: str = "",
        epoch: int = 1,
        capacity: Resources | None = None,
        kinds: tuple[str, ...] = ("Pod",),
        labels: dict[str, str] | None = None,
        no_function: str = "",
    ) -> None:
        self.link = link
        self.journal = journal or f"journal-{name}"
        self.epoch = epoch
        self.sequence = 0
        capabilities = [Capability("fake", True, "", kinds)] if kinds else []
        if no_function:
            capabilities.append(Capability("microvm", False, no_function, ("Function",)))
        self.description = NodeDescription(
            name=name,
            roles=("worker",),
            labels=labels or {},
            capabilities=tuple(capabilities),
            capacity=capacity or Resources(),
            version="0.1.0",
            boot_id="boot-1",
        )
        self.welcome: Welcome | None = None
        self.rejected = ""
        self.stuck = False  # takes one message more, and then none
        self.orders: list[Order] = []
        self.waiting: dict[str, Order] = {}
        self.acknowledged: dict[str, int] = {}
        self.closed = trio.Event()
        self._moved = trio.Event()

    async def run(self) -> None:
        try:
            while True:
                match await self.link.receive():
                    case Welcome() as welcome:
                        self.welcome = welcome
                        self._note(welcome.orders)
                    case Orders(orders=orders):
                        self._note(orders)
                    case ReportsAcknowledged(sequences=sequences):
                        self.acknowledged.update(sequences)
                    case Rejected(message=message):
                        self.rejected = message
                self._moved.set()
                self._moved = trio.Event()
                if self.stuck:
                    await trio.sleep_forever()
        except LinkClosed:
            self.closed.set()
            self._moved.set()

    def _note(self, orders: tuple[Order, ...]) -> None:
        self.orders += orders
        for order in orders:
            self.waiting[order.assignment.uid if isinstance(order, Run) else order.uid] = order

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self._moved.wait()

    async def hello(self, *inventory: Report) -> None:
        await self.link.send(Hello(self.journal, self.epoch, self.description, inventory))
        await self.until(lambda: self.welcome is not None or bool(self.rejected) or self.closed.is_set())

    def report(self, uid: str, *statuses: str, **fields: Any) -> Report:
        """Of an instance that went through `statuses`."""
        self.sequence += 1
        now = START + round(trio.current_time() * 1000)
        return Report(
            uid=uid,
            epoch=self.epoch,
            sequence=self.sequence,
            status=Status(statuses[-1]),
            transitions=tuple(Transition(Status(status), now, status.lower()) for status in statuses),
            **fields,
        )

    async def say(self, *reports: Report) -> None:
        await self.link.send(Reports(reports))

    async def settle(self, *reports: Report) -> None:
        """Reports, and waits until they are acknowledged."""
        await self.say(*reports)
        await self.until(
            lambda: (
                all(self.acknowledged.get(report.uid, -1) >= report.sequence for report in reports)
                or self.closed.is_set()
            )
        )

    @asynccontextmanager
    async def beating(self) -> AsyncIterator[None]:
        """Heartbeats while the block runs."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._beat)
            yield
            nursery.cancel_scope.cancel()

    async def _beat(self) -> None:
        sequence = 0
        while not self.closed.is_set():
            sequence += 1
            await self.link.send(Heartbeat(sequence, {"load": sequence}))
            await trio.sleep(2)

    def order_of(self, uid: str, kind: type[Run | Stop]) -> Order | None:
        found = self.waiting.get(uid)
        return found if isinstance(found, kind) else None


def api_link(capacity: int = 10_000) -> tuple[LocalLink[ToScheduler, ToApi], LocalLink[ToApi, ToScheduler]]:
    return link_pair(capacity)


def node_link(capacity: int = 10_000) -> tuple[LocalLink[FromWorker, ToWorker], LocalLink[ToWorker, FromWorker]]:
    return link_pair(capacity)


class Cluster:
    """A running scheduler; `api` is connected from the beginning."""

    def __init__(self, scheduler: Scheduler, nursery: trio.Nursery, switchboard: Switchboard, store: Store) -> None:
        self.scheduler = scheduler
        self.store = store
        self.switchboard = switchboard
        self._nursery = nursery
        self.api: ScriptedApi

    async def connect_api(self, capacity: int = 10_000) -> ScriptedApi:
        ours, theirs = api_link(capacity)
        self._nursery.start_soon(self.scheduler.serve_api, theirs)
        api = ScriptedApi(ours)
        self._nursery.start_soon(api.run)
        await api.until(lambda: bool(api.snapshots))
        return api

    async def connect_worker(self, name: str = "alpha", *inventory: Report, **fields: Any) -> ScriptedWorker:
        """Connected and welcomed (or rejected)."""
        worker = self.dial_worker(name, **fields)
        await worker.hello(*inventory)
        return worker

    def dial_worker(self, name: str = "alpha", *, capacity_of_link: int = 10_000, **fields: Any) -> ScriptedWorker:
        """Connected, and silent."""
        ours, theirs = node_link(capacity_of_link)
        self._nursery.start_soon(self.scheduler.serve_node, theirs)
        worker = ScriptedWorker(ours, name, **fields)
        self._nursery.start_soon(worker.run)
        return worker


@asynccontextmanager
async def cluster(
    store: Store, *, environment: SimulatedEnvironment | None = None, **settings: Any
) -> AsyncIterator[Cluster]:
    """Everything ends with the block; the store stays open."""
    switchboard = Switchboard()
    scheduler = Scheduler(environment or SimulatedEnvironment(), store, SchedulerSettings(**settings), switchboard)
    async with trio.open_nursery() as nursery:
        await nursery.start(scheduler.run)
        running = Cluster(scheduler, nursery, switchboard, store)
        running.api = await running.connect_api()
        yield running
        nursery.cancel_scope.cancel()


def without_revision(record: Instance) -> Instance:
    return msgspec.structs.replace(record, revision=0)

"""Whatever is asked, reported, cut off or refused, in whatever order: the invariants hold after every step."""

from __future__ import annotations

import random

import msgspec
import pytest
import trio
from trio.testing import MockClock

from rik.errors import StoreUnavailable
from rik.link.base import LinkClosed
from rik.messages import CreateInstances, CreateWorkload, DeleteInstance, DeleteWorkload, Explain, Report, Run, Stop
from rik.model.change import Change
from rik.model.instance import Instance, Port, Status
from rik.model.node import NodeStatus
from rik.model.resources import Resources
from rik.scheduler.lifecycle import backstop_at
from rik.scheduler.placement import NodePort, chosen_ports, claimed_ports
from rik.scheduler.state import State
from rik.store.memory import MemoryStore
from tests.scheduler.cluster import NAMESPACE, Cluster, ScriptedWorker, SimulatedEnvironment, cluster, document, ports

STEPS = 150
NODES = ("alpha", "beta", "gamma")
WORKLOADS = {
    "plain": document("plain"),
    "big": document("big", resources={"memory": "300Mi", "cpu": 0.5}),
    "fixed": document("fixed", containers=ports(8080)),
    "free": document("free", containers=ports(0)),
    "picky": document("picky", nodeSelector={"zone": "alpha"}, deadlines={"pendingSeconds": 20, "creatingSeconds": 20}),
    "impossible": document("impossible", kind="Function"),
}


class Chaos:
    """Workers that do what they are told, sooner or later, or not, and everything else that may happen."""

    def __init__(self, here: Cluster, store: MemoryStore, seed: int) -> None:
        self.here = here
        self.store = store
        self.random = random.Random(seed)
        self.workers: dict[str, ScriptedWorker] = {}
        self.held: dict[str, dict[str, Status]] = {name: {} for name in NODES}
        self.sequences: dict[str, int] = dict.fromkeys(NODES, 0)
        self.epochs: dict[str, int] = dict.fromkeys(NODES, 1)
        self.next_port = 40_000

    async def step(self) -> None:
        actions = [
            (6, self.create),
            (3, self.delete),
            (1, self.delete_workload),
            (12, self.report),
            (3, self.connect),
            (1, self.disconnect),
            (1, self.restart_worker),
            (3, self.pass_time),
            (1, self.break_store),
            (1, self.lie),
            (1, self.explain),
        ]
        [action] = self.random.choices([action for _, action in actions], [weight for weight, _ in actions])
        await action()
        for name in list(self.workers):
            self._obey(name)

    async def create(self) -> None:
        name = self.random.choice(list(WORKLOADS))
        await self.here.api.ask(CreateWorkload(WORKLOADS[name], NAMESPACE))
        await self.here.api.ask(CreateInstances(name, NAMESPACE, replicas=self.random.randint(1, 4)))

    async def delete(self) -> None:
        if self.here.api.instances:
            await self.here.api.ask(DeleteInstance(self.random.choice(list(self.here.api.instances)), NAMESPACE))

    async def delete_workload(self) -> None:
        await self.here.api.ask(DeleteWorkload(self.random.choice(list(WORKLOADS)), NAMESPACE))

    async def explain(self) -> None:
        if self.here.api.instances:
            await self.here.api.ask(Explain(self.random.choice(list(self.here.api.instances)), NAMESPACE))

    async def report(self) -> None:
        """A worker says how far some of its instances have come; merged, repeated or late, as it happens."""
        if not self.workers:
            return
        name = self.random.choice(list(self.workers))
        worker = self.workers[name]
        reports = []
        for uid, status in list(self.held[name].items()):
            if self.random.random() < 0.5:
                continue
            passed = [status]
            while self.random.random() < 0.6 and not passed[-1].final:
                following = [after for after in Status if after.can_follow(passed[-1])]
                passed.append(self.random.choice(following))
            self.held[name][uid] = passed[-1]
            reports.append(self._report(name, uid, passed))
            if self.random.random() < 0.1:
                reports.append(reports[-1])
            if self.random.random() < 0.1:
                reports.append(self._report(name, uid, [Status.CREATING]))
        await self._send(worker, reports)

    def _report(self, name: str, uid: str, passed: list[Status]) -> Report:
        instance = self.here.api.instances.get(uid)
        given: tuple[Port, ...] = ()
        if instance is not None and instance.workload == "free":
            self.next_port += 1
            given = instance.ports or (Port(self.next_port, 80),)
        elif instance is not None and instance.workload == "fixed":
            given = (Port(8080, 80),)
        worker = self.workers[name]
        worker.sequence = self.sequences[name]
        report = worker.report(uid, *passed, reason="Killed" if passed[-1] == Status.FAILED else "", ports=given)
        self.sequences[name] = worker.sequence
        return report

    async def _send(self, worker: ScriptedWorker, reports: list[Report]) -> None:
        try:
            await worker.say(*reports)
        except LinkClosed:
            pass

    def _obey(self, name: str) -> None:
        worker = self.workers[name]
        if worker.closed.is_set():
            del self.workers[name]
            return
        for order in worker.orders:
            if isinstance(order, Run):
                self.held[name].setdefault(order.assignment.uid, Status.CREATING)
            elif isinstance(order, Stop):
                if self.held[name].get(order.uid) in (None, Status.CREATING, Status.RUNNING):
                    self.held[name][order.uid] = Status.DESTROYING
            else:
                self.held[name].pop(order.uid, None)
        worker.orders.clear()

    async def connect(self) -> None:
        name = self.random.choice(NODES)
        if name in self.workers:
            return
        worker = self.here.dial_worker(
            name,
            epoch=self.epochs[name],
            labels={"zone": name},
            capacity=Resources(cpu_millis=2000, memory_bytes=2**30),
        )
        self.workers[name] = worker
        for uid in [uid for uid in self.held[name] if self.random.random() < 0.05]:
            del self.held[name][uid]  # its journal was damaged
        inventory = [self._report(name, uid, [status]) for uid, status in self.held[name].items()]
        with trio.move_on_after(30):
            await worker.hello(*inventory)

    async def disconnect(self) -> None:
        if self.workers:
            self.workers.pop(self.random.choice(list(self.workers))).link.close()

    async def restart_worker(self) -> None:
        if self.workers:
            name = self.random.choice(list(self.workers))
            self.workers.pop(name).link.close()
            self.epochs[name] += 1
            self.sequences[name] = 0

    async def pass_time(self) -> None:
        async with trio.open_nursery() as nursery:
            for worker in self.workers.values():
                if self.random.random() < 0.8:
                    nursery.start_soon(self._beat, worker)
            await trio.sleep(self.random.choice([0.1, 1, 5, 15, 80]))
            nursery.cancel_scope.cancel()

    async def _beat(self, worker: ScriptedWorker) -> None:
        try:
            async with worker.beating():
                await trio.sleep_forever()
        except* LinkClosed:
            pass

    async def break_store(self) -> None:
        self.store.refuse("disk I/O error")
        await self.create()
        await self.report()
        await trio.sleep(1)
        self.store.refuse("")
        await trio.sleep(5)

    async def lie(self) -> None:
        if self.workers and self.here.api.instances:
            name = self.random.choice(list(self.workers))
            uid = self.random.choice(list(self.here.api.instances))
            if uid in self.held[name]:
                return
            report = self.workers[name].report(uid, "Failed", reason="Killed")
            if self.here.api.instances[uid].node != name:
                await self._send(self.workers[name], [report])


def check(state: State, margins_s: tuple[float, float]) -> None:
    """Everything that must be true of the state at any moment."""
    used: dict[str, Resources] = {node_id: Resources() for node_id in state.nodes}
    held: dict[tuple[str, NodePort], str] = {}
    for uid, instance in state.instances.items():
        assert instance.history[-1].status == instance.status
        assert (uid in state.pending) == (instance.status == Status.PENDING)
        assert (uid in state.finished) == instance.status.final
        if instance.status.final:
            assert not instance.deleted, "what was to be deleted is removed with its end"
            assert instance.stale_since is None and not instance.deadline_at
            assert instance.status != Status.FAILED or (instance.reason and instance.message)
            continue
        if instance.status != Status.RUNNING:
            assert backstop_at(instance, *margins_s), "every status that is not final has a deadline or an owner"
        if instance.status == Status.PENDING:
            assert not instance.node_id
            continue
        assert instance.node_id in state.nodes
        silent = state.nodes[instance.node_id].status == NodeStatus.NOT_READY
        assert (instance.stale_since is not None) == silent
        spec = state.spec(instance)
        used[instance.node_id] += spec.resources
        for key in claimed_ports(spec) | chosen_ports(instance.ports):
            assert held.setdefault((instance.node_id, key), uid) == uid, "one port, one instance"
    for node_id, node in state.nodes.items():
        allocation = state.allocations[node_id]
        assert allocation.used == used[node_id]
        assert allocation.used.memory_bytes <= node.capacity.memory_bytes
        assert {(node_id, key): holder.uid for key, holder in allocation.ports.items()} == {
            key: uid for key, uid in held.items() if key[0] == node_id
        }


def check_journal(changes: list[Change]) -> None:
    """Of the durable journal: contiguous, statuses forward only, a post-mortem with every end and none twice."""
    status: dict[str, Status] = {}
    ended: set[str] = set()
    for number, change in enumerate(changes, 1):
        assert change.revision == change.value.revision == number
        if not isinstance(change.value, Instance):
            continue
        if change.kind == "postmortem":
            assert change.value.status.final and change.key not in ended
            ended.add(change.key)
            continue
        before = status.get(change.key)
        assert (change.before is None) == (before is None)
        if change.op == "delete":
            assert before is not None and before.final and change.key in ended
            del status[change.key]
        elif before is None:
            assert change.value.status == Status.PENDING and change.key not in ended
            status[change.key] = change.value.status
        else:
            assert change.value.status == before or change.value.status.can_follow(before)
            status[change.key] = change.value.status
    assert all((uid in ended) == last.final for uid, last in status.items())


@pytest.mark.parametrize("seed", range(12))
async def test_invariants(seed: int, autojump_clock: MockClock) -> None:
    """By any seed: forward only, contiguous, every status owned, no port twice, sums right, and nothing stuck."""
    store = MemoryStore(commit_s=0.005)
    environment = SimulatedEnvironment(seed)
    async with cluster(store, environment=environment) as here:
        chaos = Chaos(here, store, seed)
        margins_s = (45.0, 45.0)
        for _ in range(STEPS):
            await chaos.step()
            check(here.scheduler._ledger.state, margins_s)
        await trio.sleep(3)
        check_journal(await store.changes_since(0, 1_000_000))
        loaded = await store.load()
        state = here.scheduler._ledger.state
        assert loaded.revision == state.revision == here.api.revision
        assert {one.uid: one for one in loaded.instances} == state.instances == here.api.instances
        fresh = State(loaded, *margins_s)
        check(fresh, margins_s)
        assert {k: msgspec.structs.replace(v) for k, v in fresh.nodes.items()} == state.nodes
        await settle(chaos)
        assert all(one.status.final for one in here.api.instances.values())


async def settle(chaos: Chaos) -> None:
    """Everything is deleted and everybody falls silent: nothing may be stuck."""
    for name in WORKLOADS:
        try:
            await chaos.here.api.ask(DeleteWorkload(name, NAMESPACE))
        except StoreUnavailable:
            raise AssertionError("the store is well") from None
    for worker in chaos.workers.values():
        worker.link.close()
    await trio.sleep(200)

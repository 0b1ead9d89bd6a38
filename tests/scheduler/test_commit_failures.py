"""When the store cannot: nothing undurable was told to anybody, and everything works again afterwards."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from rik.messages import Answer, CreateInstances, CreateWorkload, Report, Stop
from rik.model.instance import Instance
from rik.model.workload import Spec
from rik.scheduler import lifecycle, placement
from rik.scheduler.commands import Commands
from rik.scheduler.placement import Demand, Outcome, Room
from rik.store.memory import MemoryStore
from rik.store.sqlite import open_sqlite
from tests.scheduler.cluster import NAMESPACE, Cluster, cluster, document


async def test_a_refused_commit_is_unavailable_and_leaves_nothing(autojump_clock: MockClock) -> None:
    """Every command that waits is answered unavailable with the cause; what it would have done is not there."""
    store = MemoryStore(commit_s=0.01)
    async with cluster(store) as here:
        await here.connect_worker()
        before = here.api.revision
        store.refuse("database or disk is full")
        answers: list[Answer] = []

        async def create(number: int) -> None:
            answers.append(await here.api.ask(CreateWorkload(document(f"hello-{number}"), NAMESPACE)))

        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(create, number)
        assert {answer.error for answer in answers} == {"unavailable"}
        assert all("database or disk is full" in answer.message for answer in answers)
        assert here.api.revision == before and not here.api.changes[before:]
        store.refuse("")
        assert len(await here.api.create(2, workload=document("hello-1"))) == 2
        loaded = await store.load()
        assert [workload.name for workload in loaded.workloads] == ["hello-1"]


async def test_nothing_leaves_before_it_is_durable(autojump_clock: MockClock) -> None:
    """While a commit is under way no frame, no answer and no order is seen; afterwards the frame comes first."""
    store = MemoryStore(commit_s=1.0)
    async with cluster(store) as here:
        worker = await here.connect_worker()
        await here.api.do(CreateWorkload(document(), NAMESPACE))
        before = here.api.revision
        start = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(here.api.do, CreateInstances("hello", NAMESPACE, "web"))
            await trio.sleep(0.9)
            assert here.api.revision == before and not worker.waiting
        assert trio.current_time() - start >= 1.0
        assert here.api.named("web").status == "Creating"


async def test_commands_that_wait_share_a_commit(autojump_clock: MockClock) -> None:
    """While one batch is being committed the next one fills: many commands take the time of a few commits."""
    async with cluster(MemoryStore(commit_s=1.0)) as here:
        start = trio.current_time()
        async with trio.open_nursery() as nursery:
            for number in range(200):
                nursery.start_soon(here.api.do, CreateWorkload(document(f"hello-{number}"), NAMESPACE))
        assert trio.current_time() - start <= 3.0
        assert here.api.revision == 200


async def test_what_was_decided_upon_a_failed_batch_fails_too(autojump_clock: MockClock) -> None:
    """A command that was decided while the batch before it was under way shares its fate."""
    store = MemoryStore(commit_s=1.0)
    async with cluster(store) as here:
        answers: dict[str, str] = {}

        async def ask(name: str, command: CreateWorkload | CreateInstances) -> None:
            answers[name] = (await here.api.ask(command)).error

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, "workload", CreateWorkload(document(), NAMESPACE))
            await trio.sleep(0.5)
            store.refuse("disk I/O error")
            nursery.start_soon(ask, "instance", CreateInstances("hello", NAMESPACE))
            await trio.sleep(0.2)
            nursery.start_soon(ask, "conflict", CreateWorkload(document(), NAMESPACE))
        assert answers == dict.fromkeys(("workload", "instance", "conflict"), "unavailable")
        assert len(here.api.snapshots) == 2 and here.api.snapshots[1].workloads == ()


async def test_a_worker_whose_report_was_lost_says_it_again(autojump_clock: MockClock) -> None:
    """A report that could not be made durable is not acknowledged: its worker is disconnected and begins anew."""
    store = MemoryStore()
    async with cluster(store) as here:
        worker = await here.connect_worker()
        [one] = await here.api.create()
        store.refuse("disk I/O error")
        report = worker.report(one.uid, "Running")
        await worker.say(report)
        with trio.fail_after(10):
            await worker.closed.wait()
        assert one.uid not in worker.acknowledged
        assert here.api.instances[one.uid].status == "Creating"
        store.refuse("")
        again = await here.connect_worker("alpha", report)
        assert again.welcome is not None
        await here.api.until(lambda: here.api.instances[one.uid].status == "Running")


async def test_a_bug_in_one_decision_does_not_bring_the_scheduler_down(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be handled is answered unavailable, and everybody else is served as before."""
    async with cluster(MemoryStore()) as here:
        broken = Commands._create_workload

        def fail(self: Commands, command: CreateWorkload) -> str:
            if command.document["name"] == "cursed":
                broken(self, command)
                raise ZeroDivisionError("a bug")
            return broken(self, command)

        monkeypatch.setattr(Commands, "_create_workload", fail)
        answer = await here.api.ask(CreateWorkload(document("cursed"), NAMESPACE))
        assert answer.error == "unavailable" and "a bug" in answer.message
        await here.api.do(CreateWorkload(document("fine"), NAMESPACE))
        assert [workload.name for workload in (await here.store.load()).workloads] == ["fine"]


async def test_a_bug_ends_the_one_instance_that_it_broke(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A report or a placement that cannot be handled makes that instance Failed InternalError, and no other."""
    observe, place = lifecycle.observe, placement.place

    def observe_badly(instance: Instance, spec: Spec, report: Report, now: int) -> list[lifecycle.Step]:
        if report.ip == "cursed":
            raise ZeroDivisionError("a bug")
        return observe(instance, spec, report, now)

    def place_badly(demand: Demand, rooms: Iterable[Room], policy: str = "") -> Outcome:
        if demand.resources.pids == 666:
            raise ZeroDivisionError("another bug")
        return place(demand, rooms, policy)

    monkeypatch.setattr(lifecycle, "observe", observe_badly)
    monkeypatch.setattr("rik.scheduler.pending.place", place_badly)
    async with cluster(MemoryStore()) as here:
        worker = await here.connect_worker()
        first, second = await here.api.create(2)
        [third] = await here.api.create(workload=document("third", resources={"pids": 666}))
        await worker.settle(worker.report(first.uid, "Running", ip="cursed"), worker.report(second.uid, "Running"))
        told = [here.api.instances[one.uid] for one in (first, second, third)]
        assert [(one.status, one.reason) for one in told] == [
            ("Failed", "InternalError"),
            ("Running", ""),
            ("Failed", "InternalError"),
        ]
        assert "a bug" in told[0].message and "another bug" in told[2].message
        await worker.until(lambda: isinstance(worker.waiting[first.uid], Stop))


async def test_a_spec_that_cannot_be_read_is_a_bad_request(autojump_clock: MockClock) -> None:
    """What slipped through the check of documents does not get into the store."""
    async with cluster(MemoryStore()) as here:
        answer = await here.api.ask(CreateWorkload(document(resources={"memory": "plenty"}), NAMESPACE))
        assert answer.error == "bad-request" and "plenty" in answer.message
        assert here.api.revision == 0


async def fill(here: Cluster) -> Answer:
    """Creates workloads until it is refused; the refusal."""
    padding = {f"key{number}": "x" * 500 for number in range(100)}
    for number in range(10_000):
        answer = await here.api.ask(CreateWorkload({**document(f"fill-{number}"), "padding": padding}, NAMESPACE))
        if answer.error:
            return answer
    raise AssertionError("the store never got full")


async def test_a_store_that_is_really_full(tmp_path: Path) -> None:
    """With a real SQLite file that may not grow: unavailable with SQLite's own words, then well again."""
    with trio.fail_after(60):
        async with open_sqlite(tmp_path / "cluster.db") as store, cluster(store) as here:
            worker = await here.connect_worker()
            pages = store._opened.writer.execute("PRAGMA page_count").fetchone()[0]
            store._opened.writer.execute(f"PRAGMA max_page_count = {pages + 100}")
            answer = await fill(here)
            assert answer.error == "unavailable" and "database or disk is full" in answer.message
            known = len((await store.load()).workloads)
            store._opened.writer.execute("PRAGMA max_page_count = 1000000")
            [one] = await here.api.create(workload=document("after"))
            if worker.closed.is_set():
                worker = await here.connect_worker()
            await here.api.until(lambda: here.api.instances[one.uid].status == "Creating")
            loaded = await store.load()
            assert len(loaded.workloads) == known + 1
            assert [change.revision for change in await store.changes_since(0, 100_000)] == list(
                range(1, loaded.revision + 1)
            )

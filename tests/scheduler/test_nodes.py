"""Nodes that come, go silent, come back, lie, or are somebody else than before."""

from __future__ import annotations

import msgspec
import trio
from trio.testing import MockClock

from rik.messages import DeleteInstance, Forget, Heartbeat, Hello, LiveNode, LiveProgress, ProgressReport, Run, Stop
from rik.model.instance import Progress
from rik.store.memory import MemoryStore
from tests.scheduler.cluster import NAMESPACE, cluster, document


async def test_a_heartbeat_costs_no_commit(autojump_clock: MockClock) -> None:
    """Heartbeats keep a node Ready and reach the api live, without a revision."""
    async with cluster(MemoryStore()) as here:
        worker = await here.connect_worker()
        before = here.api.revision
        async with worker.beating():
            await trio.sleep(120)
        assert here.api.revision == before
        assert here.api.nodes[worker.journal].status == "Ready"
        live = [message for message in here.api.live if isinstance(message, LiveNode)]
        assert len(live) >= 59 and live[-1].id == worker.journal and live[-1].metrics["load"] >= 59


async def test_progress_is_relayed_live(autojump_clock: MockClock) -> None:
    """Progress of a creation reaches the api without a revision; that of somebody else's instance does not."""
    async with cluster(MemoryStore()) as here:
        worker = await here.connect_worker("alpha", labels={"a": "1"})
        other = await here.connect_worker("beta")
        [one] = await here.api.create(workload=document(nodeSelector={"a": "1"}))
        await worker.until(lambda: one.uid in worker.waiting)
        before = here.api.revision
        await other.link.send(ProgressReport({one.uid: Progress("boot", 1, 2)}))
        await worker.link.send(ProgressReport({one.uid: Progress("pull", 5, 10, "bytes"), "none": Progress("pull")}))
        await here.api.until(lambda: bool(here.api.live))
        await trio.sleep(1)
        assert here.api.live == [LiveProgress(one.uid, Progress("pull", 5, 10, "bytes"))]
        assert here.api.revision == before
        late = await here.connect_api()
        await late.until(lambda: bool(late.live))
        assert LiveProgress(one.uid, Progress("pull", 5, 10, "bytes")) in late.live


async def test_a_silent_node_is_suspected_then_lost(autojump_clock: MockClock) -> None:
    """After a lease the node is NotReady and its instances stale, with their status kept; 60 s later they are lost."""
    async with cluster(MemoryStore(), lease_s=10, lost_after_s=60) as here:
        worker = await here.connect_worker()
        running, creating, destroying = await here.api.create(3)
        await worker.settle(worker.report(running.uid, "Running"), worker.report(destroying.uid, "Running"))
        await here.api.do(DeleteInstance(destroying.uid, NAMESPACE))
        start = trio.current_time()
        await here.api.until(lambda: here.api.nodes[worker.journal].status == "NotReady")
        assert 9 <= trio.current_time() - start <= 11
        stale = [here.api.instances[one.uid] for one in (running, creating, destroying)]
        assert [one.status for one in stale] == ["Running", "Creating", "Destroying"]
        assert all(one.stale_since is not None for one in stale)
        await here.api.until(lambda: here.api.instances[running.uid].status.final)
        assert 69 <= trio.current_time() - start <= 71
        assert {here.api.instances[one.uid].reason for one in (running, creating)} == {"NodeLost"}
        assert "if it returns" in here.api.instances[running.uid].message
        assert destroying.uid not in here.api.instances
        assert here.api.history(destroying.uid)[-3:] == ["Failed", "postmortem", "delete"]
        assert here.api.nodes[worker.journal].status == "NotReady"


async def test_a_node_that_is_heard_in_time_is_believed_again(autojump_clock: MockClock) -> None:
    """A heartbeat makes the node Ready and its instances fresh, each by a change of its own."""
    async with cluster(MemoryStore()) as here:
        worker = await here.connect_worker()
        [one] = await here.api.create()
        await worker.settle(worker.report(one.uid, "Running"))
        await here.api.until(lambda: here.api.instances[one.uid].stale_since is not None)
        await worker.link.send(Heartbeat(1))
        await here.api.until(lambda: here.api.instances[one.uid].stale_since is None)
        assert here.api.nodes[worker.journal].status == "Ready"
        assert here.api.history(one.uid) == ["Pending", "Creating", "Running", "Running", "Running"]


async def test_what_a_lost_node_still_runs_is_stopped(autojump_clock: MockClock) -> None:
    """A node that returns with instances that were given up is told to stop them, and to forget them when it has."""
    async with cluster(MemoryStore()) as here:
        worker = await here.connect_worker()
        [one] = await here.api.create()
        await worker.settle(worker.report(one.uid, "Running"))
        worker.link.close()
        await here.api.until(lambda: here.api.instances[one.uid].status.final)
        again = await here.connect_worker("alpha", worker.report(one.uid, "Running"))
        assert again.welcome is not None
        [order] = again.welcome.orders
        assert isinstance(order, Stop) and (order.uid, order.reason) == (one.uid, "NodeLost")
        before = here.api.revision
        again.sequence = worker.sequence
        await again.settle(again.report(one.uid, "Failed", reason="NodeLost"))
        await again.until(lambda: again.waiting[one.uid] == Forget(one.uid))
        assert here.api.revision == before


async def test_the_end_of_a_link_is_not_the_end_of_a_lease(autojump_clock: MockClock) -> None:
    """A worker that reconnects within its lease is welcomed with what it holds, and nothing changes."""
    async with cluster(MemoryStore()) as here:
        worker = await here.connect_worker()
        [one] = await here.api.create()
        await worker.settle(worker.report(one.uid, "Running"))
        before = here.api.revision
        worker.link.close()
        await trio.sleep(5)
        again = await here.connect_worker("alpha", worker.report(one.uid, "Running"))
        assert again.welcome is not None and isinstance(again.welcome.orders[0], Run)
        assert here.api.revision == before


async def test_an_order_that_was_lost_is_given_again(autojump_clock: MockClock) -> None:
    """Creating, and never acknowledged by the worker: the next welcome orders it again."""
    async with cluster(MemoryStore()) as here:
        worker = await here.connect_worker()
        [one] = await here.api.create()
        worker.link.close()
        again = await here.connect_worker()
        assert again.welcome is not None
        assert [order.assignment.uid for order in again.welcome.orders if isinstance(order, Run)] == [one.uid]


async def test_what_was_acknowledged_and_is_missing_stopped_without_status(autojump_clock: MockClock) -> None:
    """What a worker has acknowledged and no longer holds is never started twice: it is Failed."""
    async with cluster(MemoryStore()) as here:
        worker = await here.connect_worker()
        creating, running, deleted = await here.api.create(3)
        await worker.settle(
            worker.report(creating.uid, "Creating", step="queued"),
            worker.report(running.uid, "Running"),
            worker.report(deleted.uid, "Running"),
        )
        await here.api.do(DeleteInstance(deleted.uid, NAMESPACE))
        worker.link.close()
        again = await here.connect_worker()
        assert again.welcome is not None and again.welcome.orders == ()
        await here.api.until(lambda: deleted.uid not in here.api.instances)
        for one in (creating, running):
            assert here.api.instances[one.uid].reason == "StoppedWithoutStatus"
        assert here.api.history(deleted.uid)[-3:] == ["Terminated", "postmortem", "delete"]


async def test_a_journal_restored_from_a_backup_starts_nothing(autojump_clock: MockClock) -> None:
    """With an epoch below the one recorded, what was placed and is not held is Failed, also when just Creating."""
    async with cluster(MemoryStore()) as here:
        worker = await here.connect_worker(epoch=5)
        [one] = await here.api.create()
        worker.link.close()
        again = await here.connect_worker(epoch=3)
        assert again.welcome is not None and again.welcome.orders == ()
        await here.api.until(lambda: here.api.instances[one.uid].reason == "StoppedWithoutStatus")
        [second] = await here.api.create(workload=document("more"))
        await again.settle(again.report(second.uid, "Running"))
        assert here.api.instances[second.uid].status == "Running"


async def test_a_second_node_of_a_name_is_rejected(autojump_clock: MockClock) -> None:
    """While a node is connected and heard, another journal cannot take its name."""
    async with cluster(MemoryStore()) as here:
        first = await here.connect_worker()
        async with first.beating():
            second = await here.connect_worker("alpha", journal="another")
            assert "already" in second.rejected and "--node" in second.rejected
            with trio.fail_after(5):
                await second.closed.wait()
        assert list(here.api.nodes) == [first.journal]


async def test_a_new_journal_under_an_old_name_is_a_new_node(autojump_clock: MockClock) -> None:
    """When the old node is gone, its instances are lost at once, and the new one takes its name."""
    async with cluster(MemoryStore()) as here:
        first = await here.connect_worker()
        [one] = await here.api.create()
        await first.settle(first.report(one.uid, "Running"))
        first.link.close()
        await trio.sleep(1)
        second = await here.connect_worker("alpha", journal="another")
        assert second.welcome is not None and not second.rejected
        await here.api.until(lambda: here.api.instances[one.uid].status.final)
        last = here.api.instances[one.uid]
        assert last.reason == "NodeLost" and "came back with a new data directory" in last.message
        assert list(here.api.nodes) == ["another"]
        returned = await here.connect_worker("alpha", first.report(one.uid, "Running"))
        assert returned.rejected


async def test_what_nobody_ordered_is_stopped_or_forgotten(autojump_clock: MockClock) -> None:
    """An inventory with unknown instances: what runs is stopped, what is over is forgotten, neither is recorded."""
    async with cluster(MemoryStore()) as here:
        worker = here.dial_worker()
        await worker.hello(worker.report("stranger", "Running"), worker.report("ghost", "Failed", reason="Killed"))
        assert worker.welcome is not None
        assert set(worker.welcome.orders) == {Stop("stranger"), Forget("ghost")}
        assert not here.api.instances


async def test_a_worker_must_say_hello_first(autojump_clock: MockClock) -> None:
    """Whoever reports without having said hello is rejected."""
    async with cluster(MemoryStore()) as here:
        worker = here.dial_worker()
        await worker.say(worker.report("u1", "Running"))
        with trio.fail_after(5):
            await worker.closed.wait()
        assert "hello" in worker.rejected


async def test_a_heartbeat_right_behind_the_hello(autojump_clock: MockClock) -> None:
    """A worker need not wait for its welcome before it sends heartbeats, progress and reports."""
    async with cluster(MemoryStore()) as here:
        worker = here.dial_worker()
        await worker.link.send(Hello(worker.journal, 1, worker.description, ()))
        await worker.link.send(Heartbeat(1))
        await worker.link.send(ProgressReport({}))
        await worker.say(worker.report("stranger", "Failed"))
        await worker.until(lambda: worker.waiting.get("stranger") == Forget("stranger"))
        assert worker.welcome is not None and not worker.rejected


async def test_a_node_that_lies_harms_nobody(autojump_clock: MockClock) -> None:
    """Reports on other nodes' instances, from epochs to come, with negative numbers, or late, change nothing."""
    async with cluster(MemoryStore()) as here:
        honest = await here.connect_worker("alpha", labels={"a": "1"})
        liar = await here.connect_worker("beta")
        [one] = await here.api.create(workload=document(nodeSelector={"a": "1"}))
        await honest.settle(honest.report(one.uid, "Running"))
        before = here.api.revision
        await liar.say(liar.report(one.uid, "Failed", reason="Killed"))
        await liar.until(lambda: one.uid in liar.waiting)
        late = honest.report(one.uid, "Creating")
        await honest.settle(late)
        for nonsense in (
            msgspec.structs.replace(honest.report(one.uid, "Failed"), epoch=99),
            msgspec.structs.replace(honest.report(one.uid, "Failed"), sequence=-1),
            msgspec.structs.replace(honest.report(one.uid, "Failed"), uid=""),
            msgspec.structs.replace(honest.report(one.uid, "Failed"), sequence=1),
        ):
            await honest.say(nonsense)
        await trio.sleep(1)
        assert here.api.revision == before
        assert here.api.instances[one.uid].status == "Running"


async def test_leases_start_afresh_with_the_scheduler(autojump_clock: MockClock) -> None:
    """A scheduler that was away for an hour gives every node a whole lease to be heard."""
    store = MemoryStore()
    async with cluster(store) as here:
        worker = await here.connect_worker()
        [one] = await here.api.create()
        await worker.settle(worker.report(one.uid, "Running"))
    await trio.sleep(3600)
    async with cluster(store) as here:
        await trio.sleep(8)
        assert here.api.instances[one.uid].stale_since is None
        again = await here.connect_worker("alpha", worker.report(one.uid, "Running"))
        await trio.sleep(5)
        assert again.welcome is not None and here.api.instances[one.uid].status == "Running"


async def test_deadlines_survive_a_restart(autojump_clock: MockClock) -> None:
    """A deadline that passed while no scheduler was there is enforced by the next one."""
    store = MemoryStore()
    async with cluster(store) as here:
        [one] = await here.api.create(workload=document(deadlines={"pendingSeconds": 60}))
    await trio.sleep(100)
    async with cluster(store) as here:
        await here.api.until(lambda: here.api.instances[one.uid].reason == "Unschedulable")


async def test_room_that_appears_is_used(autojump_clock: MockClock) -> None:
    """A node that joins takes what waits."""
    async with cluster(MemoryStore()) as here:
        made = await here.api.create(3)
        assert {one.status for one in made} == {"Pending"}
        worker = await here.connect_worker()
        await here.api.until(lambda: all(one.status == "Creating" for one in here.api.instances.values()))
        await worker.until(lambda: len(worker.waiting) == 3)

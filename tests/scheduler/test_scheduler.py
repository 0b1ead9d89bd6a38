"""The scheduler as its links see it: commands, orders, reports, and what leaves when."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from rik.messages import (
    CreateInstances,
    CreateWorkload,
    DeleteInstance,
    DeleteWorkload,
    Explain,
    Forget,
    Run,
    Stop,
)
from rik.model.instance import ContainerState, Instance, Port
from rik.model.resources import Resources
from rik.store.memory import MemoryStore
from tests.scheduler.cluster import NAMESPACE, START, SimulatedEnvironment, api_link, cluster, document, ports


async def test_an_instance_runs_and_completes(autojump_clock: MockClock) -> None:
    """From the command to Terminated every status is a change of its own, and a post-mortem comes with the last."""
    async with cluster(MemoryStore()) as here:
        worker = await here.connect_worker()
        [one] = await here.api.create()
        assert one.status == "Creating" and one.node == "alpha" and "the only one that fits" in one.decision
        await worker.until(lambda: one.uid in worker.waiting)
        order = worker.order_of(one.uid, Run)
        assert isinstance(order, Run)
        assert order.assignment.creating_deadline_at == one.placed_at + 600_000
        assert order.assignment.node_id == worker.journal
        container = ContainerState("main", "host", "running", started_at=START)
        await worker.settle(worker.report(one.uid, "Running", containers=(container,), ip="10.0.0.2"))
        running = here.api.instances[one.uid]
        assert (running.status, running.ip, running.containers, running.deadline_at) == (
            "Running",
            "10.0.0.2",
            (container,),
            0,
        )
        await worker.settle(worker.report(one.uid, "Terminated"))
        assert here.api.history(one.uid) == ["Pending", "Creating", "Running", "Terminated", "postmortem"]
        assert [entry.status.value for entry in here.api.instances[one.uid].history] == [
            "Pending",
            "Creating",
            "Running",
            "Terminated",
        ]
        await worker.until(lambda: worker.waiting[one.uid] == Forget(one.uid))


async def test_merged_transitions_stay_separate_changes(autojump_clock: MockClock) -> None:
    """What a worker merges into one report still reaches watchers status by status."""
    async with cluster(MemoryStore()) as here:
        worker = await here.connect_worker()
        [one] = await here.api.create()
        report = worker.report(one.uid, "Running", "Destroying", "Failed", reason="ContainerExited", message="exit 3")
        await worker.settle(report)
        assert here.api.history(one.uid) == ["Pending", "Creating", "Running", "Destroying", "Failed", "postmortem"]
        last = here.api.instances[one.uid]
        assert (last.reason, last.message) == ("ContainerExited", "exit 3")


async def test_names(autojump_clock: MockClock) -> None:
    """A taken name is a conflict, a name for several a bad request, an unknown workload not found."""
    async with cluster(MemoryStore()) as here:
        identity = await here.api.do(CreateWorkload(document(), NAMESPACE))
        assert (await here.api.ask(CreateWorkload(document(), NAMESPACE))).error == "conflict"
        assert await here.api.do(CreateInstances("hello", NAMESPACE, "web")) == ["web"]
        answer = await here.api.ask(CreateInstances(identity, NAMESPACE, "web"))
        assert answer.error == "conflict" and "web" in answer.message and answer.next_step
        assert (await here.api.ask(CreateInstances(identity, NAMESPACE, "other", 2))).error == "bad-request"
        assert (await here.api.ask(CreateInstances(identity, NAMESPACE, "Not/A/Name"))).error == "bad-request"
        assert (await here.api.ask(CreateInstances(identity, NAMESPACE, replicas=0))).error == "bad-request"
        assert (await here.api.ask(CreateInstances(identity, NAMESPACE, replicas=10_001))).error == "bad-request"
        assert (await here.api.ask(CreateInstances("none", NAMESPACE))).error == "not-found"
        assert (await here.api.ask(CreateInstances("hello", "elsewhere"))).error == "not-found"
        assert (await here.api.ask(DeleteInstance("none", NAMESPACE))).error == "not-found"
        assert (await here.api.ask(DeleteWorkload("none", NAMESPACE))).error == "not-found"
        assert (await here.api.ask(Explain("none", NAMESPACE))).error == "not-found"
        await here.api.do(DeleteInstance("web", NAMESPACE))
        assert await here.api.do(CreateInstances("hello", NAMESPACE, "web")) == ["web"]


async def test_large_documents_are_not_multiplied(autojump_clock: MockClock) -> None:
    """A large document times many replicas is refused with the numbers; one instance of it is not."""
    async with cluster(MemoryStore()) as here:
        await here.api.do(CreateWorkload(document(nodeSelector={"note": "x" * 900_000}), NAMESPACE))
        refused = await here.api.ask(CreateInstances("hello", NAMESPACE, replicas=100))
        assert refused.error == "bad-request" and "100 instances" in refused.message
        assert await here.api.do(CreateInstances("hello", NAMESPACE, "one")) == ["one"]


async def test_generated_names_are_unique(autojump_clock: MockClock) -> None:
    """Instances created in one request all get different names, and all are placed."""
    async with cluster(MemoryStore()) as here:
        await here.connect_worker()
        made = await here.api.create(500)
        assert len({one.name for one in made}) == 500
        await here.api.until(lambda: all(one.status == "Creating" for one in here.api.instances.values()))


async def test_a_running_instance_is_deleted(autojump_clock: MockClock) -> None:
    """A delete is answered once it is durable; then it is stopped, Terminated whatever its exit code, and removed."""
    async with cluster(MemoryStore()) as here:
        worker = await here.connect_worker()
        [one] = await here.api.create()
        await worker.settle(worker.report(one.uid, "Running"))
        await here.api.do(DeleteInstance(one.name, NAMESPACE))
        destroying = here.api.instances[one.uid]
        assert destroying.status == "Destroying" and destroying.deleted and destroying.deadline_at
        await worker.until(lambda: isinstance(worker.waiting[one.uid], Stop))
        killed = ContainerState("main", "host", "exited", exit_code=137, signal="SIGKILL")
        await worker.settle(worker.report(one.uid, "Failed", reason="Killed", containers=(killed,)))
        await here.api.until(lambda: one.uid not in here.api.instances)
        assert here.api.history(one.uid)[-4:] == ["Destroying", "Terminated", "postmortem", "delete"]
        await worker.until(lambda: worker.waiting[one.uid] == Forget(one.uid))
        store_says = await here.store.postmortem(one.uid)
        assert store_says is not None and store_says.containers == (killed,) and store_says.status == "Terminated"


async def test_what_would_not_die_stays_failed(autojump_clock: MockClock) -> None:
    """A deletion that fails is Failed DestroyFailed, and its record is removed all the same."""
    async with cluster(MemoryStore()) as here:
        worker = await here.connect_worker()
        [one] = await here.api.create()
        await worker.settle(worker.report(one.uid, "Running"))
        await here.api.do(DeleteInstance(one.uid, NAMESPACE))
        await worker.settle(worker.report(one.uid, "Failed", reason="DestroyFailed", message="pid 7 would not die"))
        await here.api.until(lambda: one.uid not in here.api.instances)
        assert here.api.history(one.uid)[-3:] == ["Failed", "postmortem", "delete"]


async def test_a_pending_instance_is_deleted(autojump_clock: MockClock) -> None:
    """What has no node yet is Terminated and removed at once."""
    async with cluster(MemoryStore()) as here:
        [one] = await here.api.create()
        assert one.status == "Pending"
        await here.api.do(DeleteInstance(one.name, NAMESPACE))
        assert here.api.history(one.uid)[-3:] == ["Terminated", "postmortem", "delete"]


async def test_a_final_instance_is_deleted(autojump_clock: MockClock) -> None:
    """A final record is removed at once, with no second post-mortem."""
    async with cluster(MemoryStore()) as here:
        worker = await here.connect_worker()
        [one] = await here.api.create()
        await worker.settle(worker.report(one.uid, "Failed", reason="ContainerExited"))
        await here.api.do(DeleteInstance(one.name, NAMESPACE))
        assert here.api.history(one.uid)[-3:] == ["Failed", "postmortem", "delete"]


async def test_deleted_before_its_worker_heard_of_it(autojump_clock: MockClock) -> None:
    """When the order to run was never sent, a delete ends the instance without waiting for a worker that is stuck."""
    async with cluster(MemoryStore()) as here:
        worker = here.dial_worker(capacity_of_link=0)
        await worker.hello()
        worker.stuck = True
        [taken] = await here.api.create()
        [under_way] = await here.api.create(workload=document("second"))
        [waiting] = await here.api.create(workload=document("third"))
        with trio.fail_after(5):
            await here.api.do(DeleteInstance(waiting.uid, NAMESPACE))
            await here.api.until(lambda: waiting.uid not in here.api.instances)
        assert here.api.history(waiting.uid)[-3:] == ["Terminated", "postmortem", "delete"]
        for one in (taken, under_way):
            await here.api.do(DeleteInstance(one.uid, NAMESPACE))
            assert here.api.instances[one.uid].status == "Destroying"


async def test_created_and_deleted_in_one_batch(autojump_clock: MockClock) -> None:
    """An instance whose delete arrives before its creation is durable never reaches a worker, and is gone at once."""
    async with cluster(MemoryStore(commit_s=0.1)) as here:
        await here.connect_worker()
        await here.api.do(CreateWorkload(document(), NAMESPACE))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(here.api.do, CreateWorkload(document("other"), NAMESPACE))
            await trio.sleep(0.03)
            nursery.start_soon(here.api.do, CreateInstances("hello", NAMESPACE, "web"))
            await trio.sleep(0.03)
            nursery.start_soon(here.api.do, DeleteInstance("web", NAMESPACE))
        with trio.fail_after(5):
            await here.api.until(lambda: not here.api.instances)
        told = [change.value.status for change in here.api.changes if isinstance(change.value, Instance)]
        assert told == ["Pending", "Creating", "Destroying", "Terminated", "Terminated", "Terminated"]


async def test_deleting_a_workload_deletes_its_instances(autojump_clock: MockClock) -> None:
    """The workload is gone at once, its instances as soon as they are stopped."""
    async with cluster(MemoryStore()) as here:
        worker = await here.connect_worker()
        made = await here.api.create(3)
        await worker.settle(*(worker.report(one.uid, "Running") for one in made))
        await here.api.do(DeleteWorkload("hello", NAMESPACE))
        assert {one.status for one in here.api.instances.values()} == {"Destroying"}
        assert await here.api.do(CreateWorkload(document(), NAMESPACE))
        await worker.settle(*(worker.report(one.uid, "Terminated") for one in made))
        await here.api.until(lambda: not here.api.instances)


async def test_pending_says_what_each_node_lacks_and_is_retried(autojump_clock: MockClock) -> None:
    """What does not fit waits, says why, and is placed, oldest first, when room appears."""
    async with cluster(MemoryStore()) as here:
        worker = await here.connect_worker(capacity=Resources(memory_bytes=2**30))
        made = await here.api.create(3, workload=document(resources={"memory": "1Gi"}))
        await here.api.until(lambda: here.api.instances[made[2].uid].message != made[2].message)
        waiting = here.api.instances[made[1].uid]
        assert waiting.status == "Pending"
        assert "needs 1 GiB memory" in waiting.message and "node alpha has less memory free" in waiting.message
        await worker.settle(worker.report(made[0].uid, "Running", "Terminated"))
        await here.api.until(lambda: here.api.instances[made[1].uid].status == "Creating")
        assert here.api.instances[made[2].uid].status == "Pending"


async def test_without_a_node_it_waits_for_its_deadline(autojump_clock: MockClock) -> None:
    """With no node at all an instance stays Pending, and fails Unschedulable, with the reason, at its deadline."""
    async with cluster(MemoryStore()) as here:
        [one] = await here.api.create(workload=document(deadlines={"pendingSeconds": 30}))
        with trio.fail_after(35):
            await here.api.until(lambda: here.api.instances[one.uid].status.final)
        last = here.api.instances[one.uid]
        assert last.reason == "Unschedulable" and "there is no node" in last.message
        assert last.updated_at >= one.created_at + 30_000


async def test_no_capable_node_fails_at_once(autojump_clock: MockClock) -> None:
    """When nodes are there and none could ever run it, it fails at once with each node's own reason."""
    async with cluster(MemoryStore()) as here:
        await here.connect_worker(no_function="/dev/kvm cannot be opened: Permission denied")
        [one] = await here.api.create(workload=document(kind="Function"))
        await here.api.until(lambda: here.api.instances[one.uid].status.final)
        last = here.api.instances[one.uid]
        assert last.reason == "NoCapableNode"
        assert "/dev/kvm cannot be opened: Permission denied" in last.message


async def test_a_port_held_everywhere_is_a_conflict(autojump_clock: MockClock) -> None:
    """A fixed port that is held on every node that otherwise fits fails at once and names the holder."""
    async with cluster(MemoryStore()) as here:
        await here.connect_worker()
        made = await here.api.create(2, workload=document(containers=ports(8080)))
        await here.api.until(lambda: here.api.instances[made[1].uid].status.final)
        last = here.api.instances[made[1].uid]
        assert last.reason == "PortConflict"
        assert f"port 8080/TCP is held by instance {made[0].name} on node alpha" in last.message


async def test_a_port_being_released_is_waited_for(autojump_clock: MockClock) -> None:
    """A fixed port whose holder is being stopped is no conflict: the next one waits for it and gets it."""
    async with cluster(MemoryStore()) as here:
        worker = await here.connect_worker()
        [first] = await here.api.create(workload=document(containers=ports(8080)))
        await worker.settle(worker.report(first.uid, "Running", ports=(Port(8080, 80),)))
        await here.api.do(DeleteInstance(first.uid, NAMESPACE))
        [name] = await here.api.do(CreateInstances("hello", NAMESPACE))
        second = here.api.named(name)
        await here.api.until(lambda: "being released" in here.api.instances[second.uid].message)
        await worker.settle(worker.report(first.uid, "Terminated"))
        await here.api.until(lambda: here.api.instances[second.uid].status == "Creating")


async def test_creating_is_ended_by_the_scheduler_when_the_worker_does_not(autojump_clock: MockClock) -> None:
    """A worker that never finishes a creation is overruled: Failed DeadlineExceeded naming the step, and a Stop."""
    async with cluster(MemoryStore(), creating_margin_s=45) as here:
        worker = await here.connect_worker()
        [one] = await here.api.create(workload=document(deadlines={"creatingSeconds": 20}))
        await worker.settle(worker.report(one.uid, "Creating", step="pull"))
        start = trio.current_time()
        async with worker.beating():
            await here.api.until(lambda: here.api.instances[one.uid].status.final)
        assert 64 <= trio.current_time() - start <= 67
        last = here.api.instances[one.uid]
        assert last.reason == "DeadlineExceeded" and "'pull'" in last.message and last.step == "pull"
        await worker.until(lambda: isinstance(worker.waiting[one.uid], Stop))


async def test_destroying_is_ended_by_the_scheduler_when_the_worker_does_not(autojump_clock: MockClock) -> None:
    """A worker that never says that all is gone: Failed DestroyFailed, and the record is removed."""
    async with cluster(MemoryStore()) as here:
        worker = await here.connect_worker()
        [one] = await here.api.create(workload=document(stopGraceSeconds=1))
        await worker.settle(worker.report(one.uid, "Running"))
        await here.api.do(DeleteInstance(one.uid, NAMESPACE))
        async with worker.beating():
            await here.api.until(lambda: one.uid not in here.api.instances)
        post_mortem = next(change.value for change in here.api.changes if change.kind == "postmortem")
        assert getattr(post_mortem, "reason", "") == "DestroyFailed"


async def test_explain(autojump_clock: MockClock) -> None:
    """Explain tells the decision that was taken and every node's answer now, and changes nothing."""
    async with cluster(MemoryStore()) as here:
        await here.connect_worker("alpha", labels={"disk": "ssd"})
        await here.connect_worker("beta")
        [one] = await here.api.create(workload=document(nodeSelector={"disk": "ssd"}))
        before = here.api.revision
        told = await here.api.do(Explain(one.name, NAMESPACE))
        assert (told["instance"], told["node"], told["status"]) == (one.name, "alpha", "Creating")
        assert "the only one that fits" in told["decision"]
        assert [(node["name"], node["fits"]) for node in told["nodes"]] == [("alpha", True), ("beta", False)]
        assert "is not labelled disk=ssd" in told["nodes"][1]["why"]
        assert here.api.revision == before


async def test_an_api_that_does_not_keep_up_begins_anew(autojump_clock: MockClock) -> None:
    """An api that never reads is cut off, nobody else is slowed, and its next session begins with a snapshot."""
    async with cluster(MemoryStore()) as here:
        ours, theirs = api_link(2)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(here.scheduler.serve_api, theirs)
            await here.connect_worker()
            for number in range(5):
                await here.api.create(workload=document(f"hello-{number}"))
        again = await here.connect_api()
        assert again.snapshots[0].revision == here.api.revision
        ours.close()


async def test_steps_are_marked_at_every_boundary(autojump_clock: MockClock) -> None:
    """Creating, running and deleting an instance passes every step at which the scheduler may die."""
    environment = SimulatedEnvironment()
    async with cluster(MemoryStore(), environment=environment) as here:
        worker = await here.connect_worker()
        [one] = await here.api.create()
        await worker.settle(worker.report(one.uid, "Running"))
        await here.api.do(DeleteInstance(one.uid, NAMESPACE))
        await worker.settle(worker.report(one.uid, "Terminated"))
    assert set(environment.steps) == {
        "scheduler.command",
        "scheduler.report",
        "scheduler.before-commit",
        "scheduler.after-commit",
        "scheduler.announced",
        "scheduler.answered",
        "scheduler.acknowledged",
        "scheduler.ordered",
    }


async def test_finished_instances_are_purged(autojump_clock: MockClock) -> None:
    """Final records are removed after their time, or when there are too many, the oldest first."""
    async with cluster(MemoryStore(), keep_finished_s=3600, keep_finished=3) as here:
        worker = await here.connect_worker()
        made = await here.api.create(5)
        for one in made:
            await worker.settle(worker.report(one.uid, "Running", "Terminated"))
            await trio.sleep(1)
        await here.api.until(lambda: len(here.api.instances) == 3)
        assert set(here.api.instances) == {one.uid for one in made[2:]}
        assert await here.store.postmortem(made[0].uid)
        await trio.sleep(3700)
        assert not here.api.instances
        await trio.sleep(3700)
        assert not await here.store.postmortem(made[4].uid)

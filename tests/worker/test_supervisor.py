"""The life of one instance, as the scheduler hears of it."""

from __future__ import annotations

import logging
from itertools import pairwise

import pytest
import trio
from trio.testing import MockClock

from rik.model.instance import Status
from rik.settings import WorkerSettings
from tests.worker.harness import FAR_MS, Site
from tests.worker.pretend import PretendedPublisher


async def test_runs_and_completes(autojump_clock: MockClock) -> None:
    """An instance whose containers exit 0 goes Creating, Running, Terminated, and says so in one sentence."""
    site = Site()
    async with site.running():
        await site.scheduler.run(site.assignment("a", {"FAKE_RUN_SECONDS": "5"}))
        running = await site.scheduler.until("a", Status.RUNNING)
        assert [c.state for c in running.containers] == ["running"]
        final = await site.scheduler.final("a")
        assert (final.status, final.reason) == (Status.TERMINATED, "")
        assert "exited with code 0" in final.message
        assert final.containers[0].exit_code == 0
        assert site.scheduler.history("a") == ["Creating", "Running", "Terminated"]


async def test_failure_names_container_code_and_time(autojump_clock: MockClock) -> None:
    """A container that exits non-zero fails the instance, with its name, its code, and how long it ran."""
    site = Site()
    async with site.running():
        env = {"FAKE_RUN_SECONDS": "1.2", "FAKE_EXIT_CODE": "3", "FAKE_LOG_LINES": "30"}
        await site.scheduler.run(site.assignment("a", env))
        final = await site.scheduler.final("a")
        assert (final.status, final.reason) == (Status.FAILED, "ContainerExited")
        assert final.message == "container `c0` exited with code 3 after 1.2 s"
        assert [line.line for line in final.log_tail] == [f"line {n}" for n in range(10, 30)]


async def test_siblings_are_stopped_before_failed_is_said(autojump_clock: MockClock) -> None:
    """When one container fails the others are stopped, Destroying gives the reason already, and Failed comes last."""
    site = Site()
    async with site.running():
        stubborn = {"FAKE_IGNORE_STOP": "1"}
        await site.scheduler.run(site.assignment("a", {"FAKE_RUN_SECONDS": "1", "FAKE_SIGNAL": "SIGSEGV"}, stubborn))
        destroying = await site.scheduler.until("a", Status.DESTROYING)
        assert (destroying.reason, destroying.message) == ("Killed", "container `c0` was killed by SIGSEGV after 1.0 s")
        began = trio.current_time()
        final = await site.scheduler.final("a")
        assert trio.current_time() - began >= 9.9, "the sibling had its whole grace"
        assert (final.status, final.reason) == (Status.FAILED, "Killed")
        assert [c.signal for c in final.containers] == ["SIGSEGV", "SIGKILL"]
        assert site.scheduler.history("a") == ["Creating", "Running", "Destroying", "Failed"]


async def test_out_of_memory_names_the_limit(autojump_clock: MockClock) -> None:
    """A container killed for want of memory is told with the limit."""
    site = Site()
    async with site.running():
        env = {"FAKE_RUN_SECONDS": "1", "FAKE_OOM": "1"}
        await site.scheduler.run(site.assignment("a", env, resources={"memory": "64Mi"}))
        final = await site.scheduler.final("a")
        assert final.reason == "OutOfMemory"
        assert "64 MiB" in final.message


async def test_delete_stops_and_terminates(autojump_clock: MockClock) -> None:
    """A deleted instance is Destroying, then Terminated whatever its exit code; nothing of it is left."""
    site = Site()
    async with site.running():
        await site.scheduler.run(site.assignment("a", {"FAKE_STOP_SECONDS": "2"}))
        await site.scheduler.until("a", Status.RUNNING)
        await site.scheduler.stop("a")
        final = await site.scheduler.final("a")
        assert (final.status, final.reason, final.message) == (Status.TERMINATED, "", "stopped on request")
        assert final.containers[0].signal == "SIGTERM"
        assert site.scheduler.history("a") == ["Creating", "Running", "Destroying", "Terminated"]
        assert site.machine.live() == []


async def test_stop_with_a_reason_fails(autojump_clock: MockClock) -> None:
    """An instance that the scheduler stops for a reason ends Failed for that reason."""
    site = Site()
    async with site.running():
        await site.scheduler.run(site.assignment("a"))
        await site.scheduler.until("a", Status.RUNNING)
        await site.scheduler.stop("a", "NodeLost", "its node was silent for 70 s")
        final = await site.scheduler.final("a")
        assert (final.status, final.reason) == (Status.FAILED, "NodeLost")
        assert final.message == "its node was silent for 70 s"


@pytest.mark.parametrize("verb", ["prepare", "start"])
async def test_delete_while_creating(autojump_clock: MockClock, verb: str) -> None:
    """A deletion interrupts a creation at any step."""
    site = Site()
    async with site.running():
        await site.scheduler.run(site.assignment("a", {"FAKE_HANG": verb}))
        await site.scheduler.until("a", Status.CREATING)
        await trio.sleep(1)
        await site.scheduler.stop("a")
        assert (await site.scheduler.final("a", limit_s=1)).status is Status.TERMINATED
        assert site.machine.live() == []
        assert site.scheduler.history("a") == ["Creating", "Destroying", "Terminated"]


async def test_stop_before_anything_was_heard_of_it(autojump_clock: MockClock) -> None:
    """A stop whose order to run never came is answered with a final report."""
    site = Site()
    async with site.running():
        await site.scheduler.stop("never")
        assert (await site.scheduler.final("never")).status is Status.TERMINATED
        assert site.memory.entries() == {}


async def test_prepare_failure_keeps_its_reason(autojump_clock: MockClock) -> None:
    """What the runtime says of a failed preparation reaches the scheduler verbatim."""
    site = Site()
    async with site.running():
        env = {"FAKE_FAIL": "ImageNotFound", "FAKE_FAIL_MESSAGE": "no such tag: x"}
        await site.scheduler.run(site.assignment("a", env))
        final = await site.scheduler.final("a")
        assert (final.status, final.reason, final.message) == (Status.FAILED, "ImageNotFound", "no such tag: x")
        assert site.scheduler.history("a") == ["Creating", "Failed"]


async def test_start_failure_is_never_running(autojump_clock: MockClock) -> None:
    """A command that cannot be executed fails the instance without it ever being Running."""
    site = Site()
    async with site.running():
        await site.scheduler.run(site.assignment("a", {"FAKE_FAIL": "CommandNotFound", "FAKE_FAIL_AT": "start"}))
        assert (await site.scheduler.final("a")).reason == "CommandNotFound"
        assert "Running" not in site.scheduler.history("a")


async def test_creating_deadline_names_the_step(autojump_clock: MockClock) -> None:
    """A creation that takes too long ends at its deadline, naming the step and how far it was."""
    site = Site()
    async with site.running():
        env = {"FAKE_PREPARE_SECONDS": "100", "FAKE_PULL_STEPS": "10"}
        deadline = site.environment.now() + 35_000
        await site.scheduler.run(site.assignment("a", env, deadline_at=deadline, deadlines={"creatingSeconds": 35}))
        began = trio.current_time()
        final = await site.scheduler.final("a")
        assert 34.9 <= trio.current_time() - began <= 36
        assert (final.reason, final.step) == ("DeadlineExceeded", "pull")
        assert "within 35 s; the step was pull (3 of 10 MB, 0 of 1 layer, after 30 s)" in final.message


async def test_a_stalled_pull_ends_with_the_creation(autojump_clock: MockClock) -> None:
    """A pull that its runtime lets stall ends at the creation's deadline, with all the figures it had come to."""
    site = Site()
    async with site.running():
        env = {"FAKE_PREPARE_SECONDS": "1000", "FAKE_PULL_STEPS": "20", "FAKE_PULL_LAYERS": "4"}
        deadline = site.environment.now() + 340_000
        await site.scheduler.run(site.assignment("a", env, deadline_at=deadline, deadlines={"creatingSeconds": 340}))
        began = trio.current_time()
        final = await site.scheduler.final("a")
        assert 339 <= trio.current_time() - began <= 341
        assert final.reason == "DeadlineExceeded"
        assert "within 340 s; the step was pull (6 of 21 MB, 1 of 4 layers, after 5 min)" in final.message


async def test_what_was_pulled_is_reported(autojump_clock: MockClock) -> None:
    """Once it runs, an instance's report says what it was given; so does the report that it ended with."""
    site = Site()
    async with site.running():
        env = {"FAKE_PULL_STEPS": "10", "FAKE_PULL_LAYERS": "5", "FAKE_PREPARE_SECONDS": "20", "FAKE_RUN_SECONDS": "5"}
        await site.scheduler.run(site.assignment("a", env))
        (image,) = (await site.scheduler.until("a", Status.RUNNING)).images
        assert (image.containers, image.layers, image.pulled_layers, image.seconds) == (("c0",), 5, 5, 20.0)
        assert (image.pulled_bytes, image.cached) == (10 * 2**20, False)
        assert (await site.scheduler.final("a")).images == (image,)


async def test_start_deadline(autojump_clock: MockClock) -> None:
    """A start that hangs is ended after its own limit, and what it may have begun is stopped."""
    site = Site()
    async with site.running():
        await site.scheduler.run(site.assignment("a", {"FAKE_HANG": "start"}))
        final = await site.scheduler.final("a")
        assert final.reason == "DeadlineExceeded"
        assert "within 30 s; the step was start" in final.message
        assert site.machine.live() == []


async def test_progress_is_told_at_most_twice_a_second(autojump_clock: MockClock) -> None:
    """Progress of a pull arrives, in order, at most every half second."""
    site = Site()
    async with site.running():
        await site.scheduler.run(site.assignment("a", {"FAKE_PREPARE_SECONDS": "10", "FAKE_PULL_STEPS": "1000"}))
        await site.scheduler.until("a", Status.RUNNING)
        pulls = [(at, p.done) for at, _, p in site.scheduler.progress if p.step == "pull"]
        assert 15 <= len(pulls) <= 22
        assert pulls == sorted(pulls)
        assert min(b[0] - a[0] for a, b in pairwise(pulls)) >= 0.49


async def test_creations_wait_for_their_turn(autojump_clock: MockClock) -> None:
    """Not more instances than set are created at a time; the others are queued, and say so."""
    site = Site(settings=WorkerSettings(node="n1", parallel_starts=2))
    async with site.running():
        for name in "abcd":
            await site.scheduler.run(site.assignment(name, {"FAKE_PREPARE_SECONDS": "10"}))
        began = trio.current_time()
        for name in "abcd":
            await site.scheduler.until(name, Status.RUNNING)
        assert 19.9 <= trio.current_time() - began <= 21
        assert {uid for _, uid, p in site.scheduler.progress if p.step == "queued"} == {"c", "d"}


async def test_a_pull_holds_up_nobody(autojump_clock: MockClock) -> None:
    """However many pull, what needs no pull starts at once, and all that pull do so at the same time; after that they
    are created in turn."""
    site = Site(settings=WorkerSettings(node="n1", parallel_starts=1))
    slow = {"FAKE_PREPARE_SECONDS": "60", "FAKE_PULL_STEPS": "10", "FAKE_START_SECONDS": "5"}
    async with site.running():
        began = trio.current_time()
        for name in "abc":
            await site.scheduler.run(site.assignment(name, slow))
        await site.scheduler.run(site.assignment("d"))
        await site.scheduler.until("d", Status.RUNNING)
        assert trio.current_time() - began < 5
        for name in "abc":
            await site.scheduler.until(name, Status.RUNNING)
        assert 74.9 <= trio.current_time() - began <= 80
        pulled = [uid for _, uid, progress in site.scheduler.progress if progress.step == "pull"]
        assert min(pulled.count(uid) for uid in "abc") > 5


async def test_queued_past_the_deadline(autojump_clock: MockClock) -> None:
    """What waits for its turn beyond its deadline fails naming the queue."""
    site = Site(settings=WorkerSettings(node="n1", parallel_starts=1))
    async with site.running():
        await site.scheduler.run(site.assignment("a", {"FAKE_PREPARE_SECONDS": "100"}))
        await site.scheduler.until("a", Status.CREATING)
        await site.scheduler.run(site.assignment("b", deadline_at=site.environment.now() + 5_000))
        final = await site.scheduler.final("b")
        assert final.reason == "DeadlineExceeded"
        assert "the step was queued" in final.message


async def test_port_conflict(autojump_clock: MockClock) -> None:
    """A fixed port that is taken fails the instance, naming its holder."""
    publisher = PretendedPublisher()
    publisher.held[8080] = "nginx (pid 1234)"
    site = Site(publisher=publisher)
    async with site.running():
        await site.scheduler.run(site.assignment("a", ports=[{"port": 8080, "targetPort": 80}]))
        final = await site.scheduler.final("a")
        assert final.reason == "PortConflict"
        assert "nginx (pid 1234)" in final.message
        assert site.machine.live() == []


async def test_ports_are_told_and_withdrawn(autojump_clock: MockClock) -> None:
    """Published ports are in the report, and given back at the end."""
    publisher = PretendedPublisher()
    site = Site(publisher=publisher)
    async with site.running():
        await site.scheduler.run(site.assignment("a", {"FAKE_RUN_SECONDS": "5"}, ports=[{"port": 0, "targetPort": 80}]))
        running = await site.scheduler.until("a", Status.RUNNING)
        assert [(p.port, p.target_port, p.address) for p in running.ports] == [(30_001, 80, "127.0.0.1")]
        await site.scheduler.final("a")
        assert publisher.published == {}


async def test_host_network_needs_no_proxy(autojump_clock: MockClock) -> None:
    """With the host's network the pod's own ports are the node's."""
    publisher = PretendedPublisher()
    site = Site(publisher=publisher)
    async with site.running():
        ports = [{"port": 80, "targetPort": 8080}]
        await site.scheduler.run(site.assignment("a", ports=ports, hostNetwork=True))
        running = await site.scheduler.until("a", Status.RUNNING)
        assert [p.port for p in running.ports] == [8080]
        assert publisher.published == {}


async def test_what_will_not_die_is_named_and_tried_again(autojump_clock: MockClock) -> None:
    """When stopping fails the instance is Failed DestroyFailed, and its worker keeps trying until it is gone."""
    site = Site()
    async with site.running() as worker:
        env = {"FAKE_FAIL": "DestroyFailed", "FAKE_FAIL_AT": "stop", "FAKE_FAIL_TIMES": "3"}
        env["FAKE_FAIL_MESSAGE"] = "process 77 (dd) is in uninterruptible sleep"
        await site.scheduler.run(site.assignment("a", env))
        await site.scheduler.until("a", Status.RUNNING)
        await site.scheduler.stop("a")
        final = await site.scheduler.final("a")
        assert (final.status, final.reason) == (Status.FAILED, "DestroyFailed")
        assert "process 77 (dd)" in final.message
        assert "stopped on request" in final.message
        assert [r.owner for r in (await worker.audit()).resources] == ["a"], "it is named until it is gone"
        await trio.sleep(10)
        assert site.machine.live() == []
        assert site.memory.entries() == {}
        assert worker.uids() == frozenset()


async def test_removal_that_fails(autojump_clock: MockClock) -> None:
    """When something cannot be removed the first cause is still in the sentence."""
    site = Site()
    async with site.running():
        env = {"FAKE_RUN_SECONDS": "1", "FAKE_EXIT_CODE": "9", "FAKE_FAIL": "DestroyFailed"}
        env |= {"FAKE_FAIL_AT": "remove", "FAKE_FAIL_TIMES": "1", "FAKE_FAIL_MESSAGE": "a mount is busy"}
        await site.scheduler.run(site.assignment("a", env))
        final = await site.scheduler.final("a")
        assert final.reason == "DestroyFailed"
        assert "a mount is busy" in final.message
        assert "exited with code 9" in final.message


async def test_a_deletion_that_leaves_something(autojump_clock: MockClock) -> None:
    """A deleted instance of which something cannot be removed has one final status, Failed."""
    site = Site()
    async with site.running():
        env = {"FAKE_FAIL": "DestroyFailed", "FAKE_FAIL_AT": "remove", "FAKE_FAIL_TIMES": "1"}
        await site.scheduler.run(site.assignment("a", env))
        await site.scheduler.until("a", Status.RUNNING)
        await site.scheduler.stop("a")
        assert (await site.scheduler.final("a")).reason == "DestroyFailed"
        assert site.scheduler.history("a") == ["Creating", "Running", "Destroying", "Failed"]


@pytest.mark.parametrize("verb", ["prepare", "start", "wait"])
async def test_a_fault_of_rik_ends_one_instance(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, verb: str
) -> None:
    """A bug met on behalf of one instance fails that one with InternalError, reaches the log, and nothing else."""
    site = Site()
    async with site.running():
        await site.scheduler.run(site.assignment("good"))
        with caplog.at_level(logging.ERROR):
            await site.scheduler.run(site.assignment("a", {"FAKE_BUG": verb}))
            final = await site.scheduler.final("a")
        assert (final.status, final.reason) == (Status.FAILED, "InternalError")
        assert "a fault in RIK itself" in final.message
        assert f"RuntimeError: a bug in {verb}" in final.message
        assert any(record.exc_info for record in caplog.records)
        assert site.scheduler.latest["good"].status is Status.RUNNING
        assert site.machine.live() == ["good"]


async def test_full_disk_at_the_order(autojump_clock: MockClock) -> None:
    """An order that cannot be made durable fails with the cause, and nothing is started."""
    site = Site()
    async with site.running():
        await site.scheduler.run(site.assignment("old"))
        await site.scheduler.until("old", Status.RUNNING)
        site.memory.refuse("database or disk is full")
        await site.scheduler.run(site.assignment("a"))
        final = await site.scheduler.final("a")
        assert final.reason == "CreateFailed"
        assert "disk is full" in final.message
        assert site.machine.live() == ["old"]
        site.memory.refuse("")
        assert list(site.memory.entries()) == ["old"]


async def test_full_disk_at_the_end(autojump_clock: MockClock) -> None:
    """An instance can be deleted, and its end told, while the disk is full."""
    site = Site()
    async with site.running():
        await site.scheduler.run(site.assignment("a"))
        await site.scheduler.until("a", Status.RUNNING)
        site.memory.refuse("database or disk is full")
        await site.scheduler.stop("a")
        assert (await site.scheduler.final("a")).status is Status.TERMINATED
        assert site.machine.live() == []


async def test_an_order_for_another_journal_is_ignored(autojump_clock: MockClock) -> None:
    """A worker starts only what is addressed to its own journal."""
    site = Site()
    async with site.running():
        await site.scheduler.run(site.assignment("a", node_id="another"))
        await trio.sleep(5)
        assert site.machine.live() == []
        assert "a" not in site.scheduler.latest


async def test_an_order_that_cannot_be_read(autojump_clock: MockClock) -> None:
    """An order whose document makes no sense to this worker fails that one instance."""
    site = Site()
    async with site.running():
        await site.scheduler.run(site.assignment("a", resources={"cpu": "plenty"}))
        assert (await site.scheduler.final("a")).reason == "InternalError"
        await site.scheduler.run(site.assignment("b"))
        await site.scheduler.until("b", Status.RUNNING)


async def test_containers_are_named_from_the_beginning(autojump_clock: MockClock) -> None:
    """While it is being created, and when that fails, an instance's containers are shown as waiting."""
    site = Site()
    async with site.running():
        await site.scheduler.run(site.assignment("a", {"FAKE_FAIL": "ImageNotFound"}, {}))
        for report in (await site.scheduler.until("a", Status.CREATING), await site.scheduler.final("a")):
            assert [(c.name, c.image, c.state) for c in report.containers] == [
                ("c0", "host", "waiting"),
                ("c1", "host", "waiting"),
            ]


async def test_an_order_twice_starts_once(autojump_clock: MockClock) -> None:
    """An order that comes again changes nothing, also when the instance has ended meanwhile."""
    site = Site()
    site.scheduler.acknowledges = False
    async with site.running():
        assignment = site.assignment("a", {"FAKE_RUN_SECONDS": "1"})
        await site.scheduler.run(assignment)
        await site.scheduler.run(assignment)
        await site.scheduler.final("a")
        await site.scheduler.run(assignment)
        await trio.sleep(5)
        assert site.machine.live() == []
        assert site.environment.steps.count("worker.start.done") == 1


async def test_no_runtime_for_the_kind(autojump_clock: MockClock) -> None:
    """What no runtime here can run fails at once and says what there is."""
    from rik.runtime.fake import FakeRuntime
    from tests.worker.pretend import PretendedEnvironment

    class PodsOnly(FakeRuntime):
        async def probe(self):  # type: ignore[no-untyped-def]
            import msgspec

            return msgspec.structs.replace(await super().probe(), kinds=("Pod",), reason="no microVMs here")

    site = Site(runtimes=[PodsOnly(PretendedEnvironment())])
    async with site.running():
        function = {"execution": {"rootfs": "https://example.org/x"}}
        await site.scheduler.run(site.assignment("f", kind="Function", function=function))
        final = await site.scheduler.final("f")
        assert final.reason == "NoCapableNode"
        assert "no microVMs here" in final.message
        assert FAR_MS > 0

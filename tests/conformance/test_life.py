"""Prepare, start, wait, stop, remove, observe: alike for every runtime."""

from __future__ import annotations

import time

import pytest
import trio

from rik.errors import InstanceFailure
from rik.model.instance import Progress
from rik.runtime.base import Observed, Pod, Runtime
from tests.conformance.subjects import SLEEPS, Bench, Does


def ignore(progress: Progress) -> None:
    """Progress that nobody looks at."""


def unchanged(observed: Observed) -> None:
    """Changes that nobody looks at."""


async def run(runtime: Runtime, pod: Pod) -> Observed:
    await runtime.prepare(pod, ignore)
    return await runtime.start(pod)


async def end(runtime: Runtime, pod: Pod) -> None:
    await runtime.stop(pod.uid, 0.0)
    await runtime.remove(pod.uid)


async def test_probe(runtime: Runtime) -> None:
    """A runtime that works here says so, with the kinds it runs and what of the limits it enforces."""
    capability = await runtime.probe()
    assert (capability.runtime, capability.ok) == (runtime.name, True), capability.reason
    assert "Pod" in capability.kinds
    assert {"cpu", "memory", "pids"} <= set(capability.limits)


async def test_images_are_told(bench: Bench, runtime: Runtime) -> None:
    """Preparing tells of each image once, with the containers that run it, and of its layers while they come; what is
    the host's own is no image. Prepared again it is the same image."""
    told: list[Progress] = []
    pod = bench.pod(Does(pulled=True), SLEEPS, Does(pulled=True))
    (image,) = await runtime.prepare(pod, told.append)
    assert image.containers == ("c0", "c2")
    assert (image.layers, image.pulled_layers, image.cached) == (2, 2, False)
    assert image.reference in pod.spec.containers[0].image
    assert image.digest.startswith("sha256:") and image.pulled_bytes > 0 and image.pulled_at > 0
    ways = [progress for progress in told if progress.layers_total]
    assert {progress.layers_total for progress in ways} == {2}
    assert [p.layers_done for p in ways] == sorted(p.layers_done for p in ways)
    assert ways[-1].layers_done == 2
    assert all(progress.done <= progress.total for progress in ways)
    (again,) = await runtime.prepare(pod, ignore)
    assert (again.digest, again.containers) == (image.digest, image.containers)
    await runtime.remove(pod.uid)
    host = bench.pod(SLEEPS)
    assert await runtime.prepare(host, ignore) == ()
    await runtime.remove(host.uid)


async def test_from_nothing_to_nothing(bench: Bench, runtime: Runtime) -> None:
    """Absent, running, ended, absent: with the times, and nothing left behind."""
    pod = bench.pod(Does(ends_after=0.3))
    assert (await runtime.observe(pod.uid)).phase == "absent"
    before = time.time_ns() // 1_000_000
    running = await run(runtime, pod)
    assert running.phase == "running"
    (container,) = running.containers
    assert (container.name, container.image, container.state) == ("c0", "host", "running")
    assert container.started_at is not None
    assert before - 50 <= container.started_at <= time.time_ns() // 1_000_000 + 50
    assert "network" in running.enforced
    ended = await runtime.wait(pod.uid, unchanged)
    assert (ended.phase, ended.failure) == ("ended", None)
    (container,) = ended.containers
    assert (container.state, container.exit_code, container.signal) == ("exited", 0, None)
    assert container.started_at is not None
    assert container.ended_at is not None
    assert 250 <= container.ended_at - container.started_at <= 5_000
    await runtime.remove(pod.uid)
    assert (await runtime.observe(pod.uid)).phase == "absent"
    assert [item for item in await runtime.inventory() if item.owner == pod.uid] == []


@pytest.mark.parametrize("code", [1, 3, 126, 255])
async def test_exit_codes(bench: Bench, runtime: Runtime, code: int) -> None:
    """A non-zero exit fails the instance with the container, its code, and a sentence."""
    pod = bench.pod(Does(ends_after=0.05, code=code))
    await run(runtime, pod)
    ended = await runtime.wait(pod.uid, unchanged)
    assert ended.containers[0].exit_code == code
    assert ended.failure is not None
    assert (ended.failure.reason, ended.failure.container) == ("ContainerExited", "c0")
    assert f"`c0` exited with code {code}" in ended.failure.message
    await runtime.remove(pod.uid)


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGKILL"])
async def test_signals(bench: Bench, runtime: Runtime, name: str) -> None:
    """A container killed by a signal is told with the signal's name."""
    pod = bench.pod(Does(ends_after=0.05, signal=name))
    await run(runtime, pod)
    ended = await runtime.wait(pod.uid, unchanged)
    assert ended.containers[0].signal == name
    assert ended.failure is not None
    assert ended.failure.reason == "Killed"
    assert name in ended.failure.message
    await runtime.remove(pod.uid)


async def test_the_first_failure_ends_its_siblings(bench: Bench, runtime: Runtime) -> None:
    """When one container fails the others are stopped, `changed` hears of it first, and the cause is the first one."""
    pod = bench.pod(Does(ends_after=0.2, code=4), Does(stop_takes=0.5), SLEEPS)
    await run(runtime, pod)
    phases = []

    def changed(observed: Observed) -> None:
        phases.append((observed.phase, observed.failure.container if observed.failure else ""))

    ended = await runtime.wait(pod.uid, changed)
    assert ("failing", "c0") in phases
    assert ended.failure is not None
    assert (ended.failure.reason, ended.failure.container) == ("ContainerExited", "c0")
    assert [container.state for container in ended.containers] == ["exited"] * 3
    await runtime.remove(pod.uid)


async def test_a_stubborn_sibling_is_killed_after_the_grace(bench: Bench, runtime: Runtime) -> None:
    """A sibling that ignores its stop signal is killed when the spec's grace is over."""
    pod = bench.pod(Does(ends_after=0.2, code=4), Does(ignores_stop=True), stopGraceSeconds=0.5)
    await run(runtime, pod)
    ended = await runtime.wait(pod.uid, unchanged)
    assert [container.signal for container in ended.containers] == [None, "SIGKILL"]
    await runtime.remove(pod.uid)


async def test_some_complete_before_others(bench: Bench, runtime: Runtime) -> None:
    """A container that exits 0 leaves the others running; when all have, the instance has ended without a failure."""
    pod = bench.pod(Does(ends_after=0.1), Does(ends_after=0.6))
    await run(runtime, pod)
    seen = []

    def changed(observed: Observed) -> None:
        seen.append((observed.phase, [container.state for container in observed.containers]))

    ended = await runtime.wait(pod.uid, changed)
    assert ("running", ["exited", "running"]) in seen
    assert (ended.phase, ended.failure) == ("ended", None)
    await runtime.remove(pod.uid)


async def test_stop_is_heeded(bench: Bench, runtime: Runtime) -> None:
    """A container that heeds the stop signal ends long before the grace, and takes the time it needs."""
    quick, slow = bench.pod(SLEEPS), bench.pod(Does(stop_takes=0.7))
    for pod in (quick, slow):
        await run(runtime, pod)
    await trio.sleep(0.2)  # the shell of the slow one must have set its trap
    began = trio.current_time()
    await runtime.stop(quick.uid, 10.0)
    assert trio.current_time() - began < 3
    began = trio.current_time()
    await runtime.stop(slow.uid, 10.0)
    assert 0.5 < trio.current_time() - began < 5
    for pod in (quick, slow):
        assert (await runtime.observe(pod.uid)).phase == "ended"
        await runtime.remove(pod.uid)


async def test_stop_that_is_ignored(bench: Bench, runtime: Runtime) -> None:
    """A container that ignores the stop signal is killed after the grace, not before."""
    pod = bench.pod(Does(ignores_stop=True))
    await run(runtime, pod)
    await trio.sleep(0.2)
    began = trio.current_time()
    await runtime.stop(pod.uid, 0.8)
    assert 0.7 < trio.current_time() - began < 5
    assert (await runtime.observe(pod.uid)).containers[0].signal == "SIGKILL"
    await runtime.remove(pod.uid)


async def test_a_stop_can_be_hastened(bench: Bench, runtime: Runtime) -> None:
    """A stop that is cut off goes on, and a second one with less grace ends it."""
    pod = bench.pod(Does(ignores_stop=True))
    await run(runtime, pod)
    with trio.move_on_after(0.3):
        await runtime.stop(pod.uid, 1_000.0)
    await runtime.stop(pod.uid, 0.0)
    assert (await runtime.observe(pod.uid)).phase == "ended"
    await runtime.remove(pod.uid)


async def test_waiting_ends_with_a_stop(bench: Bench, runtime: Runtime) -> None:
    """Whoever waits hears of an end that was brought about by `stop`."""
    pod = bench.pod(SLEEPS)
    await run(runtime, pod)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(runtime.stop, pod.uid, 5.0)
        assert (await runtime.wait(pod.uid, unchanged)).phase == "ended"
    await runtime.remove(pod.uid)


async def test_a_missing_command(bench: Bench, runtime: Runtime) -> None:
    """A command that does not exist fails the start, naming it and its container; nothing runs."""
    pod = bench.pod(Does(missing=True))
    await runtime.prepare(pod, ignore)
    with pytest.raises(InstanceFailure) as failed:
        await runtime.start(pod)
    assert failed.value.reason == "CommandNotFound"
    assert "/no/such/command" in str(failed.value)
    assert "c0" in str(failed.value)
    assert (await runtime.observe(pod.uid)).phase in ("ended", "absent")
    await runtime.remove(pod.uid)


async def test_a_start_that_fails_half_way(bench: Bench, runtime: Runtime) -> None:
    """When one container cannot be started the others do not run either."""
    pod = bench.pod(Does(missing=True), SLEEPS)
    await runtime.prepare(pod, ignore)
    with pytest.raises(InstanceFailure):
        await runtime.start(pod)
    assert (await runtime.observe(pod.uid)).phase in ("ended", "absent")
    await runtime.remove(pod.uid)
    assert [item for item in await runtime.inventory() if item.owner == pod.uid] == []


async def test_every_verb_twice(bench: Bench, runtime: Runtime) -> None:
    """Repeating a verb changes nothing: above all, nothing is started twice."""
    pod = bench.pod(SLEEPS)
    await runtime.prepare(pod, ignore)
    await runtime.prepare(pod, ignore)
    first = await runtime.start(pod)
    again = await runtime.start(pod)
    assert again.containers[0].started_at == first.containers[0].started_at
    await runtime.prepare(pod, ignore)
    assert (await runtime.observe(pod.uid)).phase == "running"
    await runtime.stop(pod.uid, 5.0)
    await runtime.stop(pod.uid, 5.0)
    await runtime.remove(pod.uid)
    await runtime.remove(pod.uid)


async def test_verbs_on_nothing(bench: Bench, runtime: Runtime) -> None:
    """Stopping and removing what never was is done already."""
    uid = bench.pod(SLEEPS).uid
    await runtime.stop(uid, 0.0)
    await runtime.remove(uid)
    assert (await runtime.observe(uid)).phase == "absent"


@pytest.mark.parametrize("after_s", [0.0, 0.005, 0.02])
async def test_cut_off_creations_can_be_removed(bench: Bench, runtime: Runtime, after_s: float) -> None:
    """Whenever a creation is cancelled, it can be removed, and nothing is left of it."""
    pod = bench.pod(SLEEPS, SLEEPS)
    with trio.move_on_after(after_s):
        await run(runtime, pod)
    await end(runtime, pod)
    assert (await runtime.observe(pod.uid)).phase == "absent"
    assert [item for item in await runtime.inventory() if item.owner == pod.uid] == []


async def test_removing_what_runs(bench: Bench, runtime: Runtime) -> None:
    """Removing ends what still runs."""
    pod = bench.pod(SLEEPS)
    await run(runtime, pod)
    await runtime.remove(pod.uid)
    assert (await runtime.observe(pod.uid)).phase == "absent"


async def test_found_again(bench: Bench) -> None:
    """Another runtime object, as after a restart, sees what runs and waits for its true end."""
    pod = bench.pod(Does(ends_after=0.8, code=6))
    with trio.fail_after(30):
        async with bench.opened() as before:
            started = (await run(before, pod)).containers[0].started_at
        async with bench.opened() as after:
            observed = await after.observe(pod.uid)
            assert (observed.phase, observed.containers[0].started_at) == ("running", started)
            ended = await after.wait(pod.uid, unchanged)
            assert ended.containers[0].exit_code == 6
            await after.remove(pod.uid)


async def test_ended_meanwhile(bench: Bench) -> None:
    """What ended while nobody looked has its exit code, its failure and its time."""
    pod = bench.pod(Does(ends_after=0.1, code=6), SLEEPS)
    with trio.fail_after(30):
        async with bench.opened() as before:
            await run(before, pod)
        await trio.sleep(1.5)
        async with bench.opened() as after:
            observed = await after.observe(pod.uid)
            assert observed.phase == "ended"
            assert observed.containers[0].exit_code == 6
            assert observed.failure is not None
            assert observed.failure.reason == "ContainerExited"
            assert (await after.wait(pod.uid, unchanged)).failure == observed.failure
            await after.remove(pod.uid)


async def test_inventory_and_sweep(bench: Bench) -> None:
    """Everything is listed with its owner, and a sweep removes what nobody owns and nothing else."""
    kept, stray = bench.pod(SLEEPS), bench.pod(SLEEPS)
    with trio.fail_after(30):
        async with bench.opened() as before:
            await run(before, kept)
            await run(before, stray)
        async with bench.opened() as after:
            owners = {item.owner for item in await after.inventory()}
            assert {kept.uid, stray.uid} <= owners
            swept = await after.sweep(frozenset({kept.uid}))
            assert {item.owner for item in swept} >= {stray.uid}
            assert kept.uid not in {item.owner for item in swept}
            assert {item.owner for item in await after.inventory()} & {kept.uid, stray.uid} == {kept.uid}
            assert (await after.observe(kept.uid)).phase == "running"
            assert await after.sweep(frozenset({kept.uid})) == []
            await end(after, kept)

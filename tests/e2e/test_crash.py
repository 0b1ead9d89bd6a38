"""`kill -9` of the server anywhere: nothing acknowledged is lost, nothing is left behind, no watcher sees a hole."""

from __future__ import annotations

import os
import random
import signal
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from tests.e2e.lanes import LANES, in_lanes, share
from tests.e2e.server import Client, Server, ServerDied, pod, shell
from tests.e2e.steps import all_steps
from tests.e2e.watcher import Watcher

pytestmark = [pytest.mark.require("user-namespaces", reason="pods are made of them"), pytest.mark.slow]

# An ordinary user's run passes every step too; how often chance strikes besides is not a matter of who runs it, and CI
# runs both, one after the other.
RANDOM_MOMENTS = 50 if os.geteuid() == 0 else 15
# A round takes 1–3 s; what takes this long is stuck.
ROUND_LIMIT_S = 60.0
SETTLE_S = 20.0
FINAL = ("Failed", "Terminated")

WORKLOADS = {
    "long": pod("long", shell("echo up; exec sleep 1000"), stopGraceSeconds=1),
    "batch": pod("batch", shell("echo done; exit 0")),
    "crash": pod("crash", shell("echo boom; exit 3")),
}


class Rounds:
    """A server that dies once a round, what it acknowledged, and the checks after each restart."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.watcher = Watcher()
        self.number = 0
        self.acknowledged: dict[str, str] = {}
        # A delete whose answer was lost to the crash may or may not have become durable.
        self.asked: set[str] = set()
        self.deleted: set[str] = set()
        self.running_since: dict[str, Any] = {}

    async def use(self) -> None:
        """Creates one instance of each workload, waits, deletes the long one, and waits again.

        Stops with httpx.HTTPError when the server dies under it.
        """
        self.number += 1
        self.acknowledged, self.asked, self.deleted, self.running_since = {}, set(), set(), {}
        async with Client(self.server.url) as client:
            for workload in WORKLOADS:
                name = f"{workload}-{self.number}"
                await client.post("instances.create", {"workload_id": workload, "name": name})
                self.acknowledged[name] = workload
            await client.until(f"batch-{self.number}", *FINAL)
            await client.until(f"crash-{self.number}", *FINAL)
            long = f"long-{self.number}"
            record = await client.until(long, "Running", *FINAL)
            if record["status"] == "Running":
                self.running_since[long] = record["containers"][0]["started_at"]
            self.asked.add(long)
            await client.post("instances.delete", {"id": long})
            self.deleted.add(long)
            await client.until(long, *FINAL)
            await client.post("instances.delete", {"id": f"crash-{self.number}"})
            self.deleted.add(f"crash-{self.number}")

    async def check(self) -> None:
        """After a restart: everything acknowledged is Running or explained, and after a clean-up nothing is left."""
        async with Client(self.server.url) as client:
            for name, workload in self.acknowledged.items():
                expected = ("Running", *FINAL) if workload == "long" and name not in self.deleted else FINAL
                record = await client.until(name, *expected, limit_s=SETTLE_S)
                self._judge(name, workload, record)
            for entry in await client.get("instances.list"):
                await client.post("instances.delete", {"id": entry["id"]})
            with trio.fail_after(SETTLE_S):
                while await client.get("instances.list"):
                    await trio.sleep(0.02)
            nodes = await client.get("nodes.list")
            audit = await client.get(f"nodes.audit/{nodes[0]['name']}")
            assert audit["orphans"] == []
            revision = (await client.get("cluster.info"))["revision"]
        with trio.fail_after(SETTLE_S):
            await self.watcher.reached(revision)

    def _judge(self, name: str, workload: str, record: dict[str, Any]) -> None:
        status, reason = record["status"], record["reason"]
        if name in self.deleted:
            assert status in FINAL, record
        elif name in self.asked:
            assert status in ("Running", *FINAL), record
        elif workload == "long":
            # It runs until told to stop; a crash in the midst of its start may have ended it, but says so.
            assert status == "Running" or (status == "Failed" and reason and record["message"]), record
            if name in self.running_since:
                assert status == "Running", record
                assert record["containers"][0]["started_at"] == self.running_since[name], "it was started twice"
        elif workload == "batch":
            assert (status == "Terminated" and record["containers"][0]["exit_code"] == 0) or (
                status == "Failed" and reason == "StoppedWithoutStatus"
            ), record
        else:
            assert status == "Failed" and (
                (reason == "ContainerExited" and record["containers"][0]["exit_code"] == 3)
                or reason == "StoppedWithoutStatus"
            ), record


async def _prepare(server: Server) -> None:
    async with Client(server.url) as client:
        for document in WORKLOADS.values():
            await client.post("workloads.create", document)


async def _start(server: Server, **env: str) -> bool:
    """False when it died on the way, by its own hand."""
    try:
        await server.start(**env)
    except ServerDied as died:
        assert died.returncode == -signal.SIGKILL, died
        return False
    return True


async def _crash_at(rounds: Rounds, step: str) -> bool:
    """Runs a round that ends at `step` (also one of start or stop); False when the step was never passed."""
    server = rounds.server
    if await _start(server, RIK_CRASH_AT=step):
        rounds.watcher.follow(server.url)
        try:
            await rounds.use()
        except httpx.HTTPError:
            pass
        if server.alive():
            os.kill(server.pid, signal.SIGTERM)
    else:
        rounds.acknowledged = {}
    died = await server.wait_dead() == -signal.SIGKILL
    await server.start()
    rounds.watcher.follow(server.url)
    return died


# A request whose server is killed under it leaves a generator of httpx's unfinished.
@pytest.mark.filterwarnings("ignore:Async generator 'httpx:ResourceWarning")
async def test_killed_anywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At every step boundary, and at many random moments, the server may die: it adopts, explains, leaves nothing."""
    seed = int(os.environ.get("RIK_TEST_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
    randomness = random.Random(seed)
    moments = [randomness.uniform(0.0, 1.0) for _ in range(RANDOM_MOMENTS)]
    hit: Counter[str] = Counter()
    steps = all_steps()

    async def run(lane: int) -> None:
        await _run_lane(tmp_path / str(lane), share(steps, lane), share(moments, lane), hit)

    try:
        await in_lanes(run)
    finally:
        with capsys.disabled():
            print(
                f"\nkill -9 at every step and at {RANDOM_MOMENTS} random moments, RIK_TEST_SEED={seed}, {LANES} lanes"
            )
            for step in sorted(steps):
                print(f"  {step:40} {'#' * hit[step]} {hit[step]}")
    assert not [step for step in steps if not hit[step]], "a step was never passed"


async def _run_lane(directory: Path, steps: Sequence[str], moments: Sequence[float], hit: Counter[str]) -> None:
    """Kills a server of its own at each of `steps`, then `moments` seconds into its use; counts in `hit` where."""
    directory.mkdir()
    trace = directory / "steps"
    server = Server(directory / "data", env={"RIK_STEP_LOG": str(trace)})
    rounds = Rounds(server)
    try:
        await server.start()
        await _prepare(server)
        await _leave_one_running(server)
        rounds.watcher.follow(server.url)
        await server.stop()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rounds.watcher.run)
            for step in steps:
                with trio.fail_after(ROUND_LIMIT_S):
                    # What was left running by the round before gives the steps of adoption something to adopt.
                    if await _crash_at(rounds, step):
                        hit[step] += 1
                    await rounds.check()
                    await _leave_one_running(server)
                    await server.stop()
            await server.start()
            for moment in moments:
                with trio.fail_after(ROUND_LIMIT_S):
                    await _kill_in(rounds, moment)
                    hit[trace.read_text().split()[-1]] += 1
                    await server.start()
                    rounds.watcher.follow(server.url)
                    await rounds.check()
            await _replay_equals(server, rounds.watcher)
            nursery.cancel_scope.cancel()
    finally:
        await _finish(server)


async def _kill_in(rounds: Rounds, delay_s: float) -> None:
    async with trio.open_nursery() as nursery:

        async def kill() -> None:
            await trio.sleep(delay_s)
            rounds.server.kill()
            await rounds.server.wait_dead()

        nursery.start_soon(kill)
        while rounds.server.alive():
            try:
                await rounds.use()
            except httpx.HTTPError:
                break


async def _leave_one_running(server: Server) -> None:
    async with Client(server.url) as client:
        names = await client.post("instances.create", {"workload_id": "long"})
        await client.until(names[0], "Running")


async def _replay_equals(server: Server, watcher: Watcher) -> None:
    """What the watcher gathered over all connections is what a new one is told from the beginning."""
    watcher.follow(server.url)
    replay = Watcher()
    replay.follow(server.url)
    async with Client(server.url) as client:
        revision = (await client.get("cluster.info"))["revision"]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(replay.run)
        with trio.fail_after(SETTLE_S):
            await replay.reached(revision)
            await watcher.reached(revision)
        nursery.cancel_scope.cancel()
    assert watcher.gaps == 0
    revisions = [entry[0] for entry in watcher.told()]
    assert revisions == sorted(set(revisions)), "a revision came twice or out of order"
    assert watcher.told() == replay.told()


async def _finish(server: Server) -> None:
    with trio.CancelScope(shield=True):
        if not server.alive():
            await server.start()
        async with Client(server.url) as client:
            for entry in await client.get("instances.list"):
                await client.post("instances.delete", {"id": entry["id"]})
            with trio.move_on_after(SETTLE_S):
                while await client.get("instances.list"):
                    await trio.sleep(0.02)
        await server.close()

"""`kill -9` of the server while it pulls and unpacks: the next pull succeeds, and nothing half-made is left."""

from __future__ import annotations

import os
import random
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.e2e.lanes import LANES, in_lanes, share
from tests.e2e.server import Client, Server, pod
from tests.images.build import Entry, file, folder, layout, tar
from tests.registry import Registry, SlowWay, slow_way

pytestmark = [
    pytest.mark.require("user-namespaces", reason="pods are made of them"),
    pytest.mark.require("docker-registry", reason="the image is pulled from it"),
    pytest.mark.require("skopeo", reason="the image is pushed by it"),
    pytest.mark.require("static-busybox", reason="the image's only program"),
    pytest.mark.slow,
]

# Chance strikes alike whoever runs the server; an ordinary user's kills are there for what only such a one's unpacking
# can leave behind, and CI runs both, one after the other.
KILLS = 30 if os.geteuid() == 0 else 10
ROUND_LIMIT_S = 60.0
SETTLE_S = 20.0
FINAL = ("Failed", "Terminated")
LAYERS = 4
LAYER_BYTES = 500_000  # what cannot be compressed, of each layer
LAYER_FILES = 700
# With these sizes the bytes come for half a second, and some of the unpacking is left after the last of them.
SLOW_BYTES_PER_S = 6e6
# Every other kill falls that long after the beginning, the others that long after the last byte has come.
PULL_S = 0.9
UNPACK_S = 0.25
BEFORE = ("Pending", "Creating", "queued", "pull")


def many_files(number: int, randomness: random.Random) -> list[Entry]:
    """A layer that takes time to send and time to unpack; the later ones replace half of those before."""
    first = number * LAYER_FILES // 2
    data = b"x" * 2000
    return [
        *(folder(name) for name in ("bin", "srv", f"srv/{number}")),
        file(f"srv/{number}/random", randomness.randbytes(LAYER_BYTES)),
        *(file(f"srv/{index}", data) for index in range(first, first + LAYER_FILES)),
    ]


def push_image(registry: Registry, scratch: Path) -> None:
    """`crash:v1`."""
    busybox = shutil.which("busybox")
    assert busybox is not None
    randomness = random.Random(1)
    program = file("bin/busybox", Path(busybox).read_bytes(), mode=0o755)
    entries = [many_files(number, randomness) for number in range(LAYERS)]
    made = layout(scratch / "layout", tar(program), *(tar(*layer) for layer in entries), tag="v1")
    registry.push(f"oci:{made}:v1", "crash:v1")


def half_made(images: Path) -> list[str]:
    """What only somebody at work may leave below `images`."""
    suspects = [*images.glob("downloads/*"), *images.glob("leases/*")]
    return sorted(str(path.relative_to(images)) for path in [*suspects, *images.rglob("tmp-*")])


def users_of(images: Path, besides: int) -> list[str]:
    """Processes with something below `images` open, or in it as their root or directory."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            links = [process / "root", process / "cwd", *(process / "fd").iterdir()]
            places = [os.readlink(link) for link in links]
        except OSError:
            continue  # somebody else's, or gone
        if int(process.name) != besides and any(place.startswith(str(images)) for place in places):
            found.append(f"{process.name} {(process / 'cmdline').read_bytes()!r}")
    return found


class Rounds:
    """A server that is killed once a round, and the checks after each restart."""

    def __init__(self, server: Server, way: SlowWay, images: Path, killed_in: Counter[str]) -> None:
        self.server = server
        self.way = way
        self.images = images
        self.killed_in = killed_in

    async def kill(self, moment_s: float, *, unpacking: bool) -> None:
        """Asks for an instance, and kills the server that long afterwards (or after unpacking alone goes on)."""
        self.way.bytes_per_s = SLOW_BYTES_PER_S
        doing = "nothing"
        async with Client(self.server.url, checked=False) as client:
            [name] = await client.post("instances.create", {"workload_id": "crash"})
            with trio.CancelScope() as scope:
                if not unpacking:
                    scope.deadline = trio.current_time() + moment_s
                while True:
                    record = await client.get(f"instances.get/{name}")
                    doing = record["step"] if record["status"] == "Creating" and record["step"] else record["status"]
                    if unpacking and doing not in BEFORE:
                        scope.deadline = min(scope.deadline, trio.current_time() + moment_s)
                    await trio.sleep(0.02)
            self.server.kill()
        await self.server.wait_dead()
        self.killed_in[doing] += 1

    async def check(self) -> None:
        """After a restart: what was interrupted pulls again and runs, or is explained; so does a new one; nothing is
        left."""
        self.way.bytes_per_s = float("inf")
        async with Client(self.server.url) as client:
            for entry in await client.get("instances.list"):
                record = await client.until(entry["id"], "Running", *FINAL, limit_s=SETTLE_S)
                assert record["status"] == "Running" or (record["reason"] and record["message"]), record
            [name] = await client.post("instances.create", {"workload_id": "crash"})
            record = await client.until(name, "Running", *FINAL, limit_s=SETTLE_S)
            assert record["status"] == "Running", (record["reason"], record["message"])
            assert record["images"][0]["layers"] == LAYERS + 1
            await self._is_clean(client)
            pruned = await client.post("images.prune", {})
            assert len(pruned["nodes"][0]["removed"]) == 1, pruned
        assert not [*self.images.glob("layers/*")], "everything was pruned"

    async def _is_clean(self, client: Client) -> None:
        for entry in await client.get("instances.list"):
            await client.post("instances.delete", {"id": entry["id"]})
        with trio.fail_after(SETTLE_S):
            while await client.get("instances.list"):
                await trio.sleep(0.02)
        [node] = await client.get("nodes.list")
        audit: dict[str, Any] = await client.get(f"nodes.audit/{node['name']}")
        assert audit["orphans"] == []
        assert half_made(self.images) == []
        assert users_of(self.images, self.server.pid) == []


def spread(count: int, randomness: random.Random) -> list[float]:
    """Random numbers of 0 to 1 in a random order, one in every `count`-th part: few must not all fall to one side."""
    return randomness.sample([(part + randomness.random()) / count for part in range(count)], count)


# A request whose server is killed under it leaves a generator of httpx's unfinished.
@pytest.mark.filterwarnings("ignore:Async generator 'httpx:ResourceWarning")
async def test_killed_while_pulling(
    tmp_path: Path, data_dir: Path, registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed many times at random moments of pull and unpack: after each restart the next pull succeeds, the pod
    runs, the audit is clean, and no file, lease or process of the pull before is left.
    """
    seed = int(os.environ.get("RIK_TEST_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
    moments = spread(KILLS, random.Random(seed))
    await trio.to_thread.run_sync(push_image, registry, tmp_path)
    data_dir.mkdir()
    killed_in: Counter[str] = Counter()

    async def run(lane: int) -> None:
        server = Server(data_dir / str(lane), env={"HOME": str(tmp_path)})
        try:
            async with slow_way(registry.port, SLOW_BYTES_PER_S) as way:
                rounds = Rounds(server, way, data_dir / str(lane) / "images", killed_in)
                await run_lane(rounds, share(moments, lane))
                await server.close()
        finally:
            await server.close()

    try:
        await in_lanes(run)
    finally:
        with capsys.disabled():
            print(f"\nkill -9 at {KILLS} random moments of a pull, RIK_TEST_SEED={seed}, {LANES} lanes")
            for doing, times in sorted(killed_in.items()):
                print(f"  {doing:12} {'#' * times} {times}")
    assert killed_in["pull"] and killed_in["unpack"], "all kills fell to one side"


async def run_lane(rounds: Rounds, moments: Sequence[float]) -> None:
    """Kills its server once for each of `moments`, which say how far into the pull or, every other one, the unpacking;
    all is as fast as can be afterwards.
    """
    await rounds.server.start()
    async with Client(rounds.server.url) as client:
        sleeper = {"name": "main", "image": f"{rounds.way.host}/crash:v1", "command": ["/bin/busybox", "sleep", "1000"]}
        await client.post("workloads.create", pod("crash", sleeper, stopGraceSeconds=0))
    for number, moment in enumerate(moments):
        unpacking = number % 2 == 1
        with trio.fail_after(ROUND_LIMIT_S):
            await rounds.kill(moment * (UNPACK_S if unpacking else PULL_S), unpacking=unpacking)
            await rounds.server.start()
            await rounds.check()
    rounds.way.bytes_per_s = float("inf")

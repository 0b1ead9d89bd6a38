"""A real `rik serve` and a registry that means ill: every failure is explained everywhere, and nothing is left."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
import trio

from rik.images.unpack import remove_tree
from tests.api.client import ApiClient, Frames
from tests.e2e.server import Client, Server, pod, serving
from tests.e2e.test_reasons import explained
from tests.images.build import file, tar
from tests.images.registry.hostile import Behaviour, HostileRegistry, cut, drip, instead, serving_registry, status
from tests.images.registry.scene import LOWER, UPPER

pytestmark = pytest.mark.require("user-namespaces", reason="pods are made of them")

FINAL = ("Failed", "Terminated")
# Sent as 50 KB. The server's limits are lowered, so that this much will do.
BOMB = tar(file("zeros", bytes(48_000_000)))
MOST_GROWTH_BYTES = 60 << 20


class Fate(NamedTuple):
    """What happens to which part of an image (layer, manifest), and what must be said of it."""

    part: str
    behaviour: Behaviour | None
    reason: str
    word: str


FATES = {
    "missing": Fate("manifest", status(404), "ImageNotFound", "missing:v1"),
    "closed": Fate("manifest", status(401), "ImageUnauthorized", "401"),
    "broken": Fate("manifest", status(500), "ImagePullFailed", "500"),
    "wrong": Fate("layer", instead(lambda data: data[:-1] + b"!"), "ImageInvalid", "digest"),
    "cut": Fate("layer", cut(0), "ImagePullFailed", "layer sha256:"),
    "bomb": Fate("layer", None, "ImageInvalid", "20 times"),
}


@pytest.fixture
async def registry() -> AsyncIterator[HostileRegistry]:
    async with serving_registry() as registry:
        yield registry


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    """A server whose limits are low, in a home without credentials."""
    (tmp_path / "home").mkdir()
    options = ("--pull-idle", "5s", "--image-ratio-after", "1M", "--image-max-ratio", "20")
    env = {"HOME": str(tmp_path / "home"), "DOCKER_CONFIG": str(tmp_path / "home" / ".docker")}
    async with serving(tmp_path / "data", *options, env=env) as running:
        yield running
    await remove_tree(tmp_path / "data")  # layers hold files of ids that are not the tests' own


def rik(server: Server, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rik", "--server", server.url, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def workload(registry: HostileRegistry, name: str) -> dict[str, Any]:
    return pod(name, {"name": "main", "image": f"{registry.address}/{name}:v1", "command": ["/bin/sh"]})


async def start(client: Client, registry: HostileRegistry, name: str) -> None:
    await client.post("workloads.create", workload(registry, name))
    await client.post("instances.create", {"workload_id": name, "name": name})


async def clean(client: Client) -> None:
    """Nothing that nobody owns, and no lease of an instance that has ended."""
    (node,) = await client.get("nodes.list")
    audit = await client.get(f"nodes.audit/{node['name']}")
    assert [resource for resource in audit["resources"] if not resource["owner"]] == []


def half_made(data: Path) -> list[str]:
    found = (path for path in (data / "images").rglob("*"))
    return [str(path) for path in found if {"downloads", "leases"} & {path.parent.name} or path.name.startswith("tmp-")]


async def test_each_is_told_everywhere(server: Server, client: Client, registry: HostileRegistry) -> None:
    """An image that cannot be had fails its instance in the watch, in `describe` and after deletion, and leaves
    nothing; the server's memory does not grow with what registries send."""
    before = psutil.Process(server.pid).memory_info().rss
    for name, fate in FATES.items():
        own = tar(file(name, name.encode()))  # what images of one registry share is downloaded once, and fails once
        image = registry.publish(*((BOMB,) if name == "bomb" else (own, UPPER)), repository=name)
        if fate.behaviour is not None:
            registry.script(image.manifest_path if fate.part == "manifest" else image.layer_paths[0], fate.behaviour)
    records: dict[str, dict[str, Any]] = {}
    async with ApiClient(server.url) as api, api.watch() as frames:
        for name in FATES:
            await start(client, registry, name)
        with trio.fail_after(40):
            while len(records) < len(FATES):
                instance = (await frames.until("instance"))["instance"]
                if instance["status"] in FINAL:
                    records[instance["name"]] = instance
    described: dict[str, str] = {}

    async def describe(name: str) -> None:
        described[name] = (await trio.to_thread.run_sync(rik, server, "describe", "instance", name)).stdout

    async with trio.open_nursery() as nursery:
        for name in FATES:
            nursery.start_soon(describe, name)
    for name, fate in FATES.items():
        told = records[name]
        assert (told["status"], told["reason"]) == ("Failed", fate.reason), told["message"]
        for word in (registry.address, name, fate.word):
            assert word in told["message"], told["message"]
        assert fate.reason in described[name] and fate.word in " ".join(described[name].split())
        await explained(client, await client.get(f"instances.get/{name}"), fate.reason)
    await clean(client)
    assert half_made(server.data_dir or Path()) == []
    assert psutil.Process(server.pid).memory_info().rss - before < MOST_GROWTH_BYTES


async def test_a_slow_pull_is_watched(server: Server, registry: HostileRegistry) -> None:
    """While an image comes slowly, the watch tells bytes, layers and seconds, at most twice a second; `rik run` shows
    them."""
    image = registry.publish(LOWER, UPPER, repository="slow")
    registry.script(image.layer_paths[0], drip(6_000, 0.1))
    sizes = [len(registry.blobs[path.rpartition("/")[2]]) for path in image.layer_paths]
    told: list[tuple[float, dict[str, Any]]] = []
    async with ApiClient(server.url) as api, api.watch() as frames, trio.open_nursery() as nursery:
        nursery.start_soon(_collect, frames, told)
        command = ("run", f"{registry.address}/slow:v1", "--", "/no/such/program")
        done = await trio.to_thread.run_sync(rik, server, *command)
        nursery.cancel_scope.cancel()
    pulling = [frame for _, frame in told if frame["step"] == "pull" and frame["total"]]
    assert len(pulling) >= 4, told
    assert {frame["total"] for frame in pulling} == {sum(sizes)}
    assert [frame["done"] for frame in pulling] == sorted(frame["done"] for frame in pulling)
    assert pulling[-1]["layers"]["total"] == 2 and pulling[-1]["seconds"] >= 1
    times = [at for at, frame in told if frame["step"] == "pull"]
    assert all(later - earlier > 0.3 for earlier, later in itertools.pairwise(times)), times
    assert done.returncode == 1, "there is no such program in the image"
    shown = done.stdout + done.stderr
    assert "pull" in shown and " % " in shown and "2 layers" in shown, shown
    assert "CommandNotFound" in shown


async def _collect(frames: Frames, told: list[tuple[float, dict[str, Any]]]) -> None:
    while True:
        frame = await frames.until("progress")
        told.append((time.monotonic(), frame))


async def test_deleted_in_the_middle(server: Server, client: Client, registry: HostileRegistry) -> None:
    """Deleting an instance whose image is on its way ends the connection to the registry, and nothing is left of it."""
    image = registry.publish(LOWER, UPPER, repository="half")
    registry.script(image.layer_paths[0], drip(2_000, 0.5, at_once=50_000))
    await start(client, registry, "half")
    with trio.fail_after(10):
        while registry.sent_bytes < 50_000 or not registry.open_connections:
            await trio.sleep(0.02)
    uid = (await client.get("instances.get/half"))["uid"]
    await client.post("instances.delete", {"id": "half"})
    with trio.fail_after(5):
        while registry.open_connections:
            await trio.sleep(0.02)
        while (record := await client.get(f"instances.get/{uid}"))["status"] not in FINAL:
            await trio.sleep(0.02)
    assert record["status"] == "Terminated"
    await clean(client)
    assert half_made(server.data_dir or Path()) == []


async def test_a_client_that_leaves(server: Server, client: Client, registry: HostileRegistry) -> None:
    """A pull that was asked for by itself ends with the connection of whoever asked."""
    image = registry.publish(LOWER, UPPER, repository="left")
    registry.script(image.layer_paths[0], drip(2_000, 0.5, at_once=50_000))
    body = {"image": image.reference}
    async with client.http.stream("POST", "/api/v0/images.pull", params={"stream": "true"}, json=body) as answer:
        assert answer.status_code == 200
        with trio.fail_after(10):
            while registry.sent_bytes < 50_000:
                await trio.sleep(0.02)
    with trio.fail_after(5):
        while registry.open_connections:
            await trio.sleep(0.02)
    await clean(client)
    assert half_made(server.data_dir or Path()) == []


async def test_stopped_in_the_middle(server: Server, client: Client, registry: HostileRegistry) -> None:
    """A registry that says nothing more does not hold up the end of the server."""
    image = registry.publish(LOWER, UPPER, repository="stopped")
    registry.script(image.layer_paths[0], drip(0, 0, at_once=50_000))
    await start(client, registry, "stopped")
    with trio.fail_after(10):
        while registry.sent_bytes < 50_000:
            await trio.sleep(0.02)
    with trio.fail_after(5):
        assert await server.stop() == 0
    assert half_made(server.data_dir or Path()) == []
    assert "Traceback" not in server.stderr()


async def test_killed_in_the_middle(server: Server, client: Client, registry: HostileRegistry) -> None:
    """A server that is killed while it pulls leaves no file of what came, and pulls it when it is back."""
    image = registry.publish(LOWER, UPPER, repository="killed")
    registry.script(image.layer_paths[0], drip(2_000, 0.5, at_once=50_000), drip(100_000, 0))
    await start(client, registry, "killed")
    with trio.fail_after(10):
        while registry.sent_bytes < 50_000:
            await trio.sleep(0.02)
    server.kill()
    await server.wait_dead()
    assert server.data_dir is not None
    spools = server.data_dir / "images" / "downloads"
    assert not spools.is_dir() or os.listdir(spools) == []
    async with Client(await server.start()) as again:
        with trio.fail_after(30):
            await again.post("instances.delete", {"id": "killed"})
            await again.post("instances.create", {"workload_id": "killed", "name": "second"})
            record = await again.until("second", *FINAL)
        assert record["reason"] == "CommandNotFound", "what is no program was executed: all of it is there"
        await clean(again)

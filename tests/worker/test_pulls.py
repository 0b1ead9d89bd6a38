"""Pulls by a worker with the process runtime, from a registry over real sockets that does as it is told."""

from __future__ import annotations

import json
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from rik.environment import SystemEnvironment
from rik.images.unpack import remove_tree
from rik.messages import Assignment, Audit, ListImages, PruneImages, PullImage
from rik.model.instance import Status
from rik.runtimes import equip
from rik.settings import ImageSettings
from rik.worker.images import NodeImages
from tests.images.build import file, tar
from tests.images.registry.hostile import Exchange, HostileRegistry, drip, problem, serving_registry, silence
from tests.images.registry.scene import LOWER, UPPER
from tests.worker.harness import Site, received

pytestmark = pytest.mark.require("user-namespaces", reason="layers are unpacked in one")

LIMIT_S = 30.0


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """What is in it may belong to ids of the pods."""
    path = Path(tempfile.mkdtemp(prefix="rik-test-pulls-"))
    yield path
    trio.run(remove_tree, path)


@pytest.fixture
async def registry() -> AsyncIterator[HostileRegistry]:
    async with serving_registry() as serving:
        yield serving


@asynccontextmanager
async def a_site(data_dir: Path, **settings: Any) -> AsyncIterator[Site]:
    """A worker as a host has it, but for the scheduler's end of its link."""
    equipment = equip("process", SystemEnvironment(), data_dir, "0123abcd")
    assert equipment.images is not None
    images = NodeImages(equipment.images, ImageSettings(**settings))
    site = Site(runtimes=equipment.runtimes, images=images, data_dir=data_dir)
    with trio.fail_after(LIMIT_S):
        async with site.running():
            yield site


def wants(site: Site, uid: str, image: str, creating_s: float, **container: Any) -> Assignment:
    """An instance of this image that must run within so many seconds."""
    deadline = site.environment.now() + round(creating_s * 1000)
    assignment = site.assignment(uid, deadline_at=deadline, deadlines={"creatingSeconds": creating_s})
    containers = [{"name": "main", "image": image, "command": ["sh"], **container}]
    return msgspec.structs.replace(assignment, spec={**assignment.spec, "containers": containers})


async def until_left(registry: HostileRegistry) -> None:
    """Nobody is connected to the registry any more."""
    with trio.fail_after(5):
        while registry.open_connections:
            await trio.sleep(0.01)


def half_made(data_dir: Path) -> list[str]:
    """What is left of pulls that came to nothing."""
    folders = ("downloads", "layers", "leases", "records", "references")
    return [str(path) for folder in folders for path in (data_dir / "images" / folder).glob("*")]


async def answer(site: Site, request: Any) -> Any:
    return json.loads(b"".join(await received(await site.scheduler.stream(request))))


async def test_a_stalled_pull_ends_at_the_deadline(registry: HostileRegistry, data_dir: Path) -> None:
    """It fails by the creation's deadline, naming step and figures; its download has ended, and nothing is left."""
    image = registry.publish(LOWER, UPPER)
    registry.script(image.layer_paths[0], drip(0, 0, at_once=100_000))
    async with a_site(data_dir) as site:
        began = trio.current_time()
        await site.scheduler.run(wants(site, "a", image.reference, 2))
        final = await site.scheduler.final("a")
        assert 1.9 <= trio.current_time() - began <= 4
        assert (final.reason, final.step) == ("DeadlineExceeded", "pull")
        assert "it was not running within 2 s; the step was pull (" in final.message
        assert "kB, 0 of 2 layers, after " in final.message
        await until_left(registry)
        assert half_made(data_dir) == []
        assert (await answer(site, Audit()))["orphans"] == []


async def test_a_silent_registry_ends_at_the_deadline(registry: HostileRegistry, data_dir: Path) -> None:
    """So does a registry that takes a connection and says nothing at all."""
    image = registry.publish(LOWER)
    registry.script(image.manifest_path, silence)
    async with a_site(data_dir) as site:
        await site.scheduler.run(wants(site, "a", image.reference, 1))
        assert (await site.scheduler.final("a")).reason == "DeadlineExceeded"
        await until_left(registry)
        assert half_made(data_dir) == []


async def test_deleting_ends_the_pull(registry: HostileRegistry, data_dir: Path) -> None:
    """An instance that is deleted while its image is on the way takes the download with it."""
    image = registry.publish(LOWER)
    registry.script(image.layer_paths[0], drip(0, 0, at_once=100_000))
    async with a_site(data_dir) as site:
        await site.scheduler.run(wants(site, "a", image.reference, 60))
        while not any(progress.done for _, _, progress in site.scheduler.progress):
            await trio.sleep(0.01)
        await site.scheduler.stop("a")
        assert (await site.scheduler.final("a")).status is Status.TERMINATED
        await until_left(registry)
        assert half_made(data_dir) == []


async def test_an_image_that_is_held_is_not_pruned(registry: HostileRegistry, data_dir: Path) -> None:
    """Pulled by hand, listed with its figures; kept while an instance is there; removed when nothing uses it."""
    image = registry.publish(LOWER, UPPER)
    async with a_site(data_dir) as site:
        stream = await site.scheduler.stream(PullImage(image.reference))
        lines = [json.loads(line) for line in b"".join(await received(stream)).splitlines()]
        assert (lines[-1]["type"], lines[-1]["digest"], lines[-1]["pulled_layers"]) == ("image", image.digest, 2)
        other = registry.publish(tar(file("never-comes")), tag="v2")
        registry.script(other.layer_paths[0], silence)
        second = {"name": "second", "image": other.reference, "command": ["sh"]}
        assignment = wants(site, "a", image.reference, 60, imagePullPolicy="Never")
        containers = [*assignment.spec["containers"], second]
        await site.scheduler.run(
            msgspec.structs.replace(assignment, spec={**assignment.spec, "containers": containers})
        )
        while not registry.asked(other.layer_paths[0]):
            await trio.sleep(0.01)
        (listed,) = (await answer(site, ListImages()))["images"]
        assert (listed["references"], listed["digest"]) == ([image.reference], image.digest)
        assert listed["instances"] == ["name-a"]
        assert (await answer(site, PruneImages()))["removed"] == []
        await site.scheduler.stop("a")
        await site.scheduler.final("a")
        for dry_run in (True, False):
            pruned = await answer(site, PruneImages(dry_run=dry_run))
            assert [one["digest"] for one in pruned["removed"]] == [image.digest]
            assert pruned["freed_bytes"] == listed["size_bytes"] > 0
        assert (await answer(site, ListImages()))["images"] == []
        assert half_made(data_dir) == []


async def test_what_is_unused_goes_by_itself(registry: HostileRegistry, data_dir: Path) -> None:
    """An image that was pulled and that nothing uses is pruned when it is old enough, and by size at once."""
    image = registry.publish(LOWER)
    for bounds in ({"keep_unused_s": 0.5, "cache_bytes": 0}, {"keep_unused_s": 0.0, "cache_bytes": 1}):
        async with a_site(data_dir, prune_interval_s=0.1, **bounds) as site:
            stream = await site.scheduler.stream(PullImage(image.reference))
            assert b'"image"' in b"".join(await received(stream))
            while (await answer(site, ListImages()))["images"] or half_made(data_dir):
                await trio.sleep(0.05)


async def test_a_pull_beyond_the_size_has_the_oldest_go(registry: HostileRegistry, data_dir: Path) -> None:
    """Nobody waits for the next interval: what is unused goes once a pull has made it too much."""
    images = [registry.publish(tar(file(name, bytes(5000)))) for name in "ab"]
    async with a_site(data_dir, prune_interval_s=3600.0, cache_bytes=7000) as site:
        for image in images:
            await received(await site.scheduler.stream(PullImage(image.reference)))
        while len(listed := (await answer(site, ListImages()))["images"]) != 1:
            await trio.sleep(0.02)
        assert listed[0]["digest"] == images[1].digest


async def test_hanging_up_ends_the_download(registry: HostileRegistry, data_dir: Path) -> None:
    """Whoever pulls by hand and leaves takes the connection with it, and leaves nothing half-made."""
    image = registry.publish(LOWER)
    registry.script(image.layer_paths[0], drip(0, 0, at_once=100_000))
    async with a_site(data_dir) as site:
        stream = await site.scheduler.stream(PullImage(image.reference))
        while (frame := await stream.receive()) is not None and not json.loads(frame)["done"]:
            pass
        await stream.aclose()
        await until_left(registry)
        with trio.fail_after(5):
            while half_made(data_dir):
                await trio.sleep(0.01)


async def test_a_failed_pull_names_what_it_came_to(registry: HostileRegistry, data_dir: Path) -> None:
    """Registry, repository and cause are in the message; so is how far it had come."""
    image = registry.publish(LOWER, UPPER)
    registry.script(image.layer_paths[0], drip(0, 0, at_once=100_000))
    async with a_site(data_dir) as site:

        async def missing(exchange: Exchange) -> None:
            while not any(progress.done for _, _, progress in site.scheduler.progress):
                await trio.sleep(0.01)
            await exchange.answer(404, problem("BLOB_UNKNOWN", "not known here"))

        registry.script(image.layer_paths[1], missing)
        await site.scheduler.run(wants(site, "a", image.reference, 20))
        final = await site.scheduler.final("a")
        assert final.reason == "ImageNotFound"
        assert image.reference in final.message and "404" in final.message
        assert " of 251 kB had come after " in final.message and "0 of 2 layers were complete" in final.message
        assert "the step was" not in final.message, "how far it came is told once"

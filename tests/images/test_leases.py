"""What is used, or being pulled, is never pruned; what held it may die however it likes."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
import trio

from rik.images.reference import parse_reference
from rik.images.store import Image, ImageStore
from rik.linux.idmap import detect
from tests.conftest import Require
from tests.images.build import config_of, file, layout, tar
from tests.images.conftest import HOST_ID, MakeStore
from tests.images.remote import Remote
from tests.images.test_store import command, environment, leftovers

NAME = "registry.example/app:v1"
LAYER = tar(file("a", b"layer"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return layout(tmp_path / "l", LAYER)


def leases(store: ImageStore) -> list[str]:
    return sorted(os.listdir(store.directory / "leases"))


async def take(store: ImageStore, path: Path, holder: str = "") -> Image:
    return await store.ensure(parse_reference(f"oci:{path}"), holder=holder)


async def test_what_an_instance_holds_stays(make_store: MakeStore, path: Path) -> None:
    """An image stays as long as one instance holds it, also for a RIK that began after that."""
    store = make_store()
    image = await take(store, path, "pod1")
    await take(store, path, "pod2")
    for holder in ("pod1", "pod2"):
        store = make_store()
        (stored,) = await store.list_images()
        assert holder in stored.holders
        assert (await store.prune()).removed == () and image.layers[0].is_dir()
        await store.release(holder)
    assert leases(store) == []
    assert [gone.digest for gone in (await store.prune()).removed] == [image.digest]
    assert os.listdir(store.directory / "layers") == []


async def test_to_release_is_idempotent(store: ImageStore, path: Path) -> None:
    """Releasing what holds nothing, or in a store that has nothing, is no error, and makes nothing."""
    await store.release("pod1")
    assert not store.directory.exists()
    await take(store, path, "pod1")
    await store.release("pod")
    assert len(leases(store)) == 1
    await store.release("pod1")
    await store.release("pod1")
    assert leases(store) == []


async def test_a_pull_without_an_instance(store: ImageStore, path: Path) -> None:
    """What nobody holds may be pruned as soon as it is here; and an image that is held by nobody has no lease."""
    await take(store, path)
    await take(store, path)
    assert leases(store) == []
    assert len((await store.prune()).removed) == 1


@pytest.mark.parametrize("holder", ["../../x", "a.b", "a/b", "x" * 200, "ü"])
async def test_a_holder_is_a_uid(store: ImageStore, path: Path, holder: str) -> None:
    """What cannot be a uid holds nothing."""
    with pytest.raises(ValueError, match="is no uid"):
        await take(store, path, holder)


async def test_what_is_being_pulled_stays(make_store: MakeStore, remote: Remote, tmp_path: Path) -> None:
    """Layers that a pull has found here, and those that it has brought so far, are not pruned from under it."""
    store, other = make_store(), make_store()
    layers = [LAYER, tar(file("b", os.urandom(500_000)))]
    below = await take(store, layout(tmp_path / "below", LAYER))
    remote.images[NAME] = layout(tmp_path / "l", *layers)
    remote.go_on = trio.Event()
    images: list[Image] = []

    async def pull() -> None:
        images.append(await store.ensure(parse_reference(NAME), holder="pod1"))

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pull)
            await remote.halfway.wait()
            for pruning in (store, other):
                pruned = await pruning.prune()
                assert pruned.freed_bytes == 0 and pruned.size_bytes == 5
                await pruning.sweep(frozenset())
            remote.go_on.set()
    assert images[0].layers[0] == below.layers[0] and images[0].pulled_layers == 1
    assert all(layer.is_dir() for layer in images[0].layers)
    assert len(leases(store)) == 1


async def test_prune_while_many_take(make_store: MakeStore, path: Path) -> None:
    """However often it is pruned meanwhile, who has taken an image has all of it."""
    stores = [make_store(), make_store()]

    async def live(number: int) -> None:
        store = stores[number % 2]
        for turn in range(5):
            holder = f"pod{number}-{turn}"
            image = await take(store, path, holder)
            await trio.sleep(0.002)
            assert (image.layers[0] / "a").read_bytes() == b"layer"
            await store.release(holder)

    async def prune(scope: trio.CancelScope) -> None:
        with scope:
            while True:
                await stores[0].prune()
                await trio.sleep(0.001)

    with trio.fail_after(60):
        async with trio.open_nursery() as pruning:
            scope = trio.CancelScope()
            pruning.start_soon(prune, scope)
            async with trio.open_nursery() as nursery:
                for number in range(8):
                    nursery.start_soon(live, number)
            scope.cancel()
    assert leases(stores[0]) == [] and leftovers(stores[0]) == []


async def test_leases_of_those_that_are_gone(make_store: MakeStore, path: Path) -> None:
    """A sweep that is told who lives drops what the others held; one that is not drops nothing."""
    store = make_store()
    for holder in ("pod1", "pod2"):
        await take(store, path, holder)
    assert await store.sweep() == []
    assert [resource.owner for resource in await store.sweep(frozenset({"pod2", "pod3"}))] == ["pod1"]
    assert [lease.split(".")[1] for lease in leases(store)] == ["pod2"]
    owners = {resource.detail: resource.owner for resource in await store.inventory()}
    assert owners == {"image": "rik", "image reference": "rik", "layer": "rik", "image lease": "pod2"}


async def test_leases_of_another_host(workspace: Path, make_store: MakeStore, path: Path) -> None:
    """Two RIKs on one store do not drop each other's leases, and prune what neither needs."""
    ours = make_store()
    theirs = ImageStore(workspace / "images", "feedbeef", ours._owners.idmap)
    await take(ours, path, "pod1")
    await take(theirs, path, "pod1")
    assert {resource.owner for resource in await ours.inventory()} == {"rik", "pod1"}
    await ours.sweep(frozenset())
    assert len(leases(ours)) == 1 and (await ours.prune()).removed == ()
    await ours.release("pod1")
    assert len(leases(ours)) == 1
    await theirs.release("pod1")
    assert len((await ours.prune()).removed) == 1


DAMAGED = [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"digest": "sha256:x", "keys": ["../../etc"]}', b"[" * 100_000]


@pytest.mark.parametrize("content", DAMAGED)
async def test_a_damaged_lease_still_holds(store: ImageStore, path: Path, content: bytes) -> None:
    """A lease whose content was lost protects the image that its name says, until it is released."""
    await take(store, path, "pod1")
    (store.directory / "leases" / leases(store)[0]).write_bytes(content)
    assert (await store.prune()).removed == ()
    await store.release("pod1")
    assert len((await store.prune()).removed) == 1


async def test_strange_files_among_the_leases(store: ImageStore, path: Path, tmp_path: Path) -> None:
    """What RIK did not write there is no lease, whatever its name, and does no harm."""
    await take(store, path)
    folder = store.directory / "leases"
    os.mkfifo(folder / f"{HOST_ID}.pod1.fifo.json")
    (folder / f"{HOST_ID}.1-ab.json").symlink_to(tmp_path)
    (folder / "directory.json").mkdir()
    (folder / "a.b.c.d.e.json").touch()
    (folder / "x").touch()
    with trio.fail_after(10):
        await store.inventory()
        assert len((await store.prune()).removed) == 1
        await store.sweep(frozenset())


async def test_one_image_of_the_same_layers(store: ImageStore, tmp_path: Path) -> None:
    """An image is held, not its layers alone: another one of the same layers goes, and frees nothing."""
    image = await take(store, layout(tmp_path / "1", LAYER), "pod1")
    twin = await take(store, layout(tmp_path / "2", LAYER, config=config_of([LAYER], author="another")))
    assert twin.layers == image.layers and twin.digest != image.digest
    pruned = await store.prune()
    assert [gone.digest for gone in pruned.removed] == [twin.digest]
    assert (pruned.freed_bytes, pruned.kept, pruned.size_bytes) == (0, 1, 5)
    assert image.layers[0].is_dir()


def test_a_pull_that_was_killed(workspace: Path, tmp_path: Path, require: Require) -> None:
    """The lease of a pull dies with its process: what it had found may be pruned, and a sweep clears it away."""
    require("user-namespaces", reason="layers are unpacked in one")
    path = layout(tmp_path / "l", LAYER, tar(file("b", os.urandom(20_000_000))))
    program = command(workspace / "images", f"oci:{path}")
    with subprocess.Popen(program, stdout=subprocess.PIPE, env=environment()) as process:
        while not list((workspace / "images" / "layers").glob("tmp-*/fs/b")):
            assert process.poll() is None, "it was too fast"
        process.send_signal(signal.SIGKILL)

    async def check() -> None:
        store = ImageStore(workspace / "images", HOST_ID, detect())
        orphans = {resource.detail for resource in await store.inventory() if not resource.owner}
        assert "image lease" in orphans
        with trio.fail_after(30):
            while leftovers(store):  # the child that unpacks goes a moment later
                await store.sweep()
                await trio.sleep(0.02)
        assert leases(store) == []
        assert (await store.prune()).freed_bytes == 5

    trio.run(check)

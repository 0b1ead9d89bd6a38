"""The layer store: each layer once, whole or not at all, whoever asks and whatever is killed."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing

from rik.images.errors import ImageError, ImageInvalid, ImagePullFailed
from rik.images.layers import UNPACK_AT_ONCE
from rik.images.reference import parse_reference
from rik.images.store import Image, ImageStore
from rik.linux.identity import command_line
from rik.linux.idmap import Unavailable, detect
from rik.model.instance import Progress
from rik.settings import ImageSettings
from tests.conftest import Require
from tests.images.build import config_of, docker_archive, file, folder, layout, oci_archive, tar, whiteout
from tests.images.conftest import HOST_ID, MakeStore
from tests.images.remote import Remote
from tests.images.test_unpack import children

ROOT = Path(__file__).parents[2]
NAME = "registry.example/app:v1"
LOWER = tar(folder("bin"), file("bin/sh", b"#!"), file("old"))
UPPER = tar(folder("etc"), file("etc/passwd", b"root"), whiteout("old"))

# Run by other interpreters: brings images into a store, and says so.
PROGRAM = """
import os, sys, trio
from pathlib import Path
from rik.images.errors import ImageError
from rik.images.reference import parse_reference
from rik.images.store import ImageStore
from rik.linux.idmap import detect

async def main():
    store = ImageStore(Path(sys.argv[1]), "0123abcd", detect())
    print("begin", flush=True)
    for text in sys.argv[2:]:
        try:
            image = await store.ensure(parse_reference(text))
        except ImageError as error:
            print(error.reason, error, flush=True)
        else:
            print("ready", image.digest, flush=True)
    for found in await store.inventory():
        print(found.owner or "nobody", found.detail, flush=True)

trio.run(main)
"""


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(PROGRAM), *map(str, arguments)]


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
    return {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}


async def ensure(store: ImageStore, text: str) -> Image:
    return await store.ensure(parse_reference(text))


def leftovers(store: ImageStore) -> list[str]:
    """What a store must not have when nobody is at work."""
    files = store.directory.glob("*/*")
    return sorted(found.name for found in files if found.name.startswith("tmp-") or found.suffix in (".lock", ".new"))


def unpacking() -> int:
    """How many children are unpacking now; programs that write id maps are children, too."""
    return sum("rik.images.untar" in part for pid in children() for part in command_line(int(pid)))


@pytest.fixture
def two_layers(tmp_path: Path) -> Path:
    return layout(tmp_path / "l", LOWER, UPPER, tag="v1")


async def test_an_image_of_every_source(store: ImageStore, two_layers: Path, tmp_path: Path) -> None:
    """The same image from a layout and from archives shares its layers; its config and sizes are told."""
    archives = oci_archive(tmp_path / "a.tar", two_layers), docker_archive(tmp_path / "d.tar", LOWER, UPPER)
    image = await ensure(store, f"oci:{two_layers}:v1")
    assert image.reference == f"oci:{two_layers}:v1" and image.digest.startswith("sha256:")
    assert image.config.cmd == ("/bin/sh",) and image.config.env == ("PATH=/bin",)
    assert [sorted(os.listdir(layer)) for layer in image.layers] == [["bin", "old"], ["etc", "old"]]
    assert image.size_bytes == 6
    others = [await ensure(store, f"oci-archive:{archives[0]}"), await ensure(store, f"docker-archive:{archives[1]}")]
    assert [other.layers for other in others] == [image.layers] * 2
    assert others[0].digest == image.digest
    assert leftovers(store) == []


async def test_layers_depend_on_those_below(store: ImageStore, tmp_path: Path) -> None:
    """A layer is shared by images that have the same layers below it, and by these only."""
    other = tar(file("other"))
    one = await ensure(store, f"oci:{layout(tmp_path / 'a', LOWER, UPPER)}")
    two = await ensure(store, f"oci:{layout(tmp_path / 'b', LOWER, UPPER, other)}")
    three = await ensure(store, f"oci:{layout(tmp_path / 'c', other, UPPER)}")
    assert two.layers[:2] == one.layers
    assert three.layers[1] != one.layers[1]


async def test_a_cached_image_is_ready_at_once(make_store: MakeStore, two_layers: Path) -> None:
    """An image that is there is ready without reading a layer: within milliseconds, also after a restart."""
    before = msgspec.structs.replace(await ensure(make_store(), f"oci:{two_layers}"), cached=True)
    for found in (two_layers / "blobs" / "sha256").iterdir():
        if found.read_bytes()[:2] == b"\x1f\x8b":
            found.unlink()
    store = make_store()
    started = trio.current_time()
    for _ in range(10):
        assert await ensure(store, f"oci:{two_layers}") == before
    assert (trio.current_time() - started) / 10 < 0.05  # measured: 2 ms


async def test_a_cached_image_of_a_registry(make_store: MakeStore, remote: Remote, two_layers: Path) -> None:
    """A reference that is known is answered without its registry, within 5 ms, also after a restart; it says how the
    image came."""
    remote.images[NAME] = two_layers
    first = await ensure(make_store(), NAME)
    assert (first.cached, first.pulled_layers, first.origin) == (False, 2, "registry.example by mirror")
    assert first.pulled_bytes > 0 and first.seconds > 0 and first.pulled_at > 0
    store = make_store()
    times: list[float] = []
    for number in range(20):
        started = trio.current_time()
        again = await store.ensure(parse_reference(NAME), holder=f"pod{number}")
        times.append(trio.current_time() - started)
        assert again == msgspec.structs.replace(first, cached=True)
    assert sorted(times)[10] < 0.005  # measured: 0.5 ms
    assert remote.asked == [NAME] and len(remote.fetched) == 2


async def test_two_hundred_pods_of_a_cached_image(store: ImageStore, remote: Remote, two_layers: Path) -> None:
    """They do not wait for each other's polling: each takes a millisecond."""
    remote.images[NAME] = two_layers
    await ensure(store, NAME)
    started = trio.current_time()
    async with trio.open_nursery() as nursery:
        for number in range(200):
            nursery.start_soon(partial(store.ensure, parse_reference(NAME), holder=f"pod{number}"))
    assert trio.current_time() - started < 2.0  # measured: 0.14 s
    (image,) = await store.list_images()
    assert len(image.holders) == 200


async def test_refresh(store: ImageStore, remote: Remote, two_layers: Path, tmp_path: Path) -> None:
    """Asked to, a store asks where a tag leads now, and takes what it has of that; a digest leads nowhere else."""
    remote.images[NAME] = two_layers
    first = await ensure(store, NAME)
    again = await store.ensure(parse_reference(NAME), refresh=True)
    assert again == msgspec.structs.replace(first, cached=True)
    assert len(remote.asked) == 2 and len(remote.fetched) == 2
    remote.images[NAME] = layout(tmp_path / "moved", LOWER, tar(file("b", b"b")))
    moved = await store.ensure(parse_reference(NAME), refresh=True)
    assert (moved.cached, moved.pulled_layers, moved.layers[0]) == (False, 1, first.layers[0])
    assert len(remote.asked) == 3 and len(remote.fetched) == 3
    by_digest = await store.ensure(parse_reference(f"registry.example/app@{first.digest}"), refresh=True)
    assert by_digest.layers == first.layers and by_digest.cached and len(remote.asked) == 3


async def test_find(store: ImageStore, remote: Remote, two_layers: Path) -> None:
    """What is here can be taken, and what is not is not fetched."""
    remote.images[NAME] = two_layers
    assert await store.find(parse_reference(NAME), holder="pod1") is None
    assert remote.asked == [] and os.listdir(store.directory / "leases") == []
    image = await ensure(store, NAME)
    found = await store.find(parse_reference(NAME), holder="pod1")
    assert found == msgspec.structs.replace(image, cached=True)
    assert (await store.prune()).removed == ()


DAMAGED = [
    b"",
    b"{",
    b"[]",
    b"[" * 100_000,
    b"\xff" * 100,
    b"{}",
    b'{"digest": "sha256:../../x", "config": {}, "keys": ["../../../etc"], "size_bytes": 1}',
    b'{"digest": 5, "reference": 5}',
]


@pytest.mark.parametrize("content", DAMAGED)
@pytest.mark.parametrize("folder", ["records", "references"])
async def test_damaged_documents(
    store: ImageStore, remote: Remote, two_layers: Path, folder: str, content: bytes
) -> None:
    """An image of which a document is damaged is no image here; it is pulled again, and its layers are reused."""
    remote.images[NAME] = two_layers
    first = await ensure(store, NAME)
    (document,) = (store.directory / folder).iterdir()
    document.write_bytes(content)
    await store.inventory()
    assert len(await store.list_images()) == (folder == "references")
    again = await ensure(store, NAME)
    assert again.layers == first.layers and remote.asked == [NAME] * 2 and len(remote.fetched) == 2
    assert again.cached == (folder == "references")
    document.write_bytes(content)
    await store.sweep()
    assert not document.exists()


async def test_layers_that_were_removed_by_hand(store: ImageStore, remote: Remote, two_layers: Path) -> None:
    """A layer whose files are gone, all but its note, is made anew."""
    remote.images[NAME] = two_layers
    first = await ensure(store, NAME)
    shutil.rmtree(first.layers[1])
    again = await ensure(store, NAME)
    assert again.layers == first.layers and len(remote.fetched) == 3
    await store.sweep()
    assert all(resource.owner for resource in await store.inventory())


async def test_documents_that_are_none(store: ImageStore, remote: Remote, two_layers: Path) -> None:
    """Pipes, directories and links in the place of documents are not read, and do not hold anything up."""
    remote.images[NAME] = two_layers
    await ensure(store, NAME)
    (record,), (pointer,) = ((store.directory / folder).iterdir() for folder in ("records", "references"))
    record.unlink()
    os.mkfifo(record)
    (store.directory / "records" / "directory.json").mkdir()
    (store.directory / "references" / "link.json").symlink_to("/etc/passwd")
    with trio.fail_after(10):
        assert await store.list_images() == []
        await store.inventory()
        assert (await ensure(store, NAME)).cached is False
        await store.sweep()
    assert pointer.is_file() and record.is_file() and not (store.directory / "references" / "link.json").exists()


async def test_a_store_of_an_older_rik(store: ImageStore, two_layers: Path) -> None:
    """Records that tell nothing of the pull, and no references, are an image all the same."""
    image = await ensure(store, f"oci:{two_layers}")
    shutil.rmtree(store.directory / "references")
    (record,) = (store.directory / "records").iterdir()
    told = msgspec.json.decode(record.read_bytes())
    record.write_bytes(msgspec.json.encode({key: told[key] for key in ("digest", "config", "keys", "size_bytes")}))
    (listed,) = await store.list_images()
    assert (listed.digest, listed.references, listed.pulled_at) == (image.digest, (), 0)
    again = await ensure(store, f"oci:{two_layers}")
    assert (again.cached, again.layers, again.origin) == (True, image.layers, f"oci:{two_layers}")


async def test_a_layer_that_was_removed_comes_again(store: ImageStore, two_layers: Path) -> None:
    """A record whose layers are no longer all there is no proof of an image."""
    image = await ensure(store, f"oci:{two_layers}")
    await store.remove_tree(image.layers[1].parent)
    again = await ensure(store, f"oci:{two_layers}")
    assert (again.layers, again.pulled_layers, again.cached) == (image.layers, 1, False)
    assert (image.layers[1] / "etc" / "passwd").read_bytes() == b"root"


async def test_progress(store: ImageStore, tmp_path: Path) -> None:
    """Progress counts the bytes of all layers, from nothing to the total, and never back."""
    path = layout(tmp_path / "l", tar(file("a", os.urandom(3_000_000))), tar(file("b", os.urandom(1_000_000))))
    seen: list[Progress] = []
    await store.ensure(parse_reference(f"oci:{path}"), seen.append)
    done = [progress.done for progress in seen]
    assert {(progress.step, progress.unit, progress.layers_total) for progress in seen} == {("unpack", "bytes", 2)}
    assert done[0] == 0 and done[-1] == seen[0].total > 4_000_000 and done == sorted(done)
    assert {progress.total for progress in seen} == {seen[0].total}
    assert len(set(done)) >= 5


async def test_wanted_by_many(store: ImageStore, tmp_path: Path) -> None:
    """Twenty that want one new image at the same time unpack it once, and all see its progress."""
    path = layout(tmp_path / "l", tar(file("a", os.urandom(20_000_000))))
    at_once: list[int] = []
    seen: list[set[int]] = [set() for _ in range(20)]
    images: list[Image] = []

    async def want(number: int) -> None:
        def progress(now: Progress) -> None:
            at_once.append(unpacking())
            seen[number].add(now.done)

        images.append(await store.ensure(parse_reference(f"oci:{path}"), progress))

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(want, number)
    assert len(images) == 20 and len({image.digest for image in images}) == 1
    assert max(at_once) == 1
    assert min(len(numbers) for numbers in seen) > 10
    assert len(os.listdir(store.directory / "layers")) == 1


async def test_one_failure_for_all_that_wait(store: ImageStore, tmp_path: Path) -> None:
    """When a layer turns out to be bad, all that wait for it are told; who asks later gets a new attempt."""
    path = layout(tmp_path / "l", tar(file("a", os.urandom(5_000_000)))[:-30_000], compress=False)
    errors: list[ImageError] = []

    async def want() -> None:
        try:
            await ensure(store, f"oci:{path}")
        except ImageError as error:
            errors.append(error)

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(want)
    assert len(errors) == 5 and len({id(error) for error in errors}) == 5
    assert {error.reason for error in errors} == {"ImageInvalid"}
    assert "ends in the middle of 'a'" in str(errors[0])
    await want()
    assert len(errors) == 6 and leftovers(store) == []


async def test_who_began_is_cancelled(store: ImageStore, tmp_path: Path) -> None:
    """When the one who unpacks is cancelled, another one that waits does it instead."""
    path = layout(tmp_path / "l", tar(file("a", os.urandom(20_000_000))))
    images: list[Image] = []

    async def first(scope: trio.CancelScope) -> None:
        def progress(now: Progress) -> None:
            if now.done > now.total // 2:
                scope.cancel()

        with scope:
            images.append(await store.ensure(parse_reference(f"oci:{path}"), progress))

    async def second() -> None:
        images.append(await ensure(store, f"oci:{path}"))

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            scope = trio.CancelScope()
            nursery.start_soon(first, scope)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(second)
    assert scope.cancelled_caught and len(images) == 1
    assert leftovers(store) == [] and children() == []


WRONG: dict[str, Callable[[Path], Path]] = {
    "another content": lambda path: layout(path, LOWER, config=config_of([UPPER])),
    "damaged": lambda path: layout(path, LOWER[:700], compress=False),
    "second layer": lambda path: layout(path, LOWER, UPPER[:700]),
    "no tar": lambda path: layout(path, b"hello" * 1000),
}


@pytest.mark.parametrize("name", WRONG)
async def test_nothing_half_made_is_left(store: ImageStore, tmp_path: Path, name: str) -> None:
    """A bad image leaves neither files nor a record nor a process."""
    path = WRONG[name](tmp_path / "l")
    with pytest.raises(ImageInvalid, match=f"oci:{path}: the layer sha256:"):
        await ensure(store, f"oci:{path}")
    assert leftovers(store) == [] and children() == []
    assert len(os.listdir(store.directory / "layers")) == (name == "second layer")
    assert os.listdir(store.directory / "records") == []


async def test_limits_are_of_the_whole_image(make_store: MakeStore, tmp_path: Path) -> None:
    """Several layers together may not be more than the limits allow."""
    layers = [tar(file(name, bytes(600))) for name in "abc"]
    path = layout(tmp_path / "l", *layers)
    for limits, words in (
        (ImageSettings(max_bytes=1500), "is larger than 1.5 kB when unpacked (with the layers below it)"),
        (ImageSettings(max_entries=2), "has more than 2 files (with the layers below it)"),
    ):
        with pytest.raises(ImageInvalid) as caught:
            await ensure(make_store(settings=limits), f"oci:{path}")
        assert caught.value.message.endswith(f" cannot be unpacked: it {words}")
    await ensure(make_store(), f"oci:{path}")
    again = layout(tmp_path / "again", *layers, config=config_of(layers, author="somebody"))
    with pytest.raises(ImageInvalid, match=r"is larger than 1.5 kB") as caught:  # its layers are all there already
        await ensure(make_store(settings=ImageSettings(max_bytes=1500)), f"oci:{again}")
    assert "`--image-max-size`" in caught.value.next_step


async def test_many_images_at_once(store: ImageStore, tmp_path: Path) -> None:
    """However many images are wanted at the same time, a few are unpacked at once, and all come."""
    paths = [layout(tmp_path / str(n), tar(file("a", os.urandom(2_000_000)))) for n in range(12)]
    at_once: list[int] = []
    images: list[Image] = []

    async def want(path: Path) -> None:
        reference = parse_reference(f"oci:{path}")
        images.append(await store.ensure(reference, lambda now: at_once.append(unpacking())))

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for path in paths:
                nursery.start_soon(want, path)
    assert len({image.digest for image in images}) == 12
    assert 2 <= max(at_once) <= UNPACK_AT_ONCE


async def test_an_image_without_layers(store: ImageStore, tmp_path: Path) -> None:
    """An image with nothing in it is refused."""
    with pytest.raises(ImageInvalid, match="has no layers"):
        await ensure(store, f"oci:{layout(tmp_path / 'l')}")


async def test_the_host_is_no_image(store: ImageStore) -> None:
    """`host` has no layers to ask for: that is the runtime's to know."""
    with pytest.raises(ValueError, match="no layers"):
        await ensure(store, "host")


async def test_inventory_and_sweep(store: ImageStore, two_layers: Path) -> None:
    """The inventory names every layer and record; what is half-made and given up has no owner, and is swept."""
    image = await ensure(store, f"oci:{two_layers}")
    orphan = store.directory / "layers" / f"tmp-{HOST_ID}-1-aaaa"
    (orphan / "fs" / "deep").mkdir(parents=True)
    (store.directory / "layers" / "x.lock").touch()
    (store.directory / "records" / "x.json.1-1.new").touch()
    stranger = store.directory / "layers" / "stranger"
    stranger.mkdir()
    found = {resource.name: resource.owner for resource in await store.inventory()}
    assert found.pop(str(stranger)) == ""
    stranger.rmdir()
    assert found[str(orphan)] == ""
    assert {found[str(layer.parent)] for layer in image.layers} == {"rik"}
    assert len(found) == 5
    assert [resource.name for resource in await store.sweep()] == [str(orphan)]
    assert leftovers(store) == [] and not orphan.exists()
    assert all(layer.is_dir() for layer in image.layers)
    assert await store.sweep() == []


async def test_sweep_of_an_empty_store(store: ImageStore) -> None:
    """There is nothing to sweep, and nothing made, before the first image."""
    assert await store.sweep() == [] and await store.inventory() == []
    assert not store.directory.exists()


async def test_sweep_leaves_what_is_being_made(make_store: MakeStore, tmp_path: Path) -> None:
    """Another RIK's sweep does not take a layer from under the one that unpacks it."""
    path = layout(tmp_path / "l", tar(file("a", os.urandom(10_000_000))))
    halfway = trio.Event()
    going_on = trio.Event()
    images: list[Image] = []

    async def make() -> None:
        store = make_store()

        def progress(now: Progress) -> None:
            if now.done > 3_000_000:
                halfway.set()

        images.append(await store.ensure(parse_reference(f"oci:{path}"), progress))
        going_on.set()

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(make)
            await halfway.wait()
            if not going_on.is_set():
                assert await make_store().sweep() == []
    assert len(images) == 1 and images[0].layers[0].is_dir()


async def test_two_riks_on_one_store(workspace: Path, make_store: MakeStore, tmp_path: Path) -> None:
    """What another RIK makes, of whatever host, is not swept while it lives; and both end with the same layers."""
    path = layout(tmp_path / "l", tar(file("a", os.urandom(5_000_000))), LOWER)
    stores = [make_store(), ImageStore(workspace / "images", "feedbeef", make_store()._owners.idmap)]
    images: list[Image] = []

    async def bring(store: ImageStore) -> None:
        images.append(await ensure(store, f"oci:{path}"))

    async def sweep(store: ImageStore) -> None:
        while len(images) < 2:
            assert await store.sweep(frozenset()) == []
            assert "" not in {resource.owner for resource in await store.inventory()}
            await trio.sleep(0.005)

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for store in stores:
                nursery.start_soon(bring, store)
                nursery.start_soon(sweep, store)
    assert images[0].layers == images[1].layers
    assert len(os.listdir(workspace / "images" / "layers")) == 2 and leftovers(stores[0]) == []


async def test_downloads_that_a_kill_left(store: ImageStore, two_layers: Path) -> None:
    """A download that has a name is swept when it is too old to be just losing it."""
    await ensure(store, f"oci:{two_layers}")
    folder = store.directory / "downloads"
    folder.mkdir(exist_ok=True)
    for name, seconds in (("old", 1_000), ("new", 0)):
        (folder / name).touch()
        os.utime(folder / name, (time.time() - seconds,) * 2)
    assert [Path(found.name).name for found in await store.inventory() if not found.owner] == ["old"]
    await store.sweep()
    assert os.listdir(folder) == ["new"]


async def test_user_namespaces_are_forbidden(tmp_path: Path, two_layers: Path, require: Require) -> None:
    """An ordinary user without user namespaces is told why images cannot be unpacked, and what to do."""
    require("ordinary-user", reason="root unpacks without")
    store = ImageStore(tmp_path / "images", HOST_ID, Unavailable("user namespaces are forbidden", "allow them"))
    with pytest.raises(ImagePullFailed, match=r"unpacked here: user namespaces are forbidden \(allow them"):
        await ensure(store, f"oci:{two_layers}")
    assert leftovers(store) == []


def test_several_processes(workspace: Path, tmp_path: Path, require: Require) -> None:
    """Processes that want the same images at the same time all get them, whole, and leave nothing behind."""
    require("user-namespaces", reason="layers are unpacked in one")
    paths = [layout(tmp_path / str(n), tar(file("a", os.urandom(2_000_000))), LOWER) for n in range(3)]
    references = [f"oci:{path}" for path in paths]
    running = [
        subprocess.Popen(
            command(workspace / "images", *references), stdout=subprocess.PIPE, env=environment(), text=True
        )
        for _ in range(3)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0, 0]
    assert [output.count("ready") for output in outputs] == [3, 3, 3]
    store = ImageStore(workspace / "images", HOST_ID, Unavailable("", ""))
    assert leftovers(store) == []
    assert len(os.listdir(workspace / "images" / "layers")) == 6


@pytest.mark.slow
def test_killed_at_any_moment(workspace: Path, tmp_path: Path, require: Require) -> None:
    """After `kill -9` at thirty random moments the next start sweeps what was half-made and gets the image."""
    require("user-namespaces", reason="layers are unpacked in one")
    seed = random.randrange(1 << 32)
    moments = random.Random(seed)
    path = layout(tmp_path / "l", tar(*(file(f"f{n}", os.urandom(1000)) for n in range(1000))), LOWER, UPPER)
    killed_halfway = 0
    for _ in range(30):
        process = subprocess.Popen(
            command(workspace / "images", f"oci:{path}"), stdout=subprocess.PIPE, env=environment(), text=True
        )
        assert process.stdout is not None
        with process, process.stdout:
            process.stdout.readline()
            try:
                process.wait(moments.uniform(0.0, 0.3))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
        killed_halfway += bool(list((workspace / "images").glob("layers/tmp-*")))
        _check_after_kill(workspace / "images", path, seed)
        if moments.random() < 0.7:
            shutil.rmtree(workspace / "images", ignore_errors=True)
    print(f"seed {seed}: killed 30 times, {killed_halfway} times with a layer half-made")
    assert killed_halfway >= 1, f"seed {seed}"


def _check_after_kill(directory: Path, path: Path, seed: int) -> None:
    async def check() -> None:
        store = ImageStore(directory, HOST_ID, detect())
        with trio.fail_after(30):
            while True:  # an orphaned child holds its directory's lock for a moment more
                await store.sweep()
                if not leftovers(store):
                    break
                await trio.sleep(0.02)
        assert list((store.directory / "leases").glob("*")) == []
        image = await ensure(store, f"oci:{path}")
        assert [len(os.listdir(layer)) for layer in image.layers] == [1000, 2, 2], f"seed {seed}"
        assert {resource.owner for resource in await store.inventory()} == {"rik"}

    trio.run(check)


def test_full_disk(workspace: Path, tmp_path: Path, require: Require) -> None:
    """A disk that fills up in the middle fails the pull with the system's words, and leaves room as before."""
    require("user-namespaces", reason="the full disk is a small tmpfs, mounted in one")
    require("unshare", reason="it makes the namespaces")
    large, small = layout(tmp_path / "l", tar(file("a", os.urandom(9_000_000)))), layout(tmp_path / "s", LOWER)
    (workspace / "images").mkdir()
    mounted = f'mount -t tmpfs -o size=8m tmpfs "{workspace}/images" && exec "$@"'
    program = command(workspace / "images", f"oci:{large}", f"oci:{small}")
    result = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mounted, "sh", *program],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[1].startswith("ImagePullFailed ") and "No space left on device" in lines[1]
    assert f"oci:{large}" in lines[1] and "MB had been read after" in lines[1] and "`rik image prune`" in lines[1]
    assert lines[2].startswith("ready ")
    assert lines[3:] == ["rik image", "rik image reference", "rik layer"]

"""What goes when room is made, and with what figures; and what a prune that is killed leaves."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import trio

from rik.images.errors import ImageInvalid
from rik.images.pruning import Plan, Shelf, choose
from rik.images.reference import parse_reference
from rik.images.store import Image, ImageStore
from rik.linux.idmap import detect
from tests.conftest import Require
from tests.images.build import config_of, file, layout, tar
from tests.images.conftest import HOST_ID, MakeStore
from tests.images.remote import Remote
from tests.images.test_store import environment, leftovers

DAY_S = 86_400.0
NOW = 1_000_000_000_000
NAME = "registry.example/app:v1"


def days_ago(days: float) -> int:
    return NOW - int(days * DAY_S * 1000)


# Two images that share a layer, one of its own, and a layer of a pull that failed. The names stand for digests.
SHELF = Shelf(
    images={"old": ("base", "o"), "new": ("base", "n"), "other": ("x",)},
    layers={"base": 100, "o": 10, "n": 20, "x": 50, "loose": 5},
    made_at={"loose": days_ago(3)},
    used_at={"old": days_ago(20), "new": days_ago(1), "other": days_ago(10)},
)


def plan(unused_s: float = 0.0, cache_bytes: int = 0, *, held: str = "", needed: str = "") -> Plan:
    shelf = Shelf(
        SHELF.images,
        SHELF.layers,
        SHELF.made_at,
        SHELF.used_at,
        frozenset(held.split()),
        frozenset(needed.split()),
    )
    return choose(shelf, NOW, unused_s, cache_bytes)


CASES: dict[str, tuple[Plan, set[str], set[str], int]] = {
    "all": (plan(), {"old", "new", "other"}, {"base", "o", "n", "x", "loose"}, 185),
    "all but what is held": (
        plan(held="new", needed="base n"),
        {"old", "other"},
        {"o", "x", "loose"},
        65,
    ),
    "what a pull is bringing": (plan(needed="loose x"), {"old", "new", "other"}, {"base", "o", "n"}, 130),
    "by age": (plan(14 * DAY_S), {"old"}, {"o"}, 10),
    "by age, exactly": (plan(10 * DAY_S), {"old", "other"}, {"o", "x"}, 60),
    "by age, loose layers too": (plan(2 * DAY_S), {"old", "other"}, {"o", "x", "loose"}, 65),
    "by age, nothing": (plan(30 * DAY_S), set(), set(), 0),
    "by size, nothing": (plan(cache_bytes=185), set(), set(), 0),
    "by size, the first to go": (plan(cache_bytes=184), {"old"}, {"o"}, 10),
    "by size, two": (plan(cache_bytes=174), {"old", "other"}, {"o", "x"}, 60),
    "by size, a loose one": (plan(cache_bytes=124), {"old", "other"}, {"o", "x", "loose"}, 65),
    "by size, too much is held": (
        plan(cache_bytes=1, held="old", needed="base o"),
        {"new", "other"},
        {"n", "x", "loose"},
        75,
    ),
    "by age or size": (plan(14 * DAY_S, 130), {"old", "other"}, {"o", "x"}, 60),
}


@pytest.mark.parametrize("name", CASES)
def test_the_choice(name: str) -> None:
    """Age and size each make an image go that nothing uses, the least recently used first; shared layers stay."""
    found, images, layers, freed = CASES[name]
    assert (set(found.images), set(found.layers), found.freed_bytes) == (images, layers, freed)


def test_an_image_of_which_a_layer_is_missing() -> None:
    """What is no longer whole goes first, however new it is, unless it is being brought again."""
    shelf = Shelf({"a": ("1", "2")}, {"1": 10}, {}, {"a": NOW})
    assert choose(shelf, NOW, DAY_S, 0) == Plan(("a",), ("1",), 10)
    being_brought = Shelf({"a": ("1", "2")}, {"1": 10}, {}, {"a": NOW}, frozenset({"a"}), frozenset({"1", "2"}))
    assert choose(being_brought, NOW, 0, 1) == Plan((), (), 0)


def test_a_clock_that_went_back() -> None:
    """An image used in the future is not old, and goes all the same when everything does."""
    shelf = Shelf({"a": ("1",)}, {"1": 10}, {}, {"a": NOW + 10_000})
    assert choose(shelf, NOW, 1.0, 0).images == ()
    assert choose(shelf, NOW, 0, 0).images == ("a",)


def test_the_choice_is_always_sound() -> None:
    """Of any store: what is needed stays, sums are right, and the size is kept to, or nothing unused is left."""
    seed = random.randrange(1 << 32)
    dice = random.Random(seed)
    for _ in range(1_000):
        layers = {f"l{n}": dice.randrange(1, 100) for n in range(dice.randrange(1, 12))}
        images = {f"i{n}": dice.sample(sorted(layers), dice.randint(1, len(layers))) for n in range(dice.randrange(6))}
        held = frozenset(name for name in images if dice.random() < 0.3)
        needed = frozenset(key for name in held for key in images[name])
        used_at = {name: dice.randrange(NOW) for name in images}
        shelf = Shelf(images, layers, dict.fromkeys(layers, 0), used_at, held, needed)
        limit = dice.choice([0, dice.randrange(1, 500)])
        found = choose(shelf, NOW, dice.choice([0.0, dice.uniform(1, NOW / 1000)]), limit)
        gone = set(found.layers)
        kept = {name: keys for name, keys in images.items() if name not in found.images}
        assert not gone & needed and not held & set(found.images), f"seed {seed}"
        assert not any(gone & set(keys) for keys in kept.values()), f"seed {seed}"
        assert found.freed_bytes == sum(layers[key] for key in gone), f"seed {seed}"
        if limit and shelf.size_bytes - found.freed_bytes > limit:
            assert set(kept) == held and gone | needed == set(layers), f"seed {seed}"


async def take(store: ImageStore, path: Path, holder: str = "") -> Image:
    return await store.ensure(parse_reference(f"oci:{path}"), holder=holder)


def age(store: ImageStore, image: Image, days: float) -> None:
    when = time.time() - days * DAY_S
    for path in store.directory.glob(f"records/{image.digest.replace(':', '-')}*.json"):
        os.utime(path, (when, when))


async def test_figures(store: ImageStore, tmp_path: Path) -> None:
    """A list tells of every image what it takes and who uses it; a prune what it freed, shared layers once."""
    base, own = tar(file("base", bytes(1000))), [tar(file(name, bytes(size))) for name, size in (("a", 10), ("b", 20))]
    paths = [layout(tmp_path / str(n), base, layer) for n, layer in enumerate(own)]
    images = [await take(store, path) for path in paths]
    assert await store.size_bytes() == 1030
    await take(store, paths[0], "pod1")
    first, second = await store.list_images()
    assert (first.digest, first.holders, first.size_bytes, first.layers) == (images[0].digest, ("pod1",), 1010, 2)
    assert (second.references, second.origin) == ((f"oci:{paths[1]}",), f"oci:{paths[1]}")
    assert second.pulled_bytes > 0 and second.seconds > 0 and second.pulled_at <= second.used_at
    assert time.time() - second.pulled_at / 1000 < 60
    would = await store.prune(dry_run=True)
    assert await store.list_images() == [first, second]
    pruned = await store.prune()
    assert pruned == would and pruned.removed == (second,)
    assert (pruned.freed_bytes, pruned.kept, pruned.size_bytes) == (20, 1, 1010)
    assert [path.is_dir() for path in (*images[0].layers, *images[1].layers)] == [True, True, True, False]
    assert await store.list_images() == [first] and leftovers(store) == []


async def test_labels(store: ImageStore, tmp_path: Path) -> None:
    """Labels reach the record of the instance that uses the image, and the list."""
    layers, labels = [tar(file("a"))], {"org.opencontainers.image.version": "1.2"}
    config = config_of(layers, config={"Labels": labels})
    image = await take(store, layout(tmp_path / "l", *layers, config=config))
    (listed,) = await store.list_images()
    assert listed.labels == image.use("main").labels == labels


async def test_by_age_and_size(store: ImageStore, tmp_path: Path) -> None:
    """An image ages from when it was used last, which beginning and ceasing to use it are."""
    paths = [layout(tmp_path / str(n), tar(file("a", bytes(100 + n)))) for n in range(3)]
    images = [await take(store, path) for path in paths]
    for days, image in zip((20, 10, 5), images, strict=True):
        age(store, image, days)
    assert (await store.prune(30 * DAY_S)).removed == ()
    await take(store, paths[0], "pod1")
    age(store, images[0], 20)
    assert (await store.prune(15 * DAY_S)).removed == ()
    await store.release("pod1")
    assert [gone.digest for gone in (await store.prune(cache_bytes=210)).removed] == [images[1].digest]
    assert [gone.digest for gone in (await store.prune(3 * DAY_S)).removed] == [images[2].digest]
    assert [kept.digest for kept in await store.list_images()] == [images[0].digest]


async def test_a_tag_that_moved(store: ImageStore, remote: Remote, tmp_path: Path) -> None:
    """The image that a tag led to stays when the tag has moved, without a name, until it is pruned."""
    remote.images[NAME] = layout(tmp_path / "1", tar(file("a", b"old")))
    old = await store.ensure(parse_reference(NAME), holder="pod1")
    remote.images[NAME] = layout(tmp_path / "2", tar(file("a", b"new")))
    assert (await store.ensure(parse_reference(NAME))).digest == old.digest
    new = await store.ensure(parse_reference(NAME), refresh=True)
    assert new.digest != old.digest and not new.cached
    names = {image.digest: image.references for image in await store.list_images()}
    assert names == {old.digest: (), new.digest: ("registry.example/app:v1",)}
    await store.ensure(parse_reference(NAME), holder="pod2")
    assert (await store.prune()).removed == ()
    await store.release("pod1")
    assert [gone.digest for gone in (await store.prune()).removed] == [old.digest]


async def test_unfinished_pulls(store: ImageStore, tmp_path: Path) -> None:
    """Layers that a failed pull has left are counted apart, and every pull that ends is announced, well or not; an
    image that is here is none."""
    good, bad = tar(file("a", bytes(700))), tar(file("../b"))
    before = store.pulled
    with pytest.raises(ImageInvalid):
        await take(store, layout(tmp_path / "bad", good, bad))
    assert before.is_set() and not store.pulled.is_set()
    assert await store.unfinished_bytes() == await store.size_bytes() == 700
    before = store.pulled
    await take(store, layout(tmp_path / "good", good))
    assert before.is_set() and await store.unfinished_bytes() == 0
    before = store.pulled
    await take(store, tmp_path / "good")
    assert not before.is_set()


async def test_an_empty_store(store: ImageStore) -> None:
    """There is nothing to list or prune, and nothing made, before the first image."""
    assert await store.list_images() == [] and await store.size_bytes() == await store.unfinished_bytes() == 0
    pruned = await store.prune()
    assert (pruned.removed, pruned.freed_bytes, pruned.kept, pruned.size_bytes) == ((), 0, 0, 0)
    assert not store.directory.exists()


async def test_two_prune_at_once(make_store: MakeStore, tmp_path: Path) -> None:
    """Each image is removed by one of them."""
    store = make_store()
    for number in range(6):
        await take(store, layout(tmp_path / str(number), tar(file(str(number), bytes(10)))))
    freed: list[int] = []

    async def prune() -> None:
        freed.append((await make_store().prune()).freed_bytes)

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(prune)
    assert sum(freed) == 60 and leftovers(store) == []
    assert await store.inventory() == []


# Run by another interpreter: prunes, and dies before the call of the system that its second argument counts.
KILLED = """
import os, signal, sys, trio
from pathlib import Path
from rik.images.store import ImageStore
from rik.linux.idmap import detect

left = int(sys.argv[2])

def counted(function):
    def call(*arguments, **options):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return call

store = ImageStore(Path(sys.argv[1]), "0123abcd", detect())
for name in ("rename", "unlink", "rmdir"):
    setattr(os, name, counted(getattr(os, name)))
trio.run(store.prune)
"""


def test_killed_while_pruning(workspace: Path, tmp_path: Path, require: Require) -> None:
    """Whatever the last thing was that a killed prune did, a sweep clears up, and images that are there are whole."""
    require("user-namespaces", reason="layers are unpacked in one")
    idmap = detect()
    base = tar(file("base", bytes(100)))
    paths = [layout(tmp_path / str(n), base, tar(file(str(n), bytes(10)))) for n in range(2)]
    program = [sys.executable, "-c", textwrap.dedent(KILLED), str(workspace / "images")]

    async def check() -> None:
        store = ImageStore(workspace / "images", HOST_ID, idmap)
        await store.sweep(frozenset({"pod1"}))
        assert leftovers(store) == []
        assert {resource.owner for resource in await store.inventory()} <= {"rik", "pod1"}
        records = list((workspace / "images" / "records").iterdir())
        assert len(records) == len(await store.list_images())
        assert len(list((workspace / "images" / "references").iterdir())) == len(records)
        for path in paths:
            image = await take(store, path)
            assert all(os.listdir(layer) for layer in image.layers)

    async def begin() -> None:
        store = ImageStore(workspace / "images", HOST_ID, idmap)
        for path in paths:
            await take(store, path)

    trio.run(begin)
    for calls in range(40):
        result = subprocess.run([*program, str(calls)], env=environment(), timeout=60)
        if result.returncode == 0:
            break
        assert result.returncode == -signal.SIGKILL
        trio.run(check)
    assert calls >= 10
    assert os.listdir(workspace / "images" / "layers") == []

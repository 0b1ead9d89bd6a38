"""What is told of a pull: by steps, never backwards, the same to all who wait, whoever of them goes."""

from __future__ import annotations

import os
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import trio
import trio.testing

from rik.images.errors import ImageError, ImagePullFailed
from rik.images.flights import Flights
from rik.images.layers import UNPACK_AT_ONCE
from rik.images.reference import parse_reference
from rik.images.source import Layer
from rik.images.store import Image, ImageStore
from rik.images.tally import TICK_S, Tally
from rik.model.instance import Progress
from tests.images.build import file, layout, tar
from tests.images.conftest import MakeStore
from tests.images.remote import Remote
from tests.images.test_store import leftovers, unpacking
from tests.images.test_unpack import children

NAME = "registry.example/app:v1"
STEPS = ["pull", "unpack"]
TWO = (Layer("a", 1_000_000, "sha256:a"), Layer("b", 3_000_000, "sha256:b"))


def never_back(seen: list[Progress]) -> bool:
    """Steps follow each other, and nothing that is counted falls within one."""
    return all(
        (STEPS.index(before.step), before.done if before.step == after.step else 0, before.layers_done, before.seconds)
        <= (STEPS.index(after.step), after.done, after.layers_done, after.seconds)
        and before.layers_done <= after.layers_done
        and before.seconds <= after.seconds
        for before, after in pairwise(seen)
    )


@pytest.fixture
def image(remote: Remote, tmp_path: Path) -> Path:
    """An image in the registry, of two layers that do not compress."""
    layers = [tar(file(name, os.urandom(3_000_000))) for name in "ab"]
    remote.images[NAME] = layout(tmp_path / "l", *layers)
    return remote.images[NAME]


async def test_pull_then_unpack(store: ImageStore, image: Path) -> None:
    """First the bytes that come are counted, then those that are unpacked; layers and seconds with both."""
    seen: list[Progress] = []
    await store.ensure(parse_reference(NAME), seen.append)
    assert never_back(seen) and [seen[0].step, seen[-1].step] == STEPS
    assert seen[0] == Progress("pull"), "before the registry has answered, it is known what it is asked for"
    assert seen[1].done == 0 and seen[1].total > 6_000_000 and {told.total for told in seen[1:]} == {seen[1].total}
    assert seen[-1].done == seen[-1].total and (seen[-1].layers_done, seen[-1].layers_total) == (2, 2)
    assert seen[-1].seconds > 0 and len({progress.done for progress in seen if progress.step == "pull"}) > 5


async def test_only_what_is_missing_counts(store: ImageStore, remote: Remote, tmp_path: Path) -> None:
    """Layers that are here already are neither fetched nor counted, but are among the layers that are complete."""
    below, above = tar(file("a", os.urandom(3_000_000))), tar(file("b", os.urandom(500_000)))
    remote.images[NAME] = layout(tmp_path / "1", below)
    remote.images["registry.example/app:v2"] = layout(tmp_path / "2", below, above)
    first = await store.ensure(parse_reference(NAME))
    seen: list[Progress] = []
    second = await store.ensure(parse_reference("registry.example/app:v2"), seen.append)
    assert seen[1].total < 600_000 and (seen[1].layers_done, seen[1].layers_total) == (1, 2)
    assert second.layers[:1] == first.layers and len(remote.fetched) == 2
    assert (second.pulled_layers, second.pulled_bytes, second.cached) == (1, seen[1].total, False)


async def test_all_see_the_same(store: ImageStore, remote: Remote, image: Path) -> None:
    """Twenty want one new image: it is asked for once, fetched once, and all are told the same, latecomers at once."""
    remote.go_on = trio.Event()
    seen: list[list[Progress]] = [[] for _ in range(20)]
    images: list[Image] = []

    async def want(number: int) -> None:
        images.append(await store.ensure(parse_reference(NAME), seen[number].append, holder=f"pod{number}"))

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for number in range(19):
                nursery.start_soon(want, number)
            await remote.halfway.wait()
            nursery.start_soon(want, 19)
            while not seen[19]:
                await trio.sleep(0.001)
            assert seen[19][0].done > 0
            remote.go_on.set()
    assert len(remote.asked) == 1 and len(remote.fetched) == 2
    assert len(images) == 20 and not any(image.cached for image in images)
    assert all(never_back(progress) for progress in seen)
    assert all(progress[-1] == seen[0][-1] for progress in seen)
    (stored,) = await store.list_images()
    assert len(stored.holders) == 20


async def test_whoever_goes_the_pull_goes_on(store: ImageStore, remote: Remote, image: Path) -> None:
    """When the first of those who wait is cancelled, nothing that has come is lost or told again to the others."""
    remote.go_on = trio.Event()
    seen: list[Progress] = []
    images: list[Image] = []
    scope = trio.CancelScope()

    async def first() -> None:
        with scope:
            await store.ensure(parse_reference(NAME))

    async def second() -> None:
        images.append(await store.ensure(parse_reference(NAME), seen.append))

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(first)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(second)
            await remote.halfway.wait()
            while not seen:
                await trio.sleep(0.001)
            scope.cancel()
            await trio.sleep(0.05)
            remote.go_on.set()
    assert scope.cancelled_caught and len(images) == 1
    assert len(remote.asked) == 1 and len(remote.fetched) == 2 and never_back(seen)


async def test_the_last_to_go_ends_it(store: ImageStore, remote: Remote, image: Path) -> None:
    """When all who wait are cancelled, the pull has ended, and nothing of it is left, before they return."""
    remote.go_on = trio.Event()
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(partial(store.ensure, parse_reference(NAME), holder=f"pod{number}"))
            await remote.halfway.wait()
            nursery.cancel_scope.cancel()
    assert leftovers(store) == [] and children() == []
    assert os.listdir(store.directory / "leases") == []
    remote.go_on.set()
    assert (await store.ensure(parse_reference(NAME))).cached is False


async def test_a_failure_says_how_far_it_came(store: ImageStore, remote: Remote, image: Path) -> None:
    """A pull that fails tells how much had come; layers that were complete stay, and are not fetched again."""
    remote.breaks_at = 2
    expected = r"connection broke; 6\.0 of 6\.0 MB had come after [\d.]+ m?s, and 1 of 2 layers were complete$"
    with pytest.raises(ImagePullFailed, match=expected):
        await store.ensure(parse_reference(NAME))
    assert leftovers(store) == [] and os.listdir(store.directory / "leases") == []
    assert await store.list_images() == [] and await store.size_bytes() == 3_000_000
    image_now = await store.ensure(parse_reference(NAME))
    assert (image_now.pulled_layers, len(remote.fetched)) == (1, 3)


async def test_another_source_of_the_same_layer(store: ImageStore, remote: Remote, image: Path) -> None:
    """When the pull that brings a layer fails, one of another reference that waits for it brings it itself."""
    other = "other.example/app:v1"
    remote.images[other] = image
    remote.go_on = trio.Event()
    remote.breaks_at = 1
    outcomes: list[Image | ImageError] = []

    async def want(name: str) -> None:
        try:
            outcomes.append(await store.ensure(parse_reference(name)))
        except ImagePullFailed as error:
            outcomes.append(error)

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            for name in (NAME, other):
                nursery.start_soon(want, name)
                while len(remote.fetched) < (2 if name == NAME else 4):
                    await trio.sleep(0.001)
            remote.go_on.set()
    assert {type(outcome) for outcome in outcomes} == {Image, ImagePullFailed}
    assert leftovers(store) == [] and len(os.listdir(store.directory / "layers")) == 2


async def test_waiting_is_not_being_stuck(make_store: MakeStore, remote: Remote, image: Path) -> None:
    """While bytes do not come, the seconds still do."""
    store = make_store()
    remote.go_on = trio.Event()
    seen: list[Progress] = []
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.ensure, parse_reference(NAME), seen.append)
            await remote.halfway.wait()
            await trio.sleep(0.01)
            before = len(seen)
            await trio.sleep(2.2 * TICK_S)
            assert len(seen) >= before + 2 and seen[-1].done == seen[before].done
            assert seen[-1].seconds > seen[before].seconds
            remote.go_on.set()


async def test_slow_pulls_do_not_keep_others_from_unpacking(store: ImageStore, remote: Remote, tmp_path: Path) -> None:
    """Pulls whose layers have not begun to come take no place among those that unpack."""
    remote.go_on = trio.Event()
    for number in range(2 * UNPACK_AT_ONCE):
        name = f"registry.example/slow:{number}"
        remote.images[name] = layout(tmp_path / str(number), tar(file("a", os.urandom(200_000))))
    quick = layout(tmp_path / "quick", tar(file("a", b"quick")))
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            for name in remote.images:
                nursery.start_soon(store.ensure, parse_reference(name))
            await remote.halfway.wait()
            assert (await store.ensure(parse_reference(f"oci:{quick}"))).size_bytes == 5
            assert unpacking() == 0
            remote.go_on.set()
    assert len(await store.list_images()) == 2 * UNPACK_AT_ONCE + 1


async def test_layers_that_trickle_in_hold_up_nobody(store: ImageStore, remote: Remote, tmp_path: Path) -> None:
    """Layers of which the rest does not come have no place among those that unpack, and have one again when it does."""
    remote.trickle = trio.Event()
    for number in range(UNPACK_AT_ONCE):
        name = f"registry.example/slow:{number}"
        remote.images[name] = layout(tmp_path / str(number), tar(file("a", os.urandom(4_000_000))))
    quick = layout(tmp_path / "quick", tar(file("a", b"quick")))
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            for name in remote.images:
                nursery.start_soon(store.ensure, parse_reference(name))
            while unpacking() < UNPACK_AT_ONCE:
                await trio.sleep(0.01)
            assert (await store.ensure(parse_reference(f"oci:{quick}"))).size_bytes == 5
            assert unpacking() == UNPACK_AT_ONCE
            remote.trickle.set()
    assert len(await store.list_images()) == UNPACK_AT_ONCE + 1


def tally(seen: list[Progress], *, layers: int = 2, remote: bool = True) -> Tally:
    return Tally(seen.append, layers, TWO, trio.current_time(), remote=remote)


async def test_bytes_that_must_come_again(autojump_clock: trio.testing.MockClock) -> None:
    """When a download begins anew, the bytes told wait until it is further than it was."""
    seen: list[Progress] = []
    counted = tally(seen)
    for count in (2_000_000, -1_500_000, 1_000_000):
        counted.receive(count)
        await trio.sleep(1)
        counted.tell()
    assert counted.received == 1_500_000 and [progress.done for progress in seen][-1] == 2_000_000
    counted.receive(2_500_000)
    assert (seen[-1].step, seen[-1].done) == ("unpack", 0)
    counted.receive(-1_000_000)
    assert seen[-1].step == "unpack" and never_back(seen)


async def test_layers_that_another_brings(autojump_clock: trio.testing.MockClock) -> None:
    """Layers that another pull completes are no longer waited for, and a layer that is begun anew is not told so."""
    seen: list[Progress] = []
    counted = tally(seen)
    read = counted.reader(0, TWO[0])
    read(900_000)
    read(100_000)
    counted.completed(0, TWO[0])
    counted.completed(1, TWO[1])
    assert seen[-1] == Progress("unpack", 4_000_000, 4_000_000, "bytes", 2, 2, 0.0) and never_back(seen)


async def test_small_pieces_are_not_told_one_by_one(autojump_clock: trio.testing.MockClock) -> None:
    """Ten thousand pieces that come at once are worth few reports; slow ones are told ten times a second."""
    seen: list[Progress] = []
    counted = tally(seen)
    for _ in range(3_000):
        counted.receive(1_000)
    assert len(seen) < 20
    before = len(seen)
    for _ in range(10):
        await trio.sleep(0.2)
        counted.receive(10)
    assert len(seen) == before + 10


async def test_a_fault_reaches_all_who_wait() -> None:
    """What the work raises, an error of RIK's own too, is raised by everybody, and the next one begins anew."""
    flights: Flights[int] = Flights()
    begun = 0

    class Work:
        async def __aenter__(self) -> int:
            nonlocal begun
            begun += 1
            await trio.sleep(0.01)
            if begun == 1:
                raise RuntimeError("a bug")
            if begun == 2:
                raise ImagePullFailed("a cause", next_step="a step")
            return begun

        async def __aexit__(self, *_: object) -> None:
            pass

    raised: list[Exception] = []

    async def want() -> None:
        try:
            async with flights.join("key", lambda tell: Work(), lambda progress: None):
                pass
        except (RuntimeError, ImageError) as error:
            raised.append(error)

    for _ in range(2):
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(want)
    assert [str(error) for error in raised] == ["a bug"] * 3 + ["a cause (a step)"] * 3
    assert len({id(error) for error in raised[3:]}) == 3
    async with flights.join("key", lambda tell: Work(), lambda progress: None) as number:
        assert number == begun == 3

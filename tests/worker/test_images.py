"""What a worker answers of its images, and how it keeps them within bounds, with a store that does as it is told."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from rik.images.errors import ImageError, ImageInvalid, ImageNotFound, ImagePullFailed, ImageUnauthorized
from rik.images.manifest import ImageConfig
from rik.images.pruning import Pruned, StoredImage
from rik.images.reference import Reference
from rik.images.store import Image, ImageStore
from rik.link.base import StreamFailed
from rik.messages import ListImages, PruneImages, PullImage
from rik.model.instance import Progress, Status
from rik.model.node import Check
from rik.settings import ImageSettings
from rik.worker.images import NodeImages
from tests.worker.harness import Site, received

DIGEST = "sha256:" + "1" * 64
MIB = 2**20
STORED = StoredImage(
    ("alpine:3.20",), DIGEST, "docker.io", 3, 8 * MIB, 3 * MIB, 1.2, 1_750_000_000_000, 1_750_000_001_000
)


class PretendedStore(ImageStore):
    """No disk and no network: `steps` are waits (s) and progress to report, `failure` what a pull ends with."""

    def __init__(self) -> None:
        self.directory = Path("/nowhere")
        self.images = [STORED]
        self.size = 8 * MIB
        self.steps: list[tuple[float, Progress]] = []
        self.failure: ImageError | None = None
        self.prune_failures: list[Exception] = []
        self.asked: list[tuple[str, str, bool]] = []
        self.prunes: list[tuple[float, int, bool, float]] = []
        self.given_up = 0
        self.unused = 3 * MIB
        self.unfinished = 0
        self.prune_s = 0.0
        self.news = trio.Event()

    @property
    def pulled(self) -> trio.Event:
        return self.news

    def end_a_pull(self, size: int) -> None:
        """So that the store is that large."""
        self.size = size
        self.news.set()
        self.news = trio.Event()

    async def ensure(
        self, reference: Reference, progress: Any = None, *, holder: str = "", refresh: bool = False
    ) -> Image:
        self.asked.append((str(reference), holder, refresh))
        try:
            for wait_s, step in self.steps:
                await trio.sleep(wait_s)
                progress(step)
        except trio.Cancelled:
            self.given_up += 1
            raise
        if self.failure is not None:
            raise self.failure
        config = ImageConfig(exposed_ports=("80/tcp",), labels={"c": "d"})
        return Image(str(reference), DIGEST, config, (Path("a"),), 8 * MIB, "docker.io", False, 1, 3 * MIB, 1.2, 1)

    async def list_images(self) -> list[StoredImage]:
        await trio.lowlevel.checkpoint()
        return self.images

    async def size_bytes(self) -> int:
        return self.size

    async def unfinished_bytes(self) -> int:
        return self.unfinished

    async def prune(self, unused_s: float = 0.0, *, cache_bytes: int = 0, dry_run: bool = False) -> Pruned:
        self.prunes.append((unused_s, cache_bytes, dry_run, trio.current_time()))
        await trio.sleep(self.prune_s)
        if self.prune_failures:
            raise self.prune_failures.pop(0)
        return Pruned((STORED,), self.unused, 4, 8 * MIB)


UNBOUNDED = ImageSettings(keep_unused_s=0, cache_bytes=0)


@asynccontextmanager
async def a_site(settings: ImageSettings | None = None) -> AsyncIterator[tuple[Site, PretendedStore]]:
    """A running worker with a pretended store."""
    store = PretendedStore()
    site = Site(images=NodeImages(store, settings or ImageSettings()))
    async with site.running():
        yield site, store


async def answer(site: Site, request: Any) -> dict[str, Any]:
    stream = await site.scheduler.stream(request)
    found: dict[str, Any] = json.loads(b"".join(await received(stream)))
    return found


async def lines(site: Site, reference: str) -> list[tuple[float, dict[str, Any]]]:
    """When each line of a pull came, and what it says."""
    stream = await site.scheduler.stream(PullImage(reference))
    began, found, text = trio.current_time(), [], b""
    while (frame := await stream.receive()) is not None:
        *whole, text = (text + frame).split(b"\n")
        found += [(round(trio.current_time() - began, 3), json.loads(line)) for line in whole]
    assert text == b""
    return found


async def test_images_are_listed_with_the_names_of_their_users(autojump_clock: MockClock) -> None:
    """Holders are named as users know them; one that the worker does not know keeps its uid."""
    async with a_site() as (site, store):
        await site.scheduler.run(site.assignment("u1"))
        await site.scheduler.until("u1", Status.RUNNING)
        store.images = [
            msgspec.structs.replace(STORED, holders=("u1", "stranger"), dropped={"devices": 2}, labels={"a": "b"})
        ]
        listed = await answer(site, ListImages())
        assert (listed["size_bytes"], listed["cache_bytes"], listed["keep_unused_s"]) == (8 * MIB, 50 * 2**30, 1209600)
        assert listed["images"] == [
            {
                "references": ["alpine:3.20"],
                "digest": DIGEST,
                "origin": "docker.io",
                "layers": 3,
                "size_bytes": 8 * MIB,
                "pulled_bytes": 3 * MIB,
                "seconds": 1.2,
                "pulled_at": "2025-06-15T15:06:40.000Z",
                "used_at": "2025-06-15T15:06:41.000Z",
                "instances": ["name-u1", "stranger"],
                "exposed_ports": [],
                "dropped": {"devices": 2},
                "labels": {"a": "b"},
            }
        ]


async def test_a_list_may_be_longer_than_a_frame(autojump_clock: MockClock) -> None:
    """Thousands of images are listed too."""
    async with a_site() as (site, store):
        store.images = [STORED] * 2_000
        assert len((await answer(site, ListImages()))["images"]) == 2_000


# --- pull


async def test_a_pull_ends_with_its_figures(autojump_clock: MockClock) -> None:
    """The source is asked whatever is here, nobody holds the image, and the last line says what came."""
    async with a_site() as (site, store):
        ((_, line),) = await lines(site, "alpine:3.20")
        assert store.asked == [("docker.io/library/alpine:3.20", "", True)]
        assert line == {
            "type": "image",
            "reference": "alpine:3.20",
            "digest": DIGEST,
            "origin": "docker.io",
            "cached": False,
            "layers": 1,
            "pulled_layers": 1,
            "pulled_bytes": 3 * MIB,
            "size_bytes": 8 * MIB,
            "seconds": 1.2,
            "pulled_at": "1970-01-01T00:00:00.001Z",
            "exposed_ports": ["80/tcp"],
            "dropped": {},
            "labels": {"c": "d"},
        }


async def test_progress_is_told_twice_a_second_at_most(autojump_clock: MockClock) -> None:
    """Of a thousand reports in ten seconds about twenty lines are left, the latest each time, in order."""
    async with a_site() as (site, store):
        store.steps = [(0.01, Progress("pull", n, 1000, "bytes", n // 500, 2, n / 100)) for n in range(1, 1001)]
        *told, (_, last) = await lines(site, "alpine")
        assert last["type"] == "image"
        assert 18 <= len(told) <= 22
        times = [at for at, _ in told]
        assert all(later - earlier >= 0.499 for earlier, later in pairwise(times))
        assert all(abs(line["done"] - at * 100) <= 2 for at, line in told)
        layers = {"done": 1, "total": 2}
        assert {"type": "progress", "step": "pull", "total": 1000, "unit": "bytes", "layers": layers}.items() <= (
            told[-1][1].items()
        )


async def test_a_pull_that_stalls_is_heard_of(autojump_clock: MockClock) -> None:
    """While nothing comes the last progress is told again every 5 s, its seconds going on."""
    async with a_site() as (site, store):
        store.steps = [(1, Progress("pull", 7, 10, "bytes", seconds=1.0)), (19.5, Progress("unpack"))]
        told = [(at, line["seconds"], line["done"]) for at, line in await lines(site, "alpine") if "done" in line]
        assert told == [(1, 1.0, 7), (6, 6.0, 7), (11, 11.0, 7), (16, 16.0, 7)]


async def test_who_hangs_up_gives_the_pull_up(autojump_clock: MockClock) -> None:
    """A stream that is closed cancels its pull at once, and nothing else."""
    async with a_site() as (site, store):
        store.steps = [(1000, Progress("pull"))]
        stream = await site.scheduler.stream(PullImage("alpine"))
        await trio.sleep(1)
        assert store.given_up == 0
        await stream.aclose()
        await trio.sleep(0.01)
        assert store.given_up == 1
        assert (await answer(site, ListImages()))["images"]


@pytest.mark.parametrize(
    ("failure", "status"),
    [
        (ImageNotFound("x from y: no such tag", next_step="look"), 404),
        (ImageUnauthorized("x from y: denied", next_step="docker login y on this node"), 403),
        (ImagePullFailed("x from y: connection refused"), 503),
        (ImageInvalid("x from y: its manifest is HTML"), 400),
    ],
)
async def test_a_pull_fails_with_its_reason(autojump_clock: MockClock, failure: ImageError, status: int) -> None:
    """Status, reason, sentence and next step each reach the other side as they are."""
    async with a_site() as (site, store):
        store.failure = failure
        with pytest.raises(StreamFailed) as failed:
            await lines(site, "alpine")
        told = failed.value
        assert (told.http_status, told.reason) == (status, failure.reason)
        assert (told.message, told.next_step) == (failure.message, failure.next_step)


@pytest.mark.parametrize("reference", ["", "host", "Alpine", "http://a/b"])
async def test_what_cannot_be_pulled(autojump_clock: MockClock, reference: str) -> None:
    """What is no reference, and what needs no pulling, is ImageInvalid; the store is not asked."""
    async with a_site() as (site, store):
        with pytest.raises(StreamFailed) as failed:
            await lines(site, reference)
        assert (failed.value.http_status, failed.value.reason) == (400, "ImageInvalid")
        assert store.asked == []


# --- prune


async def test_pruning_on_request(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    """What went is answered and logged with its figures; a dry run is answered alone."""
    caplog.set_level(logging.INFO)
    async with a_site(UNBOUNDED) as (site, store):
        for dry_run in (True, False):
            pruned = await answer(site, PruneImages(3600, dry_run=dry_run))
            assert [image["digest"] for image in pruned["removed"]] == [DIGEST]
            assert (pruned["freed_bytes"], pruned["kept"], pruned["size_bytes"]) == (3 * MIB, 4, 8 * MIB)
        assert [prune[:3] for prune in store.prunes] == [(3600, 0, True), (3600, 0, False)]
    said = "pruned 1 image that nothing had used for 1 h, as was asked for: 3.1 MB freed, 4 kept (8.4 MB)"
    assert [record.message for record in caplog.records if "pruned" in record.message] == [said]


async def test_pruning_that_fails_is_told(autojump_clock: MockClock) -> None:
    """What keeps images from being removed is the answer, not a fault of RIK's."""
    async with a_site(UNBOUNDED) as (site, store):
        store.prune_failures = [OSError(30, "Read-only file system")]
        with pytest.raises(StreamFailed) as failed:
            await answer(site, PruneImages())
        assert failed.value.http_status == 503
        assert "/nowhere" in failed.value.message and "Read-only file system" in failed.value.message


async def test_pruning_by_itself(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    """At the start and every interval, by age and by size; what went is logged with its figures."""
    caplog.set_level(logging.INFO)
    settings = ImageSettings(keep_unused_s=14 * 86_400, cache_bytes=5 * MIB, prune_interval_s=600)
    async with a_site(settings) as (_, store):
        await trio.sleep(1201)
        assert [round(at, -1) for *_, at in store.prunes] == [0, 0, 600, 600, 1200, 1200]
        assert {prune[:3] for prune in store.prunes} == {(14 * 86_400, 0, False), (0, 5 * MIB, False)}
    messages = [record.message for record in caplog.records if "pruned" in record.message]
    assert messages[:2] == [
        "pruned 1 image that nothing had used for 14 d: 3.1 MB freed, 4 kept (8.4 MB)",
        "pruned 1 image to keep all within 5.2 MB: 3.1 MB freed, 4 kept (8.4 MB)",
    ]


async def test_pruning_after_pulls(autojump_clock: MockClock) -> None:
    """A pull that makes the store too large has it pruned by size at once; several that end during a prune have it
    pruned once more, after it."""
    async with a_site(ImageSettings(cache_bytes=5 * MIB, prune_interval_s=600)) as (_, store):
        await trio.sleep(1)
        store.prunes.clear()
        store.end_a_pull(5 * MIB)
        await trio.sleep(1)
        assert store.prunes == []
        store.prune_s = 10.0
        for _ in range(3):
            store.end_a_pull(6 * MIB)
            await trio.sleep(2)
        await trio.sleep(60)
        first, second = store.prunes
        assert first[:3] == second[:3] == (0.0, 5 * MIB, False)
        assert second[3] - first[3] == 10.0
        store.prune_s = 0.0
        await trio.sleep(600)
        assert [prune[1] for prune in store.prunes[2:]] == [0, 5 * MIB], "the interval is kept"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (ImageSettings(keep_unused_s=0, cache_bytes=0), set()),
        (ImageSettings(keep_unused_s=60, cache_bytes=0), {(60.0, 0)}),
        (ImageSettings(keep_unused_s=0, cache_bytes=5), {(0.0, 5)}),
    ],
)
async def test_what_is_not_bounded_is_kept(
    autojump_clock: MockClock, settings: ImageSettings, expected: set[tuple[float, int]]
) -> None:
    """0 keeps: without an age and a size nothing is ever pruned by itself."""
    async with a_site(settings) as (_, store):
        await trio.sleep(2000)
        assert {prune[:2] for prune in store.prunes} == expected


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), ImagePullFailed("x"), ValueError("a bug")])
async def test_pruning_never_fails_the_worker(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, failure: Exception
) -> None:
    """What goes wrong is logged; the worker works on, and prunes again the next time."""
    async with a_site(ImageSettings(cache_bytes=0)) as (site, store):
        await trio.sleep(601)
        store.prune_failures = [failure]
        await trio.sleep(600)
        assert len(store.prunes) == 3
        await site.scheduler.run(site.assignment("a"))
        await site.scheduler.until("a", Status.RUNNING)
    assert any(record.levelno >= logging.ERROR and "prun" in record.message for record in caplog.records)


# --- a worker without images, and the doctor


async def test_a_node_that_keeps_no_images(autojump_clock: MockClock) -> None:
    """With the fake runtime alone there is nothing to list or prune, and nothing can be pulled."""
    site = Site()
    async with site.running():
        assert await answer(site, ListImages()) == {
            "images": [],
            "size_bytes": 0,
            "cache_bytes": 0,
            "keep_unused_s": 0.0,
        }
        assert await answer(site, PruneImages()) == {"removed": [], "freed_bytes": 0, "kept": 0, "size_bytes": 0}
        with pytest.raises(StreamFailed, match="keeps no images") as failed:
            await lines(site, "alpine")
        assert failed.value.http_status == 409


@pytest.mark.parametrize(
    ("cache_bytes", "ok", "begins"),
    [
        (0, True, "1 image, 8.4 MB; "),
        (10 * MIB, True, "1 image, 8.4 MB of 10 "),
        (6 * MIB, True, "1 image, 8.4 MB of 6.3 MB; 3.1 MB of it is unused and goes at the next prune; "),
        (MIB, False, "1 image, 8.4 MB of 1.0 MB; 3.1 MB of it is unused and goes at the next prune; "),
    ],
)
async def test_the_doctors_look_at_images(tmp_path: Path, cache_bytes: int, ok: bool, begins: str) -> None:
    """How many, how large, how large they may be, how much room there is; too many is told with what to do."""
    store = PretendedStore()
    store.directory = tmp_path / "not" / "there" / "yet"
    check = await NodeImages(store, ImageSettings(cache_bytes=cache_bytes)).check()
    assert (check.name, check.ok, bool(check.next)) == ("images", ok, not ok)
    assert check.detail.startswith(begins) and check.detail.endswith(" free")


async def test_the_doctor_tells_of_unfinished_pulls(tmp_path: Path) -> None:
    """Layers that pulls have left are counted, and what is all used is told with what to do."""
    store = PretendedStore()
    store.directory, store.unfinished, store.unused = tmp_path, 23_000_000, 0
    check = await NodeImages(store, ImageSettings(cache_bytes=MIB)).check()
    assert check.detail.startswith("1 image, 8.4 MB of 1.0 MB, 23 MB of unfinished pulls; ")
    assert not check.ok and check.next.startswith("what is used stays: delete instances")


async def test_the_doctor_tells_of_the_last_prune(mock_clock: MockClock, tmp_path: Path) -> None:
    """What went by itself the last time that something went, and when; a failure until the next success."""
    store = PretendedStore()
    store.directory = tmp_path
    images = NodeImages(store, ImageSettings(keep_unused_s=60, cache_bytes=0, prune_interval_s=7200))

    async def after(hours: float) -> Check:
        await wait_all_tasks_blocked()
        mock_clock.jump(hours * 3600)
        await wait_all_tasks_blocked()
        return await images.check()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(images.keep_pruned)
        assert (await after(0)).detail.endswith(" free; last pruned 1 image, 3.1 MB freed, just now")
        assert (await after(1)).detail.endswith(" free; last pruned 1 image, 3.1 MB freed, 1 h ago")
        store.prune_failures = [OSError(28, "No space left on device")]
        await after(1)
        failed = await after(1)
        assert failed.detail.endswith(" free; pruning failed 1 h ago: [Errno 28] No space left on device")
        assert not failed.ok and failed.next
        assert (await after(1)).ok
        nursery.cancel_scope.cancel()

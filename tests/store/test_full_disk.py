"""A disk that is really full: nothing half done, the cause told verbatim, and well again when there is room."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from rik.errors import StartupError, StoreUnavailable
from rik.model.instance import Instance
from rik.store.sqlite import SqliteStore, open_sqlite
from tests.store.samples import instance, put, workload

PADDING = "x" * 20_000


async def fill(store: SqliteStore) -> tuple[int, StoreUnavailable]:
    """Commits pairs until one is refused; how many instances were acknowledged, and the refusal."""
    for number in range(0, 100_000, 2):
        try:
            await store.commit([put(padded(number)), put(padded(number + 1))])
        except StoreUnavailable as error:
            return number, error
    raise AssertionError("the disk never got full")


def padded(number: int) -> Instance:
    return instance(number, name=f"n{number}-{PADDING}")


async def test_a_full_disk_refuses_whole_batches(small_disk: Path) -> None:
    """SQLite's own words, no half batch, other commits refused alike, and everything well once there is room."""
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(1_000_000))
    with trio.fail_after(60):
        async with open_sqlite(small_disk / "cluster.db") as store:
            acknowledged, error = await fill(store)
            assert "database or disk is full" in error.message or "disk I/O error" in error.message
            assert str(small_disk) in error.message and error.next_step
            loaded = await store.load()
            assert loaded.revision == len(loaded.instances) == acknowledged
            refused = 0

            async def commit(number: int) -> None:
                nonlocal refused
                try:
                    await store.commit([put(padded(number)), put(padded(number + 1))])
                except StoreUnavailable:
                    refused += 1

            async with trio.open_nursery() as nursery:
                for number in range(200_000, 200_020, 2):
                    nursery.start_soon(commit, number)
            assert refused == 10
            ballast.unlink()
            assert await store.commit([put(workload())]) == acknowledged + 1
            changes = await store.changes_since(0, 1_000_000)
            assert [change.revision for change in changes] == list(range(1, acknowledged + 2))
        async with open_sqlite(small_disk / "cluster.db") as store:
            loaded = await store.load()
            assert (loaded.revision, len(loaded.instances)) == (acknowledged + 1, acknowledged)


async def test_one_batch_that_is_too_large_takes_no_other_down(small_disk: Path) -> None:
    """Of commits that wait together on a nearly full disk, those that fit are made durable."""
    with trio.fail_after(60):
        async with open_sqlite(small_disk / "cluster.db") as store:
            outcome: dict[str, str] = {}

            async def commit(name: str, count: int) -> None:
                try:
                    await store.commit([put(padded(number)) for number in range(1000, 1000 + count)])
                except StoreUnavailable:
                    outcome[name] = "refused"
                else:
                    outcome[name] = "durable"

            async with trio.open_nursery() as nursery:
                nursery.start_soon(commit, "small", 1)
                nursery.start_soon(commit, "huge", 500)
                nursery.start_soon(commit, "also small", 2)
            assert outcome == {"small": "durable", "huge": "refused", "also small": "durable"}
            assert (await store.load()).revision == 3


async def test_a_store_cannot_be_made_on_a_full_disk(small_disk: Path) -> None:
    """One sentence, and no half-made file left behind."""
    try:
        (small_disk / "ballast").write_bytes(bytes(4_000_000))
    except OSError:
        pass
    with trio.fail_after(30), pytest.raises(StartupError, match=r"cluster\.db"):
        await SqliteStore.open(small_disk / "cluster.db")
    assert [file.name for file in small_disk.iterdir()] == ["ballast"]


async def test_a_file_that_may_not_grow(tmp_path: Path) -> None:
    """The same without root: a database that has reached its largest size refuses, then goes on."""
    with trio.fail_after(60):
        async with open_sqlite(tmp_path / "cluster.db") as store:
            store._opened.writer.execute("PRAGMA max_page_count = 100")
            acknowledged, error = await fill(store)
            assert "database or disk is full" in error.message
            loaded = await store.load()
            assert loaded.revision == len(loaded.instances) == acknowledged
            store._opened.writer.execute("PRAGMA max_page_count = 1000000")
            assert await store.commit([put(workload())]) == acknowledged + 1

"""What every store does, whatever holds it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import trio

from rik.model.change import Change
from rik.model.instance import Status
from rik.store.base import Compacted, Store
from rik.store.memory import MemoryStore
from rik.store.sqlite import open_sqlite
from tests.store.samples import AT, delete, event, instance, node, postmortem, put, workload

KEPT = 100
Open = Callable[[], AbstractAsyncContextManager[Store]]


@pytest.fixture(params=["memory", "sqlite"])
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    @asynccontextmanager
    async def opened() -> AsyncIterator[Store]:
        with trio.fail_after(30):
            if request.param == "memory":
                yield MemoryStore(journal_revisions=KEPT, new_cluster_id="c1")
            else:
                async with open_sqlite(tmp_path / "cluster.db", journal_revisions=KEPT, new_cluster_id="c1") as store:
                    yield store

    return opened


async def test_a_new_store_is_empty(open_store: Open) -> None:
    """A new store holds nothing, at revision 0, under the cluster id it was given."""
    async with open_store() as store:
        loaded = await store.load()
        assert (loaded.cluster_id, loaded.revision) == ("c1", 0)
        assert (loaded.workloads, loaded.instances, loaded.nodes) == ((), (), ())
        assert await store.changes_since(0) == []
        assert await store.events() == []
        assert await store.postmortem("u1") is None


async def test_a_batch_takes_contiguous_revisions(open_store: Open) -> None:
    """A commit returns the last revision of its range, and every record carries its own."""
    async with open_store() as store:
        assert await store.commit([put(workload()), put(instance(1)), put(instance(2))]) == 3
        assert await store.commit([put(node())]) == 4
        loaded = await store.load()
        assert loaded.revision == 4
        assert [value.revision for value in loaded.instances] == [2, 3]
        assert (loaded.workloads[0].revision, loaded.nodes[0].revision) == (1, 4)
        assert loaded.instances[0] == msgspec.structs.replace(instance(1), revision=2)
        assert loaded.nodes[0] == msgspec.structs.replace(node(), revision=4)


async def test_the_last_put_wins_and_a_delete_removes(open_store: Open) -> None:
    """The present state holds each object's last record, and nothing that was deleted."""
    async with open_store() as store:
        await store.commit([put(instance(1)), put(instance(1, Status.CREATING)), put(instance(2)), put(workload())])
        await store.commit([delete(instance(2)), delete(workload())])
        loaded = await store.load()
        assert [(value.uid, value.status, value.revision) for value in loaded.instances] == [("u1", "Creating", 2)]
        assert loaded.workloads == ()


async def test_changes_come_back_as_they_were_committed(open_store: Open) -> None:
    """The journal gives every change after a revision, with its record, what was before, its event and its time."""
    async with open_store() as store:
        before = msgspec.structs.replace(instance(1), revision=1)
        await store.commit([put(instance(1), event=event())])
        await store.commit([put(instance(1, Status.CREATING), before=before), delete(instance(1, Status.CREATING))])
        changes = await store.changes_since(0)
        assert changes == [
            numbered(put(instance(1), event=event()), 1),
            numbered(put(instance(1, Status.CREATING), before=before), 2),
            numbered(delete(instance(1, Status.CREATING)), 3),
        ]
        assert await store.changes_since(2) == changes[2:]
        assert await store.changes_since(0, limit=1) == changes[:1]
        assert await store.changes_since(3) == []
        assert await store.changes_since(99) == []


def numbered(change: Change, revision: int) -> Change:
    value = msgspec.structs.replace(change.value, revision=revision)
    return msgspec.structs.replace(change, value=value, revision=revision)


async def test_the_journal_is_bounded(open_store: Open) -> None:
    """Of the journal at least the configured number of revisions is kept; asking for older ones says what is kept."""
    async with open_store() as store:
        for _ in range(50):
            await store.commit([put(instance(number), event=event()) for number in range(10)])
        with pytest.raises(Compacted) as caught:
            await store.changes_since(0)
        oldest = caught.value.oldest
        assert 500 - 2 * KEPT <= oldest <= 500 - KEPT
        revisions = [change.revision for change in await store.changes_since(oldest)]
        assert revisions == list(range(oldest + 1, 501))
        with pytest.raises(Compacted):
            await store.changes_since(oldest - 1)
        assert (await store.events(limit=1000))[0].revision == oldest + 1
        assert len((await store.load()).instances) == 10


async def test_events_by_instance_and_by_revision(open_store: Open) -> None:
    """Events come oldest first, of one instance or of all, after a revision; a limit keeps the latest."""
    async with open_store() as store:
        await store.commit([put(instance(n), event=event(f"u{n % 2}", message=f"m{n}")) for n in range(1, 7)])
        await store.commit([put(node()), put(node(), event=event("", message="ready", namespace=""))])
        everything = await store.events()
        assert [(entry.revision, entry.event.message) for entry in everything] == [
            *((n, f"m{n}") for n in range(1, 7)),
            (8, "ready"),
        ]
        assert everything[0].at == AT
        assert [entry.event.message for entry in await store.events(uid="u1")] == ["m1", "m3", "m5"]
        assert [entry.event.message for entry in await store.events(uid="u1", since=1)] == ["m3", "m5"]
        assert [entry.event.message for entry in await store.events(uid="u1", limit=2)] == ["m3", "m5"]
        assert [entry.event.message for entry in await store.events(since=6)] == ["ready"]
        assert len(await store.events(namespace="default")) == 6


async def test_postmortems_by_uid_and_by_name(open_store: Open) -> None:
    """A uid finds exactly one post-mortem, a name the latest, within the namespace that is asked for."""
    async with open_store() as store:
        first = instance(1, Status.FAILED, name="web")
        second = instance(2, Status.TERMINATED, name="web")
        await store.commit([put(first), postmortem(first), delete(first)])
        await store.commit([postmortem(second)])
        by_uid = await store.postmortem("u1")
        assert by_uid == msgspec.structs.replace(first, revision=2)
        by_name = await store.postmortem("web")
        assert by_name is not None and by_name.uid == "u2"
        assert await store.postmortem("web", "elsewhere") is None
        assert await store.postmortem("u1", "default") == by_uid
        assert (await store.load()).instances == ()


async def test_postmortems_never_change(open_store: Open) -> None:
    """A second post-mortem of one instance is refused, with everything else in its batch."""
    async with open_store() as store:
        await store.commit([postmortem(instance(1, Status.FAILED))])
        with pytest.raises(ValueError, match="never changes"):
            await store.commit([put(workload()), postmortem(instance(1, Status.TERMINATED))])
        kept = await store.postmortem("u1")
        assert kept is not None and kept.status == Status.FAILED
        loaded = await store.load()
        assert (loaded.revision, loaded.workloads) == (1, ())


async def test_postmortems_are_purged_by_age_and_number(open_store: Open) -> None:
    """Purging drops what ended too long ago and what exceeds the newest so many, and says how many that were."""
    async with open_store() as store:
        await store.commit([postmortem(instance(n, Status.FAILED, at=AT + n)) for n in range(10)])
        assert await store.purge_postmortems(AT + 3, keep=100) == 3
        assert await store.purge_postmortems(0, keep=5) == 2
        assert [n for n in range(10) if await store.postmortem(f"u{n}")] == [5, 6, 7, 8, 9]
        assert await store.purge_postmortems(0, keep=5) == 0
        assert (await store.load()).revision == 10


async def test_one_bad_batch_takes_no_other_down(open_store: Open) -> None:
    """Of commits that wait together, the one that cannot be done fails alone."""
    async with open_store() as store:
        await store.commit([postmortem(instance(0, Status.FAILED))])
        failed: list[int] = []
        revisions: list[int] = []

        async def commit(number: int) -> None:
            bad = [postmortem(instance(0, Status.FAILED))] if number % 5 == 0 else []
            try:
                revisions.append(await store.commit([put(instance(number)), *bad]))
            except ValueError:
                failed.append(number)

        async with trio.open_nursery() as nursery:
            for number in range(1, 51):
                nursery.start_soon(commit, number)
        assert sorted(failed) == list(range(5, 51, 5))
        assert sorted(revisions) == list(range(2, 42))
        loaded = await store.load()
        assert loaded.revision == 41
        assert {value.uid for value in loaded.instances} == {f"u{n}" for n in range(1, 51) if n % 5}


async def test_a_senseless_change_is_refused(open_store: Open) -> None:
    """A change whose kind, key and record do not belong together is the caller's bug, and is not stored."""
    async with open_store() as store:
        for change in (
            msgspec.structs.replace(put(instance()), kind="node"),
            msgspec.structs.replace(put(instance()), key="other"),
            msgspec.structs.replace(put(instance()), op="patch"),
            msgspec.structs.replace(put(instance()), kind="pod"),
        ):
            with pytest.raises(ValueError):
                await store.commit([put(workload()), change])
        assert (await store.load()).revision == 0


async def test_a_cancelled_commit_is_whole_or_nothing(open_store: Open) -> None:
    """Commits that are cancelled at any moment leave whole batches or nothing, and the revisions contiguous."""
    async with open_store() as store:

        async def commit(number: int, scope: trio.CancelScope) -> None:
            with scope:
                await store.commit([put(instance(number)), put(instance(1000 + number))])

        for attempt in range(20):
            scopes = [trio.CancelScope() for _ in range(10)]
            async with trio.open_nursery() as nursery:
                for number, scope in enumerate(scopes):
                    nursery.start_soon(commit, attempt * 10 + number, scope)
                for _ in range(attempt % 4):
                    await trio.lowlevel.checkpoint()
                for scope in scopes[::2]:
                    scope.cancel()
        last = await store.commit([put(workload())])
        loaded = await store.load()
        numbers = {int(value.uid[1:]) for value in loaded.instances}
        assert {n for n in numbers if n < 1000} == {n - 1000 for n in numbers if n >= 1000}
        assert {n for n in range(200) if n % 10 % 2} <= numbers
        assert last == loaded.revision == len(numbers) + 1

"""What a file is for: what was acknowledged is there again, older files are brought up, and readers see no half."""

from __future__ import annotations

import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import trio
import trio.testing

from rik.errors import StartupError, StoreUnavailable
from rik.store import schema
from rik.store.base import Compacted
from rik.store.sqlite import SqliteStore, open_sqlite
from rik.store.sqlitefile import format_version
from tests.store.samples import event, instance, postmortem, put, workload

FIXTURES = Path(__file__).parent / "data"


async def test_everything_is_there_after_reopening(tmp_path: Path) -> None:
    """State, journal, events, post-mortems, revision and cluster id survive; the cluster id is made once."""
    path = tmp_path / "cluster.db"
    with trio.fail_after(30):
        async with open_sqlite(path) as store:
            cluster_id = (await store.load()).cluster_id
            assert len(cluster_id) == 32
            await store.commit([put(workload()), put(instance(1), event=event()), postmortem(instance(2))])
            before = (await store.load(), await store.changes_since(0), await store.events())
        async with open_sqlite(path, new_cluster_id="ignored") as store:
            assert (await store.load(), await store.changes_since(0), await store.events()) == before
            assert store.cluster_id == cluster_id
            assert await store.postmortem("u2")
            assert await store.commit([put(instance(3))]) == 4
    assert path.stat().st_mode & 0o777 == 0o600
    assert sorted(file.name for file in path.parent.iterdir()) == ["cluster.db"]


async def test_the_journal_stays_bounded_over_restarts(tmp_path: Path) -> None:
    """Pruning goes on where it was, and a shorter journal than before shrinks bit by bit."""
    path = tmp_path / "cluster.db"
    with trio.fail_after(30):
        async with open_sqlite(path, journal_revisions=1000) as store:
            await store.commit([put(instance(n)) for n in range(900)])
        async with open_sqlite(path, journal_revisions=50) as store:
            await store.commit([put(instance(0))])
            with pytest.raises(Compacted) as caught:
                await store.changes_since(0)
            assert caught.value.oldest == 851
            assert len((await store.load()).instances) == 900


async def test_a_killed_writer_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    """After kill -9 in the middle of commits every acknowledged batch is there, whole, and nothing is half there."""
    path = tmp_path / "cluster.db"
    program = """
import sys, trio
from pathlib import Path
from rik.store.sqlite import SqliteStore, open_sqlite
from tests.store.samples import instance, put

async def write(store, number):
    while True:
        last = await store.commit([put(instance(number)), put(instance(number + 1000))])
        print(last, flush=True)

async def main():
    async with open_sqlite(Path(sys.argv[1])) as store, trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(write, store, number)

trio.run(main)
"""
    root = Path(__file__).parents[2]
    with trio.fail_after(60):
        for _ in range(3):
            process = await trio.lowlevel.open_process(
                [sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, cwd=root
            )
            assert process.stdout is not None
            told = b""
            while told.count(b"\n") < 200:
                told += await process.stdout.receive_some()
            process.send_signal(signal.SIGKILL)
            while data := await process.stdout.receive_some():
                told += data
            await process.wait()
            acknowledged = max(int(line) for line in told.split(b"\n")[:-1])
            async with open_sqlite(path) as store:
                loaded = await store.load()
                assert loaded.revision >= acknowledged
                uids = {value.uid for value in loaded.instances}
                assert all(f"u{number + 1000}" in uids for number in range(1000) if f"u{number}" in uids)
                oldest = max(0, loaded.revision - 1000)
                revisions = [change.revision for change in await store.changes_since(oldest)]
                assert revisions == list(range(oldest + 1, loaded.revision + 1))


async def test_an_older_file_is_migrated(tmp_path: Path) -> None:
    """A file written by the first version of the format opens, keeps all it holds, and has the present version."""
    path = tmp_path / "cluster.db"
    shutil.copy(FIXTURES / "cluster-v1.db", path)
    with trio.fail_after(30):
        async with open_sqlite(path) as store:
            loaded = await store.load()
            assert (loaded.cluster_id, loaded.revision) == ("0123456789abcdef0123456789abcdef", 6)
            assert [value.uid for value in loaded.instances] == ["u1"]
            found = await store.postmortem("web")
            assert found is not None and found.status == "Failed"
            assert [entry.event.message for entry in await store.events(uid="u2")] == ["it failed"]
            assert await store.commit([put(instance(3))]) == 7
            assert len(await store.changes_since(0)) == 7
    with sqlite3.connect(path) as connection:
        assert format_version(connection) == schema.VERSION > 1
        indexes = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'index'")}
    connection.close()
    assert "events_of_instance" in indexes


async def test_queries_by_instance_and_name_use_their_index(tmp_path: Path) -> None:
    """Events of an instance and post-mortems by name are found without reading everything."""
    with trio.fail_after(30):
        async with open_sqlite(tmp_path / "cluster.db"):
            pass
    connection = sqlite3.connect(tmp_path / "cluster.db")
    for query, index in (
        (
            "SELECT event FROM events WHERE revision > 0 AND uid = 'u' AND uid <> '' ORDER BY revision DESC LIMIT 5",
            "events_of_instance",
        ),
        ("SELECT record FROM postmortems WHERE name = 'x' ORDER BY revision DESC LIMIT 1", "postmortems_by_name"),
        ("SELECT uid FROM postmortems WHERE ended_at < 5", "postmortems_by_end"),
    ):
        plan = " ".join(str(row[3]) for row in connection.execute(f"EXPLAIN QUERY PLAN {query}"))
        assert index in plan, plan
    connection.close()


async def test_commits_that_wait_share_a_transaction(tmp_path: Path) -> None:
    """A hundred writers need far fewer transactions than commits."""
    with trio.fail_after(30):
        async with open_sqlite(tmp_path / "cluster.db") as store:
            transactions = 0

            def count(statement: str) -> None:
                nonlocal transactions
                transactions += statement == "COMMIT"

            store._opened.writer.set_trace_callback(count)

            async def write(number: int) -> None:
                for _ in range(10):
                    await store.commit([put(instance(number))])

            async with trio.open_nursery() as nursery:
                for number in range(100):
                    nursery.start_soon(write, number)
            assert (await store.load()).revision == 1000
            assert transactions < 250


async def test_a_second_opening_is_refused(tmp_path: Path) -> None:
    """While a store is open, another process cannot open its file."""
    path = tmp_path / "cluster.db"
    with trio.fail_after(30):
        async with open_sqlite(path) as store:
            await store.commit([put(instance())])
            with pytest.raises(StartupError, match="in use by another process"):
                await store.open(path)
            await store.commit([put(instance(2))])
            assert (await store.load()).revision == 2


async def test_somebody_else_who_writes_is_noticed(tmp_path: Path) -> None:
    """When another program has moved the revision on, commits are refused instead of giving revisions twice."""
    path = tmp_path / "cluster.db"
    with trio.fail_after(30):
        async with open_sqlite(path) as store:
            await store.commit([put(instance())])
            other = sqlite3.connect(path)
            other.execute("UPDATE meta SET value = 7 WHERE key = 'revision'")
            other.commit()
            other.close()
            with pytest.raises(StoreUnavailable, match="another process"):
                await store.commit([put(instance(2))])
            assert [value.uid for value in (await store.load()).instances] == ["u1"]


@pytest.mark.parametrize("replaced", [False, True])
async def test_a_file_that_is_taken_away_is_noticed(replaced: bool, tmp_path: Path) -> None:
    """Nothing is acknowledged that is written to a file which nobody will find again."""
    path = tmp_path / "cluster.db"
    with trio.fail_after(30):
        async with open_sqlite(path) as store:
            await store.commit([put(instance())])
            path.rename(tmp_path / "elsewhere.db")
            if replaced:
                path.write_bytes(b"")
            with pytest.raises(StoreUnavailable, match="removed or replaced"):
                await store.commit([put(instance(2))])


async def test_a_closed_store_refuses(tmp_path: Path) -> None:
    """Closing waits for what is under way; afterwards everything is StoreUnavailable."""
    with trio.fail_after(30):
        store = await SqliteStore.open(tmp_path / "cluster.db")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.commit, [put(instance())])
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(store.aclose)
        await store.aclose()
        with pytest.raises(StoreUnavailable):
            await store.commit([put(instance(2))])
        with pytest.raises(StoreUnavailable):
            await store.load()
        async with open_sqlite(tmp_path / "cluster.db") as again:
            assert (await again.load()).revision == 1

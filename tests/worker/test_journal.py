"""The journal on disk: what it promises across crashes, damage and full disks."""

from __future__ import annotations

import shutil
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from rik.environment import SystemEnvironment
from rik.errors import StartupError, StoreDamaged, StoreUnavailable
from rik.messages import Assignment, Report, Stop
from rik.model.instance import Status, Transition
from rik.worker.journal import Entry, Journal, MemoryJournal, Opened, Phase
from rik.worker.sqlitejournal import SqliteJournal, read_uids


def entry(uid: str, phase: Phase = Phase.ACCEPTED, stop: Stop | None = None, padding: str = "") -> Entry:
    report = Report(uid, 0, 0, Status.CREATING, (Transition(Status.CREATING, 7, "é"),), message=padding)
    assignment = Assignment(uid, f"name-{uid}", "default", "w", "Pod", {"containers": []}, 9, "j")
    return Entry(assignment, "fake", report, phase, stop)


@asynccontextmanager
async def opened(path: Path, boot_id: str = "boot-1") -> AsyncIterator[tuple[SqliteJournal, Opened]]:
    journal = SqliteJournal(path, SystemEnvironment())
    found = await journal.open(boot_id)
    try:
        yield journal, found
    finally:
        await journal.aclose()


@pytest.fixture(params=["memory", "sqlite"])
def journal(request: pytest.FixtureRequest, tmp_path: Path) -> Journal:
    if request.param == "memory":
        return MemoryJournal("j")
    return SqliteJournal(tmp_path / "worker.db", SystemEnvironment())


async def test_what_is_put_is_there_after_opening_again(journal: Journal) -> None:
    """Both journals keep identity, entries and their latest state; what was forgotten is gone."""
    with trio.fail_after(10):
        first = await journal.open("boot-1")
        assert (first.epoch, first.rebooted, first.entries) == (1, False, ())
        await journal.put(entry("a"))
        await journal.put(entry("b"))
        await journal.put(entry("a", Phase.STOPPING, Stop("a", "NodeLost", "gone")))
        await journal.forget("b")
        await journal.forget("never-there")
        await journal.aclose()
        second = await journal.open("boot-1")
        assert (second.id, second.epoch, second.rebooted) == (first.id, 2, False)
        assert second.entries == (entry("a", Phase.STOPPING, Stop("a", "NodeLost", "gone")),)
        await journal.aclose()


async def test_a_reboot_is_seen_until_it_was_taken_care_of(journal: Journal) -> None:
    """A new boot id is a reboot at every opening until `settle` says that it was dealt with."""
    with trio.fail_after(10):
        for boot, rebooted, settles in [("1", False, True), ("2", True, False), ("2", True, True), ("2", False, True)]:
            assert (await journal.open(boot)).rebooted is rebooted
            if settles:
                await journal.settle(boot)
            await journal.aclose()


async def test_a_new_journal_is_a_new_identity(tmp_path: Path) -> None:
    """Two journals never share an id, and the file is its owner's alone."""
    async with opened(tmp_path / "a.db") as (_, one), opened(tmp_path / "b.db") as (_, other):
        assert one.id != other.id
    assert (tmp_path / "a.db").stat().st_mode & 0o777 == 0o600


async def test_writes_that_wait_together_share_a_commit(tmp_path: Path) -> None:
    """A thousand writers at once need far fewer commits than writes, and all of them are there afterwards."""

    class Counting(SystemEnvironment):
        commits = 0

        def step(self, name: str) -> None:
            self.commits += name == "worker.journal.after-commit"

    environment = Counting()
    journal = SqliteJournal(tmp_path / "worker.db", environment)
    with trio.fail_after(30):
        await journal.open("1")
        async with trio.open_nursery() as nursery:
            for number in range(1_000):
                nursery.start_soon(journal.put, entry(f"u{number}"))
        await journal.aclose()
    assert environment.commits < 200
    assert len(read_uids(tmp_path / "worker.db")) == 1_000


async def test_killed_between_writes(tmp_path: Path) -> None:
    """What a killed process had been told is durable is there; what it was told nothing of is whole or absent."""
    program = f"""
import trio
from pathlib import Path
from rik.environment import SystemEnvironment
from rik.worker.sqlitejournal import SqliteJournal
from tests.worker.test_journal import entry
async def main():
    journal = SqliteJournal(Path({str(tmp_path / "worker.db")!r}), SystemEnvironment())
    await journal.open("1")
    for number in range(100):
        await journal.put(entry(f"u{{number}}"))
        print(number, flush=True)
trio.run(main)
"""
    environment = {"RIK_CRASH_AT": "worker.journal.after-commit:40", "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-c", program]
    with trio.fail_after(30):
        run = await trio.run_process(
            command,
            env=environment,
            check=False,
            capture_stdout=True,
            capture_stderr=True,
            cwd=Path(__file__).parents[2],
        )
    assert run.returncode == -9, run.stderr
    told = {f"u{number}" for number in run.stdout.decode().split()}
    async with opened(tmp_path / "worker.db") as (_, found):
        assert len(told) == 39
        assert told <= {item.uid for item in found.entries}


@pytest.mark.parametrize("damage", ["empty", "garbage", "torn", "foreign", "record", "headless"])
async def test_damage_is_refused_and_not_touched(tmp_path: Path, damage: str) -> None:
    """A journal that cannot be trusted is refused with its path and what to do, and stays as it is, byte for byte."""
    path = tmp_path / "worker.db"
    async with opened(path) as (journal, _):
        for number in range(50):
            await journal.put(entry(f"u{number}", padding="x" * 500))
    match damage:
        case "empty":
            path.write_bytes(b"")
        case "garbage":
            path.write_bytes(b"SQLite format 3\0" + b"\xff" * 5_000)
        case "torn":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        case "foreign":
            path.unlink()
            with sqlite3.connect(path) as other:
                other.execute("CREATE TABLE t (x)")
            other.close()
        case "record":
            with sqlite3.connect(path) as own:
                own.execute("UPDATE instances SET entry = '{' WHERE uid = 'u7'")
            own.close()
        case "headless":
            path.with_name("worker.db-wal").write_bytes(path.read_bytes())
            path.unlink()
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(StoreDamaged, match=str(path)) as refused:
        await SqliteJournal(path, SystemEnvironment()).open("1")
    assert "\n" not in str(refused.value)
    assert refused.value.next_step
    after = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert {name: data for name, data in after.items() if name in before} == before


async def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    """The journal of a newer RIK is left alone, with the advice to run that one."""
    path = tmp_path / "worker.db"
    async with opened(path):
        pass
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StartupError, match="format 99"):
        await SqliteJournal(path, SystemEnvironment()).open("1")


@pytest.mark.parametrize("replaced", [False, True])
async def test_a_file_that_is_taken_away_is_noticed(replaced: bool, tmp_path: Path) -> None:
    """A journal that was removed or replaced takes no more writes: what it acknowledged would be gone with it."""
    path = tmp_path / "worker.db"
    with trio.fail_after(10):
        async with opened(path) as (journal, _):
            await journal.put(entry("a"))
            path.rename(tmp_path / "elsewhere.db")
            if replaced:
                shutil.copy(tmp_path / "elsewhere.db", path)
            with pytest.raises(StoreUnavailable, match="removed or replaced"):
                await journal.put(entry("b"))


async def test_a_second_worker_is_refused(tmp_path: Path) -> None:
    """A journal belongs to one worker at a time; whoever only looks is let in."""
    path = tmp_path / "worker.db"
    async with opened(path) as (journal, _):
        await journal.put(entry("a"))
        with pytest.raises(StartupError, match="in use by another process"):
            await SqliteJournal(path, SystemEnvironment()).open("1")
        assert read_uids(path) == {"a"}
        await journal.put(entry("b"))


async def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    """What cannot be opened at all is one sentence with the cause."""
    with pytest.raises(StartupError, match=r"No such file|unable to open"):
        await SqliteJournal(tmp_path / "nowhere" / "worker.db", SystemEnvironment()).open("1")


async def test_a_full_disk(small_disk: Path) -> None:
    """On a full disk a write fails with the cause, what was durable stays, and with room it goes on."""
    path = small_disk / "worker.db"
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(1_300_000))
    async with opened(path) as (journal, _):
        kept = set()
        with trio.fail_after(30), pytest.raises(StoreUnavailable, match="full") as refused:
            for number in range(10_000):
                await journal.put(entry(f"u{number}", padding="x" * 4_000))
                kept.add(f"u{number}")
        assert str(path) in str(refused.value)
        ballast.unlink()
        await journal.put(entry("later"))
    async with opened(path) as (_, found):
        assert {item.uid for item in found.entries} == {*kept, "later"}

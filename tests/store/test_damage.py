"""A file that cannot be trusted is refused in one sentence, and left exactly as it is."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from rik.errors import StartupError, StoreDamaged
from rik.store import schema, sqlitefile
from rik.store.sqlite import SqliteStore, open_sqlite
from tests.store.samples import event, instance, postmortem, put, workload

FILLED = 300


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a store that was closed in order."""
    directory = tmp_path_factory.mktemp("closed")

    async def make() -> None:
        async with open_sqlite(directory / "cluster.db") as store:
            await fill(store)

    trio.run(make)
    return directory


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a store whose process was killed: its last changes are in the log alone."""
    directory = tmp_path_factory.mktemp("killed")
    open_one = tmp_path_factory.mktemp("open")

    async def make() -> None:
        async with open_sqlite(open_one / "cluster.db") as store:
            await fill(store)
            for name in ("cluster.db", "cluster.db-wal"):
                shutil.copy(open_one / name, directory / name)

    trio.run(make)
    return directory


async def fill(store: SqliteStore) -> None:
    await store.commit([put(workload())])
    for number in range(FILLED):
        await store.commit([put(instance(number), event=event()), postmortem(instance(number))])


def contents(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.iterdir() if file.is_file()}


async def refusal(path: Path) -> StartupError:
    """How the store refuses to open, with everything beside it as it was before."""
    before = contents(path.parent)
    with trio.fail_after(30), pytest.raises(StartupError) as caught:
        await SqliteStore.open(path)
    assert contents(path.parent) == before, "nothing was touched, and nothing left behind"
    message = str(caught.value)
    assert str(path) in message and "\n" not in message and caught.value.next_step
    return caught.value


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def garbage(path: Path) -> None:
    path.write_bytes(b"\x00\x01garbage" * 1000)


def text(path: Path) -> None:
    path.write_text("this is no database\n")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def cut_to_the_header(path: Path) -> None:
    os.truncate(path, 50)


def zeroed_page(path: Path) -> None:
    overwrite(path, 4096 * 8, bytes(4096))


def zeroed_everywhere(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def zeroed_first_page(path: Path) -> None:
    overwrite(path, 100, bytes(3996))


def random_pages(path: Path) -> None:
    overwrite(path, 4096 * 5 + 10, os.urandom(20_000))


def unreadable_record(path: Path) -> None:
    edit(path, "UPDATE objects SET record = x'00ff00ff' WHERE key = 'u7'")


def record_of_another_kind(path: Path) -> None:
    edit(path, "UPDATE objects SET kind = 'pony' WHERE key = 'u7'")


def lost_revision(path: Path) -> None:
    edit(path, "UPDATE meta SET value = 5 WHERE key = 'revision'")


def lost_table(path: Path) -> None:
    edit(path, "DROP TABLE objects")


def lost_meta(path: Path) -> None:
    edit(path, "DELETE FROM meta")


def somebody_elses(path: Path) -> None:
    path.unlink()
    edit(path, "CREATE TABLE notes (text)")


def edit(path: Path, statement: str) -> None:
    connection = sqlite3.connect(path)
    connection.execute(statement)
    connection.commit()
    connection.close()
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("damage", "cause"),
    [
        (garbage, "not an SQLite database"),
        (text, "not an SQLite database"),
        (empty, "it is empty"),
        (truncated, "malformed"),
        (cut_to_the_header, "cut off after 50 bytes"),
        (zeroed_page, ""),
        (zeroed_everywhere, "not an SQLite database"),
        (zeroed_first_page, ""),
        (random_pages, ""),
        (unreadable_record, "a record is unreadable"),
        (record_of_another_kind, "a record is unreadable"),
        (lost_revision, "its journal ends at"),
        (lost_table, "no such table: objects"),
        (lost_meta, ""),
        (somebody_elses, "another program's database"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
async def test_a_damaged_file_is_refused(
    damage: Callable[[Path], None], cause: str, closed: Path, tmp_path: Path
) -> None:
    """Whatever happened to the file: StoreDamaged with the path, the cause and the next step, and nothing touched."""
    path = tmp_path / "cluster.db"
    shutil.copy(closed / "cluster.db", path)
    damage(path)
    error = await refusal(path)
    assert isinstance(error, StoreDamaged)
    assert cause in error.message, error.message


async def test_a_damaged_file_with_a_log_is_refused(killed: Path, tmp_path: Path) -> None:
    """Also with changes in the log: neither the file nor its log is touched, and no index is left beside them."""
    path = tmp_path / "cluster.db"
    for name in ("cluster.db", "cluster.db-wal"):
        shutil.copy(killed / name, tmp_path / name)
    overwrite(path, 0, b"SQLite format 4\0")
    assert isinstance(await refusal(path), StoreDamaged)
    shutil.copy(killed / "cluster.db", path)
    connection = sqlite3.connect(path)
    connection.execute("UPDATE objects SET record = x'00' WHERE key = 'u7'")
    connection.commit()
    for name in ("cluster.db", "cluster.db-wal"):
        shutil.copy(tmp_path / name, tmp_path / f"{name}.copy")
    connection.close()
    other = tmp_path / "other"
    other.mkdir()
    for name in ("cluster.db", "cluster.db-wal"):
        shutil.move(tmp_path / f"{name}.copy", other / name)
    assert "a record is unreadable" in (await refusal(other / "cluster.db")).message


@pytest.mark.parametrize("data", [b"garbage" * 1000, bytes(8192), b"\x37\x7f"], ids=["garbage", "zeros", "stump"])
async def test_a_damaged_log_is_refused(data: bytes, killed: Path, tmp_path: Path) -> None:
    """SQLite would pass over a log that does not begin as one, and lose its changes without a word."""
    path = tmp_path / "cluster.db"
    shutil.copy(killed / "cluster.db", path)
    (tmp_path / "cluster.db-wal").write_bytes(data)
    error = await refusal(path)
    assert isinstance(error, StoreDamaged) and "cluster.db-wal does not begin as one" in error.message


FRAME_BYTES = 24 + 4096


def frames(log: Path) -> int:
    """Of the present generation: older ones, which the log still holds behind them, have other salts."""
    data = log.read_bytes()
    salts = [data[start + 8 : start + 16] for start in range(32, len(data), FRAME_BYTES)]
    return next((number for number, salt in enumerate(salts) if salt != data[16:24]), len(salts))


@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.8])
async def test_a_log_damaged_in_its_midst_is_refused(part: float, killed: Path, tmp_path: Path) -> None:
    """SQLite would silently drop everything after the damaged frame: acknowledged changes."""
    for name in ("cluster.db", "cluster.db-wal"):
        shutil.copy(killed / name, tmp_path / name)
    log = tmp_path / "cluster.db-wal"
    overwrite(log, 32 + int(part * frames(log)) * FRAME_BYTES + 1000, b"damage")
    error = await refusal(tmp_path / "cluster.db")
    assert isinstance(error, StoreDamaged) and "cluster.db-wal is damaged after frame" in error.message


async def test_a_transaction_that_was_never_completed_is_no_damage(killed: Path, tmp_path: Path) -> None:
    """What was being written when the machine died, its commit included, was never acknowledged: it is dropped."""
    for name in ("cluster.db", "cluster.db-wal"):
        shutil.copy(killed / name, tmp_path / name)
    log = tmp_path / "cluster.db-wal"
    overwrite(log, 32 + frames(log) * FRAME_BYTES - 1000, b"damage")
    with trio.fail_after(30):
        async with open_sqlite(tmp_path / "cluster.db") as store:
            assert (await store.load()).revision < 1 + 2 * FILLED
            await store.commit([put(workload(2))])


async def test_a_log_whose_head_was_changed_is_refused(killed: Path, tmp_path: Path) -> None:
    """One wrong bit in the log's head would make SQLite pass over all of it."""
    for name in ("cluster.db", "cluster.db-wal"):
        shutil.copy(killed / name, tmp_path / name)
    overwrite(tmp_path / "cluster.db-wal", 17, b"\xff")
    assert isinstance(await refusal(tmp_path / "cluster.db"), StoreDamaged)


async def test_a_log_without_its_file_is_refused(killed: Path, tmp_path: Path) -> None:
    """When the file is gone and its log is there, no new store is made over it."""
    shutil.copy(killed / "cluster.db-wal", tmp_path / "cluster.db-wal")
    error = await refusal(tmp_path / "cluster.db")
    assert isinstance(error, StoreDamaged) and "is missing" in error.message


async def test_a_killed_store_opens_with_all_its_changes(killed: Path, tmp_path: Path) -> None:
    """What a killed process left in the log is there again."""
    for name in ("cluster.db", "cluster.db-wal"):
        shutil.copy(killed / name, tmp_path / name)
    with trio.fail_after(30):
        async with open_sqlite(tmp_path / "cluster.db") as store:
            loaded = await store.load()
            assert (loaded.revision, len(loaded.instances)) == (1 + 2 * FILLED, FILLED)


async def test_a_directory_is_refused(tmp_path: Path) -> None:
    """A directory in the store's place is named as one."""
    (tmp_path / "cluster.db").mkdir()
    error = await refusal(tmp_path / "cluster.db")
    assert isinstance(error, StoreDamaged) and "is a directory" in error.message


async def test_something_else_than_a_file_is_refused(tmp_path: Path) -> None:
    """A named pipe in the store's place is refused, and not waited for."""
    os.mkfifo(tmp_path / "cluster.db")
    assert "not a regular file" in (await refusal(tmp_path / "cluster.db")).message


async def test_a_newer_format_is_refused(closed: Path, tmp_path: Path) -> None:
    """A store written by a newer RIK is left to that version."""
    path = tmp_path / "cluster.db"
    shutil.copy(closed / "cluster.db", path)
    edit(path, f"PRAGMA user_version = {schema.VERSION + 1}")
    error = await refusal(path)
    assert not isinstance(error, StoreDamaged)
    assert f"format {schema.VERSION + 1}; this one knows {schema.VERSION}" in error.message


@pytest.mark.require("ordinary-user", reason="root may read everything")
async def test_an_unreadable_file_is_refused(closed: Path, tmp_path: Path) -> None:
    """A file that may not be read is named, with the system's own words."""
    path = tmp_path / "cluster.db"
    shutil.copy(closed / "cluster.db", path)
    path.chmod(0)
    with pytest.raises(StartupError, match="Permission denied"):
        await SqliteStore.open(path)


@pytest.mark.require("ordinary-user", reason="root may write everywhere")
async def test_a_directory_that_may_not_be_written(tmp_path: Path) -> None:
    """A store that cannot be made says so, with the system's own words."""
    (tmp_path / "shut").mkdir(mode=0o500)
    with pytest.raises(StartupError, match="Permission denied"):
        await SqliteStore.open(tmp_path / "shut" / "cluster.db")


@pytest.mark.parametrize("how", ["another RIK", "another program"])
async def test_a_file_in_use_is_refused(
    how: str, closed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that another process holds, be it another RIK or any program with a lock, is not opened."""
    monkeypatch.setattr(sqlitefile, "BUSY_TIMEOUT_S", 0.1)
    path = tmp_path / "cluster.db"
    shutil.copy(closed / "cluster.db", path)
    programs = {
        "another RIK": f"""
import trio
from pathlib import Path
from rik.store.sqlite import open_sqlite
async def main():
    async with open_sqlite(Path({str(path)!r})):
        print("ready", flush=True)
        await trio.to_thread.run_sync(input)
trio.run(main)
""",
        "another program": f"""
import sqlite3
connection = sqlite3.connect({str(path)!r}, isolation_level=None)
connection.execute("PRAGMA locking_mode = EXCLUSIVE")
connection.execute("BEGIN EXCLUSIVE")
connection.execute("UPDATE meta SET value = value")
print("ready", flush=True)
input()
""",
    }
    with trio.fail_after(30):
        process = await trio.lowlevel.open_process(
            [sys.executable, "-c", programs[how]],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        assert process.stdout is not None and process.stdin is not None
        try:
            assert (await process.stdout.receive_some()).startswith(b"ready")
            with pytest.raises(StartupError) as caught:
                await SqliteStore.open(path)
            assert not isinstance(caught.value, StoreDamaged)
            assert f"the store {path} is in use by another process" in str(caught.value)
        finally:
            await process.stdin.send_all(b"\n")
            await process.wait()
            await process.stdout.aclose()
            await process.stdin.aclose()
        async with open_sqlite(path) as store:
            assert (await store.load()).revision == 1 + 2 * FILLED


async def test_a_half_made_store_is_made_again(tmp_path: Path) -> None:
    """A process killed while it made a new store leaves nothing that stands in the way."""
    (tmp_path / "cluster.db.new").write_bytes(b"SQLite format 3\0 and then it was killed")
    with trio.fail_after(30):
        async with open_sqlite(tmp_path / "cluster.db") as store:
            assert (await store.load()).revision == 0
    assert [file.name for file in tmp_path.iterdir()] == ["cluster.db"]

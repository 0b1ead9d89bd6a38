"""Reading log files: tail, since, and following over rotations."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any, cast

import pytest
import trio

from rik.messages import ReadLogs
from rik.model.instance import LogLine
from rik.runtime.logfiles import MAX_LINE_BYTES, containers_of, read_logs


class Writer:
    """Writes as the pod init does: whole records, renaming when a file is full."""

    def __init__(self, directory: Path, container: str = "main", *, file_bytes: int = 2_000, files: int = 4) -> None:
        directory.mkdir(exist_ok=True)
        self._path = directory / f"{container}.log"
        self._file_bytes = file_bytes
        self._files = files
        self._at_us = 1_750_000_000_000_000

    def stamp(self) -> str:
        self._at_us += 1_000
        seconds, micros = divmod(self._at_us, 1_000_000)
        return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{micros:06d}Z"

    def write(self, text: str | bytes, stream: str = "stdout", mark: str = "F") -> None:
        data = text if isinstance(text, bytes) else text.encode()
        self.raw(f"{self.stamp()} {stream} {mark} ".encode() + data + b"\n")

    def raw(self, record: bytes) -> None:
        if self._path.exists() and self._path.stat().st_size + len(record) > self._file_bytes:
            self.rotate()
        with self._path.open("ab") as file:
            file.write(record)

    def rotate(self) -> None:
        for number in range(self._files - 1, 0, -1):
            older = Path(f"{self._path}.{number}")
            newer = Path(f"{self._path}.{number - 1}") if number > 1 else self._path
            if newer.exists():
                newer.rename(older)


def ended() -> bool:
    return True


async def read(directory: Path, ended: Callable[[], bool] = ended, **query: Any) -> list[LogLine]:
    lines: list[LogLine] = []
    with trio.fail_after(20):
        async with aclosing(cast("Any", read_logs(directory, ReadLogs("u", **query), ended))) as batches:
            async for batch in batches:
                lines += batch
    return lines


def texts(lines: list[LogLine]) -> list[str]:
    return [line.line for line in lines]


async def test_everything_across_rotated_files(tmp_path: Path) -> None:
    """All lines of all kept files come, in order, with their streams and times."""
    writer = Writer(tmp_path, file_bytes=2_000)
    for number in range(250):
        writer.write(f"line {number}", "stderr" if number % 2 else "stdout")
    lines = await read(tmp_path)
    assert texts(lines) == [f"line {n}" for n in range(250 - len(lines), 250)]
    assert 130 < len(lines) < 250, "three full files and the current one"
    assert [line.at for line in lines] == list(range(lines[0].at, lines[0].at + len(lines)))
    assert {line.stream for line in lines} == {"stdout", "stderr"}
    assert containers_of(tmp_path) == ["main"]


@pytest.mark.parametrize("tail", [0, 1, 7, 30, 100, 1_000])
async def test_tail(tmp_path: Path, tail: int) -> None:
    """The last lines, also when they reach over several files, are exactly as many as asked for."""
    writer = Writer(tmp_path, file_bytes=3_000)
    for number in range(100):
        writer.write(f"{number} " + "x" * random.Random(number).randrange(60))
    everything = texts(await read(tmp_path))
    assert texts(await read(tmp_path, tail=tail)) == everything[max(0, len(everything) - tail) :]


async def test_tail_of_a_big_file(tmp_path: Path) -> None:
    """A tail is read from the end: it is found in a file much larger than a block."""
    writer = Writer(tmp_path, file_bytes=10**9)
    for number in range(3_000):
        writer.write(f"{number} " + "y" * 200)
    assert [line.split()[0] for line in texts(await read(tmp_path, tail=900))] == [str(n) for n in range(2_100, 3_000)]


async def test_since(tmp_path: Path) -> None:
    """Only what is not older than the given time comes, and a tail counts among those."""
    writer = Writer(tmp_path)
    for number in range(20):
        writer.write(str(number))
    lines = await read(tmp_path)
    assert texts(await read(tmp_path, since_ms=lines[10].at)) == [str(n) for n in range(10, 20)]
    assert texts(await read(tmp_path, since_ms=lines[10].at, tail=3)) == ["17", "18", "19"]
    assert texts(await read(tmp_path, since_ms=lines[18].at, tail=5)) == ["18", "19"]


async def test_containers_are_merged_by_time(tmp_path: Path) -> None:
    """The lines of several containers come in the order in which they were written; one alone can be chosen."""
    a, b = Writer(tmp_path, "a"), Writer(tmp_path, "b")
    a.write("1")
    b.stamp()
    b.write("2")
    a.stamp()
    a.write("3")
    assert [(line.container, line.line) for line in await read(tmp_path)] == [("a", "1"), ("b", "2"), ("a", "3")]
    assert texts(await read(tmp_path, container="b")) == ["2"]
    assert texts(await read(tmp_path, container="c")) == []


async def test_cut_lines_are_joined(tmp_path: Path) -> None:
    """A line in several records is one line, cut even within a character and mixed with the other stream's lines."""
    writer = Writer(tmp_path)
    half = "grün".encode()
    writer.write(half[:3], mark="P")
    writer.write("meanwhile", "stderr")
    writer.write(half[3:], mark="P")
    writer.write("!")
    assert texts(await read(tmp_path)) == ["meanwhile", "grün!"]


async def test_endless_lines_come_in_pieces(tmp_path: Path) -> None:
    """A megabyte without a newline is delivered, in pieces of bounded size."""
    writer = Writer(tmp_path, file_bytes=10**9)
    for _ in range(64):
        writer.write("z" * 16_384, mark="P")
    lines = await read(tmp_path)
    assert sum(len(line.line) for line in lines) == 2**20
    assert max(len(line.line) for line in lines) <= MAX_LINE_BYTES


async def test_a_line_without_an_end(tmp_path: Path) -> None:
    """What was written without a newline, and a record cut by a crash, are shown when nothing follows."""
    writer = Writer(tmp_path)
    writer.write("prompt> ", mark="P")
    writer.raw(f"{writer.stamp()} stderr F cut sho".encode())
    assert sorted(texts(await read(tmp_path))) == ["cut sho", "prompt> "]


async def test_damage_is_shown(tmp_path: Path) -> None:
    """A record that is none does not hide the others."""
    writer = Writer(tmp_path)
    writer.write("before")
    writer.raw(b"\x00\xff garbage\n\n")
    writer.write("after")
    found = await read(tmp_path)
    assert sorted(texts(found))[1:] == ["before", "unreadable record: \x00\ufffd garbage"]
    assert {line.stream for line in found if "garbage" in line.line} == {"rik"}


async def test_nothing_yet(tmp_path: Path) -> None:
    """A directory that is not there yet has no lines, and following it finds what comes."""
    assert await read(tmp_path / "later") == []
    over = False
    lines: list[LogLine] = []

    async def follow() -> None:
        lines.extend(await read(tmp_path / "later", lambda: over, follow=True))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(follow)
        await trio.sleep(0.05)
        Writer(tmp_path / "later").write("hello")
        over = True
    assert texts(lines) == ["hello"]


async def test_following_over_rotations(tmp_path: Path) -> None:
    """A follower gets every line once, in order, over many rotations, and stops when all is read and it has ended."""
    writer = Writer(tmp_path, file_bytes=1_000, files=4)
    over = False
    lines: list[LogLine] = []

    async def follow() -> None:
        lines.extend(await read(tmp_path, lambda: over, follow=True))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(follow)
        for number in range(200):
            writer.write(f"line {number}")
            if number % 10 == 9:
                await trio.sleep(0.03)
        over = True
    assert texts(lines) == [f"line {n}" for n in range(200)]


async def test_a_follower_that_was_overtaken_says_so(tmp_path: Path) -> None:
    """When files are rotated away before a follower has read them, it is told."""
    writer = Writer(tmp_path, file_bytes=500, files=3)
    writer.write("first")
    over = False
    lines: list[LogLine] = []

    async def follow() -> None:
        lines.extend(await read(tmp_path, lambda: over, follow=True))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(follow)
        await trio.sleep(0.05)
        for number in range(200):
            writer.write(f"line {number}")
        over = True
    assert lines[0].line == "first"
    assert lines[-1].line == "line 199"
    assert [line.line for line in lines if line.stream == "rik"] == ["output was rotated away before it could be read"]


async def test_no_descriptor_is_left(tmp_path: Path) -> None:
    """A reader that is abandoned closes its files."""
    writer = Writer(tmp_path)
    for number in range(100):
        writer.write(str(number))
    before = len(os.listdir("/proc/self/fd"))
    async with aclosing(cast("Any", read_logs(tmp_path, ReadLogs("u"), ended))) as batches:
        async for _ in batches:
            break
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("query", [{}, {"tail": 3}, {"since_ms": 1}, {"tail": 1_000_000}], ids=str)
async def test_a_flood_is_not_chased(tmp_path: Path, query: dict[str, Any]) -> None:
    """Without `follow` the end is where it was at the beginning, however fast the pod goes on writing."""
    writer = Writer(tmp_path, file_bytes=10**9)
    for number in range(2_000):
        writer.write(f"{number} " + "y" * 200)
    before = (tmp_path / "main.log").stat().st_size
    flooding = threading.Event()
    flooding.set()

    def flood() -> None:
        records = (tmp_path / "main.log").read_bytes().splitlines(keepends=True)
        with (tmp_path / "main.log").open("ab", buffering=0) as file:  # record by record: so it goes on for seconds
            until = time.monotonic() + 10  # so that a reader that chases it fails, and does not hang
            while flooding.is_set() and time.monotonic() < until and file.tell() < 2**29:
                for record in records:
                    file.write(record)

    thread = threading.Thread(target=flood)
    thread.start()
    try:
        with trio.fail_after(5):
            while (tmp_path / "main.log").stat().st_size == before:
                await trio.sleep(0.001)
        lines = await read(tmp_path, lambda: False, **query)
        assert thread.is_alive(), "the flood went on"
    finally:
        flooding.clear()
        thread.join()
    assert all(line.stream == "stdout" and line.line.endswith("y") for line in lines), "no record is cut in two"
    assert len(lines) == 3 if query.get("tail") == 3 else len(lines) >= 2_000


@pytest.mark.parametrize("kind", ["symlink", "fifo", "directory"])
@pytest.mark.parametrize("name", ["main.log", "main.log.1"])
async def test_what_is_no_log_file(tmp_path: Path, kind: str, name: str) -> None:
    """What somebody has put in the place of a log file is neither followed out of the directory nor waited for."""
    (tmp_path / "secret").write_text("2025-01-01T00:00:00.000000Z stdout F secret\n")
    directory = tmp_path / "logs"
    writer = Writer(directory)
    if name == "main.log.1":
        writer.write("mine")
    place = directory / name
    if kind == "symlink":
        place.symlink_to(tmp_path / "secret")
    elif kind == "fifo":
        os.mkfifo(place)
    else:
        place.mkdir()
    for follow in (False, True):
        assert texts(await read(directory, follow=follow)) == (["mine"] if name == "main.log.1" else [])

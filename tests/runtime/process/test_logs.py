"""Output: every byte kept or accounted for, whatever the container does and whatever the disk."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from rik.runtime.process.podinit.logs import FILE_BYTES, FILE_COUNT, LINE_BYTES, LogWriter

from .conftest import Bench, container, script

needs_pods = pytest.mark.require("user-namespaces", reason="pods are made of them")


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def _records(path: Path) -> list[tuple[str, str, str]]:
    lines = path.read_text().splitlines()
    return [(stream, mark, text) for _, stream, mark, text in (line.split(" ", 3) for line in lines)]


def test_records(directory: int, tmp_path: Path) -> None:
    """Each line is one record with time, stream and mark; a last line without an end is kept at the close."""
    writer = LogWriter(directory, "a")
    writer.feed("stdout", b"one\ntw")
    writer.feed("stderr", b"err\n\n")
    writer.feed("stdout", b"o\nthree")
    writer.close()
    assert _records(tmp_path / "a.log") == [
        ("stdout", "F", "one"),
        ("stderr", "F", "err"),
        ("stderr", "F", ""),
        ("stdout", "F", "two"),
        ("stdout", "F", "three"),
    ]
    stamp = (tmp_path / "a.log").read_text().split(" ")[0]
    assert len(stamp) == len("2026-01-01T00:00:00.000000Z")


def test_the_beginning_of_a_line_can_be_flushed(directory: int, tmp_path: Path) -> None:
    """What has no end yet is written as a part, once; its line goes on in the next record."""
    writer = LogWriter(directory, "a")
    writer.feed("stdout", b"one\nname: ")
    assert writer.holding
    writer.flush()
    writer.flush()
    assert not writer.holding
    writer.feed("stdout", b"rik\n")
    writer.close()
    assert _records(tmp_path / "a.log") == [
        ("stdout", "F", "one"),
        ("stdout", "P", "name: "),
        ("stdout", "F", "rik"),
    ]


@needs_pods
async def test_a_prompt_can_be_read(bench: Bench) -> None:
    """Output without a newline is in the log while its container lives."""
    pod, _ = await bench.start(script("a", "printf 'name: '; sleep 1000"))
    with trio.fail_after(10):
        while [line.line for line in await bench.lines(pod)] != ["name: "]:
            await trio.sleep(0.1)


def test_long_lines_are_cut(directory: int, tmp_path: Path) -> None:
    """A mebibyte without a newline is cut into records that together are the line, and is never held in memory."""
    line = bytes(range(33, 127)) * 11_200
    writer = LogWriter(directory, "a")
    for start in range(0, len(line), 50_000):
        writer.feed("stdout", line[start : start + 50_000])
    writer.feed("stdout", b"\nnext\n")
    writer.close()
    *cut, last, following = _records(tmp_path / "a.log")
    assert all(mark == "P" and len(text) <= LINE_BYTES for _, mark, text in cut)
    assert last[1] == "F"
    assert "".join(text for _, _, text in [*cut, last]) == line.decode()
    assert following == ("stdout", "F", "next")


def test_long_line_in_one_piece(directory: int, tmp_path: Path) -> None:
    """A long line that comes whole, newline and all, is cut like any other."""
    writer = LogWriter(directory, "a")
    writer.feed("stdout", b"x" * 40_000 + b"\n" + b"y" * LINE_BYTES + b"\nz\n")
    writer.close()
    marks = [(mark, len(text)) for _, mark, text in _records(tmp_path / "a.log")]
    assert sum(size for _, size in marks) == 40_000 + LINE_BYTES + 1
    assert [mark for mark, _ in marks].count("F") == 3


def test_rotation(directory: int, tmp_path: Path) -> None:
    """Files are rotated before they grow over their share, and the oldest goes."""
    writer = LogWriter(directory, "a", file_bytes=10_000, files=3)
    for number in range(1000):
        writer.feed("stdout", f"line {number:06d}\n".encode())
    writer.close()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["a.log", "a.log.1", "a.log.2"]
    assert all((tmp_path / name).stat().st_size <= 10_000 for name in names)
    texts = [text for name in reversed(names) for _, _, text in _records(tmp_path / name)]
    assert texts == [f"line {number:06d}" for number in range(1000 - len(texts), 1000)]


def test_goes_on_with_what_is_there(directory: int, tmp_path: Path) -> None:
    """A log that is there already is gone on with."""
    for word in (b"one\n", b"two\n"):
        writer = LogWriter(directory, "a")
        writer.feed("stdout", word)
        writer.close()
    assert [text for _, _, text in _records(tmp_path / "a.log")] == ["one", "two"]


@pytest.mark.require("root", reason="a file system of a size of its own must be mounted")
def test_full_disk(tmp_path: Path) -> None:
    """What a full disk refuses is dropped, counted, and told as soon as there is room again."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)], check=True)
    try:
        fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
        writer = LogWriter(fd, "a")
        sent = [f"line {number:04d} {'x' * 200}" for number in range(1000)]
        (tmp_path / "other").write_bytes(b"x" * 20_000)
        for line in sent:
            writer.feed("stdout", line.encode() + b"\n")
        (tmp_path / "other").unlink()
        writer.feed("stdout", b"after\n")
        writer.close()
        os.close(fd)
        records = _records(tmp_path / "a.log")
        kept = [text for stream, _, text in records if stream == "stdout"]
        assert kept[:-1] == sent[: len(kept) - 1]
        assert kept[-1] == "after"
        dropped = [text for stream, _, text in records if stream == "rik"]
        assert len(dropped) == 1
        assert dropped[0].endswith("bytes: No space left on device")
        missing = len(sent) - (len(kept) - 1)
        assert int(dropped[0].split()[1]) == missing * len(f"2026-01-01T00:00:00.000000Z stdout F {sent[0]}\n")
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


@needs_pods
async def test_a_flood_waits(bench: Bench) -> None:
    """A container that floods its log is slowed down to the disk, loses nothing, and stays within its share."""
    lines = 400_000
    program = f"import sys\nfor n in range({lines}): sys.stdout.write('%07d ' % n + 'x' * 100 + chr(10))\n"
    begun = time.monotonic()
    pod, ended = await bench.run(container("a", "python3", "-c", program))
    assert ended.failure is None
    assert time.monotonic() - begun < 30
    files = sorted(bench.runtime.layout.log_directory(pod.uid).iterdir())
    assert len(files) == FILE_COUNT
    assert sum(path.stat().st_size for path in files) <= FILE_BYTES * FILE_COUNT
    numbers = [int(line.line.split()[0]) for line in await bench.lines(pod)]
    assert numbers == list(range(lines - len(numbers), lines))


@needs_pods
async def test_a_mebibyte_without_newline(bench: Bench) -> None:
    """A mebibyte without a newline comes through whole, in pieces."""
    pod, ended = await bench.run(container("a", "python3", "-c", "print('x' * (1 << 20), end='')"))
    assert ended.failure is None
    assert sum(len(line.line) for line in await bench.lines(pod)) == 1 << 20


@needs_pods
async def test_last_words_are_kept(bench: Bench) -> None:
    """What a container says just before it dies is in the log when its end is told, also without a newline."""
    for _ in range(5):
        pod, _ = await bench.run(script("a", "echo out; printf last >&2; kill -9 $$"))
        assert {line.line for line in await bench.lines(pod)} == {"out", "last"}


@needs_pods
async def test_following_ends_with_the_pod(bench: Bench) -> None:
    """Whoever follows the output sees all of it, and the end."""
    pod, _ = await bench.start(script("a", "for i in 1 2 3; do echo $i; sleep 0.1; done"))
    with trio.fail_after(10):
        assert [line.line for line in await bench.lines(pod, follow=True)] == ["1", "2", "3"]


@needs_pods
@pytest.mark.require("root", reason="a file system of a size of its own must be mounted")
async def test_full_disk_ends_no_pod(data_dir: Path, bench: Bench) -> None:
    """On a full disk a pod runs on, its end is told, and it can be removed."""
    await trio.run_process(["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs", str(data_dir)])
    try:
        for path in (bench.runtime.layout.pods, bench.runtime.layout.logs):
            path.mkdir()
        pod, _ = await bench.start(script("a", "echo up; head -c 3000000 /dev/zero | tr '\\0' x; sleep 0.3; exit 9"))
        ended = await bench.runtime.wait(pod.uid, lambda observed: None)
        assert ended.containers[0].exit_code == 9
        await bench.runtime.remove(pod.uid)
        assert [item for item in await bench.runtime.inventory() if item.kind != "mount"] == []
    finally:
        await trio.run_process(["umount", "-l", str(data_dir)])

"""Reading the log files that pods leave: tail, since, and following over rotations. Used by every runtime that writes
files.

One record a line: `<RFC 3339 UTC, microseconds>Z <stdout|stderr|rik> <F|P> <text>`. `P` says that the line goes on in
the next record of its stream. `<container>.log` is being written, `.1` is the one before, and so on; the writer
renames and then creates."""

from __future__ import annotations

import errno
import heapq
import os
import stat
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from datetime import datetime
from itertools import islice
from pathlib import Path

import trio

from rik.messages import ReadLogs
from rik.model.instance import LogLine

# What is read at a time: about a millisecond of parsing, so that a reader of old logs does not hold up the others.
BLOCK_BYTES = 65_536
# Records are joined into lines of at most this many bytes; a longer line is delivered in pieces.
MAX_LINE_BYTES = 65_536
BATCH_LINES = 500
# A tail of at most so many lines is looked for from the end; for a longer one everything is read, with pauses.
SHORT_TAIL_LINES = 5_000
# How often a follower looks for new output.
POLL_S = 0.1
SUFFIX = ".log"


async def read_logs(directory: Path, query: ReadLogs, ended: Callable[[], bool]) -> AsyncGenerator[list[LogLine], None]:
    """Batches of lines from the files in `directory`, in time order across containers.

    `tail` counts the lines of all containers that were asked for. Without `follow` it ends with what was there when it
    began, however fast the pod writes. With `follow` it goes on until `ended()` was true before a look that found
    nothing. A missing directory or file is no output yet. What was rotated away before it could be read is said in a
    line of stream `rik`."""
    readers: dict[str, _Reader] = {}
    _find(directory, query, readers)
    for batch in _history(readers, query, living=not ended()):
        await trio.lowlevel.checkpoint()
        if batch:
            yield batch
    while query.follow:
        over = ended()
        _find(directory, query, readers)
        found: list[LogLine] = []
        for reader in readers.values():
            found += reader.read()
        if found:
            found.sort(key=_time)
            for batch in _batches(line for line in found if line.at >= query.since_ms):
                await trio.lowlevel.checkpoint()
                yield batch
        elif over:
            break
        else:
            await trio.sleep(POLL_S)
    rest = sorted((line for reader in readers.values() for line in reader.flush()), key=_time)
    if rest := [line for line in rest if line.at >= query.since_ms]:
        yield rest


def containers_of(directory: Path) -> list[str]:
    """The containers that have log files in `directory`, by name."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    return sorted({name.partition(SUFFIX)[0] for name in names if SUFFIX in name})


def _time(line: LogLine) -> int:
    return line.at


def _find(directory: Path, query: ReadLogs, readers: dict[str, _Reader]) -> None:
    for name in [query.container] if query.container else containers_of(directory):
        if name not in readers:
            readers[name] = _Reader(directory / f"{name}{SUFFIX}", name)


def _history(readers: dict[str, _Reader], query: ReadLogs, *, living: bool) -> Iterator[list[LogLine]]:
    """What is there now. Opened first, all of it, so that it is one moment for all containers. Some batches are empty:
    they are there for the caller to let others run while much is read that was not asked for."""
    for reader in readers.values():
        reader.open(query.tail)
    lines = heapq.merge(*(reader.lines(last=not query.follow, living=living) for reader in readers.values()), key=_time)
    last: deque[LogLine] = deque(maxlen=max(0, query.tail))
    while looked_at := list(islice(lines, BATCH_LINES)):
        wanted = [line for line in looked_at if line.at >= query.since_ms]
        if query.tail >= 0:
            last.extend(wanted)
            yield []
        else:
            yield from _batches(iter(wanted))
    yield from _batches(iter(last))


def _batches(lines: Iterator[LogLine]) -> Iterator[list[LogLine]]:
    batch: list[LogLine] = []
    size = 0
    for line in lines:
        batch.append(line)
        size += len(line.line)
        if len(batch) >= BATCH_LINES or size >= BLOCK_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class _Reader:
    """One container's records, in order, across its files. Files are held open, so that a rotation cannot take them
    away unread.
    """

    def __init__(self, path: Path, container: str) -> None:
        self._path = path
        self._container = container
        self._files: deque[int] = deque()  # open descriptors, oldest first; the last one may still grow
        self._torn = b""  # the beginning of a record whose newline has not been read yet
        self._open_lines: dict[bytes, tuple[int, list[bytes]]] = {}  # of a line that goes on: time, parts
        self._unread = 0  # of what was there at `open`, in bytes

    def __del__(self) -> None:
        for fd in self._files:
            os.close(fd)

    def open(self, tail: int) -> None:
        """From the beginning, or (tail >= 0) from a place that has at least `tail` lines after it."""
        self._files = deque(self._newer_than(None) or [])
        if 0 <= tail <= SHORT_TAIL_LINES:
            self._skip_to_tail(tail)
        self._unread = sum(os.fstat(fd).st_size - os.lseek(fd, 0, os.SEEK_CUR) for fd in self._files)

    def lines(self, *, last: bool, living: bool) -> Iterator[LogLine]:
        """Up to where the end was at `open`, for a flood is written faster than it is read; with `last` also a line
        that has no end yet. A record that is not whole was cut by a crash, or (`living`) is just being written."""
        while self._unread > 0 and (found := self.read()):
            yield from found
        if last:
            if self._torn and self._files:
                block = os.read(self._files[0], BLOCK_BYTES)
                yield from self._parse(block[: block.find(b"\n") + 1])
            if living:
                self._torn = b""
            yield from self.flush()

    def read(self) -> list[LogLine]:
        """The lines of the next block; [] at the present end."""
        if not self._files:
            self._files = deque(self._newer_than(None) or [])
        while self._files:
            block = os.read(self._files[0], BLOCK_BYTES)
            if block:
                self._unread -= len(block)
                lines = self._parse(block)
                if lines:
                    return lines
            elif len(self._files) > 1:
                lines = self._parse(b"\n") if self._torn else []  # a record cut short by a crash ends with its file
                os.close(self._files.popleft())
                if lines:
                    return lines
            elif not self._follow_rotation():
                return []
            elif lost := self._lost():
                return lost
        return []

    def flush(self) -> list[LogLine]:
        """The lines that were begun and will not be ended."""
        lines = self._parse(b"\n") if self._torn else []
        lines += [self._line(stream, at, b"".join(parts)) for stream, (at, parts) in self._open_lines.items()]
        self._open_lines.clear()
        return lines

    def _follow_rotation(self) -> bool:
        """Whether there are newer files than the one that was read to its end; they are opened."""
        fd = self._files[0]
        try:
            if os.stat(self._path).st_ino == os.fstat(fd).st_ino:
                return False
        except FileNotFoundError:  # renamed, and the next one not created yet
            return False
        newer = self._newer_than(os.fstat(fd).st_ino)
        if newer is None:
            if os.fstat(fd).st_nlink:  # it is there, but was renamed during the look: look again later
                return False
            newer = self._newer_than(None) or []
        self._files.extend(newer)
        return bool(newer)

    def _lost(self) -> list[LogLine]:
        """A note when the file that was read is gone: there may have been others between it and the next."""
        if os.fstat(self._files[0]).st_nlink:
            return []
        lines = self.flush()
        os.close(self._files.popleft())
        first = os.pread(self._files[0], 64, 0).partition(b" ")[0]
        note = "output was rotated away before it could be read"
        return [*lines, LogLine(self._container, "rik", _milliseconds(first), note)]

    def _newer_than(self, inode: int | None) -> list[int] | None:
        """Descriptors of the files newer than the one of that inode, oldest first, or None when it is not found.
        With None: of all files.

        Opened from the newest back, so that a rotation meanwhile can only show a file twice, which its inode tells.
        A rotation in progress leaves one number free.
        """
        found: dict[int, int] = {}
        complete = inode is None
        number = missing = 0
        while missing < 2 and not (complete and inode is not None):
            fd = _open_plain(f"{self._path}.{number}" if number else str(self._path))
            if fd is None:
                missing += 1
            else:
                missing = 0
                key = os.fstat(fd).st_ino
                complete = complete or key == inode
                if key == inode or key in found:
                    os.close(fd)
                else:
                    found[key] = fd
            number += 1
        if not complete:
            for fd in found.values():
                os.close(fd)
            return None
        return list(reversed(found.values()))

    def _skip_to_tail(self, tail: int) -> None:
        needed = tail
        files = list(self._files)
        for index in range(len(files) - 1, -1, -1):
            offset, count = _back(files[index], needed)
            if count >= needed or index == 0:
                os.lseek(files[index], offset, os.SEEK_SET)
                for fd in files[:index]:
                    os.close(fd)
                self._files = deque(files[index:])
                return
            needed -= count

    def _parse(self, block: bytes) -> list[LogLine]:
        records = (self._torn + block).split(b"\n")
        self._torn = records.pop()
        lines: list[LogLine] = []
        for record in records:
            line = self._record(record)
            if line is not None:
                lines.append(line)
        return lines

    def _record(self, record: bytes) -> LogLine | None:
        if not record:
            return None
        stamp, stream, mark, text = (record.split(b" ", 3) + [b""] * 3)[:4]
        at = _milliseconds(stamp)
        if not at or mark not in (b"F", b"P"):
            return LogLine(self._container, "rik", at, f"unreadable record: {record[:200].decode('utf-8', 'replace')}")
        begun = self._open_lines.pop(stream, None)
        if begun is None:
            if mark == b"F":
                return self._line(stream, at, text)
            begun = at, []
        begun[1].append(text)  # joined as bytes: a cut may have gone through a character
        if mark == b"P" and sum(map(len, begun[1])) < MAX_LINE_BYTES:
            self._open_lines[stream] = begun
            return None
        return self._line(stream, begun[0], b"".join(begun[1]))

    def _line(self, stream: bytes, at: int, text: bytes) -> LogLine:
        return LogLine(self._container, stream.decode("utf-8", "replace"), at, text.decode("utf-8", "replace"))


def _open_plain(path: str) -> int | None:
    """None where there is no plain file. The directory belongs to the pod's user: a symbolic link in it would lead to
    what only this process may read, and a FIFO would hold it up."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a symbolic link; a socket
            return None
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        return None
    return fd


def _back(fd: int, lines: int) -> tuple[int, int]:
    """The offset of a record after which at least `lines` lines end, and how many do; (0, all of them) if there are
    fewer.
    """
    size = os.fstat(fd).st_size
    length = BLOCK_BYTES
    while True:
        start = max(0, size - length)
        block = os.pread(fd, size - start, start)
        skipped = 0 if start == 0 else block.find(b"\n") + 1
        ended = [place for place, record in _records(block, skipped) if record.split(b" ", 3)[2:3] == [b"F"]]
        if start == 0 or len(ended) > lines:  # one more than asked for: its end is where the first of them begins
            return start + skipped, len(ended)
        length *= 4


def _records(block: bytes, start: int) -> Iterator[tuple[int, bytes]]:
    while (end := block.find(b"\n", start)) >= 0:
        yield start, block[start:end]
        start = end + 1


def _milliseconds(stamp: bytes) -> int:
    """0 when it is no time."""
    try:
        time = datetime.fromisoformat(stamp.decode("ascii"))
    except ValueError:
        return 0
    return int(time.timestamp()) * 1000 + time.microsecond // 1000

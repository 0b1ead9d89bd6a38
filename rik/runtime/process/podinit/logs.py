"""The log of one container: every line stamped, in files that are rotated and never grow past their share of the disk.

One record a line: ``<UTC time with microseconds>Z <stdout|stderr|rik> <F|P> <text>``. P: the line goes on in the
stream's next record (longer lines are cut at 16 KiB). The stream ``rik`` is RIK's own voice: what had to be
dropped, and why.

Writing is synchronous on purpose: while the disk is slow the pod init does not read, the pipe fills, and the container
waits. Only what the disk refuses is dropped, and counted.
"""

from __future__ import annotations

import os
import time

LINE_BYTES = 16_384
FILE_BYTES = 8 << 20
FILE_COUNT = 4
_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


class LogWriter:
    """Writes ``<name>.log`` in an open directory; ``<name>.log.1`` is the file before it, and so on."""

    def __init__(self, directory_fd: int, name: str, *, file_bytes: int = FILE_BYTES, files: int = FILE_COUNT) -> None:
        self._directory_fd = directory_fd
        self._name = f"{name}.log"
        self._file_bytes = file_bytes
        self._files = max(1, files)
        self._fd = -1
        self._size = 0
        self._partial: dict[str, bytes] = {}
        self._second = -1
        self._stamp = ""
        self._dropped_bytes = 0
        self._dropped_why = ""
        self._open()

    def feed(self, stream: str, data: bytes) -> None:
        """Takes output as it comes, in pieces of any size."""
        held = self._partial.get(stream)
        if held:
            data = held + data
        *lines, rest = data.split(b"\n")
        now = self._now()
        full = f"{now} {stream} F ".encode()
        if len(data) <= LINE_BYTES or all(len(line) <= LINE_BYTES for line in lines):
            records = [full + line for line in lines]
        else:
            cut = f"{now} {stream} P ".encode()
            records = [record for line in lines for record in _cut(line, full, cut)]
        while len(rest) >= LINE_BYTES:
            records.append(f"{now} {stream} P ".encode() + rest[:LINE_BYTES])
            rest = rest[LINE_BYTES:]
        self._partial[stream] = rest
        if records:
            records.append(b"")
            self._write(b"\n".join(records))

    @property
    def holding(self) -> bool:
        """Whether a line has begun whose end has not come."""
        return any(self._partial.values())

    def flush(self) -> None:
        """Writes such beginnings, so that they can be read; their lines go on in the next records."""
        for stream, rest in self._partial.items():
            if rest:
                self._write(f"{self._now()} {stream} P ".encode() + rest + b"\n")
                self._partial[stream] = b""

    def note(self, text: str) -> None:
        """A line of RIK's own."""
        self._write(f"{self._now()} rik F {text}\n".encode("utf-8", "replace"))

    def close(self) -> None:
        """Writes what is left of lines that never ended, and what was dropped if there is room for that by now."""
        for stream, rest in self._partial.items():
            if rest:
                self._write(f"{self._now()} {stream} F ".encode() + rest + b"\n")
        self._partial.clear()
        if self._dropped_bytes:
            self._write(b"")
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _now(self) -> str:
        ns = time.time_ns()
        second, rest = divmod(ns, 1_000_000_000)
        if second != self._second:
            self._second = second
            self._stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._stamp}.{rest // 1000:06d}Z"

    def _write(self, data: bytes) -> None:
        if self._dropped_bytes:
            note = f"dropped {self._dropped_bytes} bytes: {self._dropped_why}"
            payload = f"{self._now()} rik F {note}\n".encode() + data
        else:
            payload = data
        if not payload:
            return
        try:
            if self._fd < 0 or self._size + len(payload) > self._file_bytes:
                self._rotate()
            self._append(payload)
        except OSError as error:
            self._dropped_bytes += len(data)
            self._dropped_why = error.strerror or str(error)
        else:
            self._dropped_bytes = 0

    def _append(self, payload: bytes) -> None:
        """All or nothing: half a record at the end of a full disk would garble the next one."""
        view = memoryview(payload)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError:
            if len(view) < len(payload):
                os.ftruncate(self._fd, self._size)
            raise
        self._size += len(payload)

    def _open(self) -> None:
        try:
            self._fd = os.open(self._name, _FLAGS, 0o600, dir_fd=self._directory_fd)
            self._size = os.fstat(self._fd).st_size
        except OSError as error:  # tried again at the next write
            self._dropped_why = error.strerror or str(error)

    def _rotate(self) -> None:
        if self._fd < 0:
            self._open()
            if self._fd < 0:
                raise OSError(0, self._dropped_why)
            return
        if self._size == 0:
            return
        directory = self._directory_fd
        for number in range(self._files - 1, 0, -1):
            older = f"{self._name}.{number}"
            newer = f"{self._name}.{number - 1}" if number > 1 else self._name
            try:
                os.rename(newer, older, src_dir_fd=directory, dst_dir_fd=directory)
            except FileNotFoundError:
                continue
        if self._files == 1:
            os.unlink(self._name, dir_fd=directory)
        os.close(self._fd)
        self._fd = -1
        self._size = 0
        self._open()
        if self._fd < 0:
            raise OSError(0, self._dropped_why)


def _cut(line: bytes, full: bytes, cut: bytes) -> list[bytes]:
    last = max(0, (len(line) - 1) // LINE_BYTES * LINE_BYTES)
    pieces = [cut + line[start : start + LINE_BYTES] for start in range(0, last, LINE_BYTES)]
    return [*pieces, full + line[last:]]

"""Whether SQLite would pass over acknowledged changes in a damaged write-ahead log.

SQLite stops reading its log at the first frame that is not right, without a word: rightly so when the machine died
while the last transaction was written, wrongly when an older part of the log was damaged. The two are told apart by
what follows: with `synchronous=FULL` a transaction begins only when the one before is on the disk, so behind a frame
that was never completed no more than one commit stands in one chain of checksums. (Remains of transactions that failed
may lie there too; each is a chain of its own, with one commit at most.) (Formats: https://sqlite.org/fileformat2.html#walformat,
https://sqlite.org/walformat.html#the_wal_index_header.)
"""

from __future__ import annotations

import struct
from pathlib import Path

_HEADER = struct.Struct(">8I")  # magic, version, page size, checkpoint, salt 1, salt 2, checksum 1, checksum 2
_FRAME_HEADER = struct.Struct(">6I")  # page, size of the database after a commit (else 0), salt 1, salt 2, checksums
_MAGIC_LITTLE_ENDIAN = 0x377F0682
_MAGIC_BIG_ENDIAN = 0x377F0683
_INDEX_LAST_FRAME = struct.Struct("=16xI")  # in the byte order of the machine


def find_damage(log: Path, index: Path) -> str:
    """What is wrong with a log, "" when nothing is; `index` (`-shm`) must have been built from it by a connection that
    is still open. Raises OSError."""
    if not log.exists() or not log.stat().st_size:
        return ""
    with log.open("rb") as file:
        head = file.read(_HEADER.size)
        if not _is_header(head):
            return f"its log {log.name} does not begin as one"
        magic, _, page_size, _, *salts, _, _ = _HEADER.unpack(head)
        order = _byte_order(magic)
        last = _INDEX_LAST_FRAME.unpack(index.read_bytes()[: _INDEX_LAST_FRAME.size])[0]
        file.seek(_HEADER.size + last * (_FRAME_HEADER.size + page_size))
        commits = 0
        before = (0, 0)
        while len(frame := file.read(_FRAME_HEADER.size + page_size)) == _FRAME_HEADER.size + page_size:
            _, size_after, *frame_salts, first, second = _FRAME_HEADER.unpack_from(frame)
            if frame_salts != salts:
                commits = 0
                continue
            if _checksum(order, before, frame[:8] + frame[_FRAME_HEADER.size :]) != (first, second):
                commits = 0
            commits += bool(size_after)
            if commits > 1:
                return f"its log {log.name} is damaged after frame {last}, and further transactions follow"
            before = (first, second)
    return ""


def is_log(log: Path) -> bool:
    """Whether a log begins as one, before SQLite is let near it."""
    with log.open("rb") as file:
        head = file.read(_HEADER.size)
    return not head or _is_header(head)


def _is_header(head: bytes) -> bool:
    if len(head) < _HEADER.size:
        return False
    magic, *_, first, second = _HEADER.unpack(head)
    if magic not in (_MAGIC_LITTLE_ENDIAN, _MAGIC_BIG_ENDIAN):
        return False
    return _checksum(_byte_order(magic), (0, 0), head[:24]) == (first, second)


def _byte_order(magic: int) -> str:
    return "<" if magic == _MAGIC_LITTLE_ENDIAN else ">"


def _checksum(order: str, before: tuple[int, int], data: bytes) -> tuple[int, int]:
    """SQLite's: over pairs of words, going on from the checksum `before`."""
    a, b = before
    words = iter(struct.unpack(f"{order}{len(data) // 4}I", data))
    for left, right in zip(words, words, strict=True):
        a = (a + left + b) & 0xFFFFFFFF
        b = (b + right + a) & 0xFFFFFFFF
    return a, b

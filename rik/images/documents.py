"""Small JSON files that describe what lies beside them. Whatever is in one, reading it never fails for that."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from pathlib import Path
from typing import TypeVar

import msgspec

NEW = ".new"  # the end of a name that nobody reads yet
MAX_DOCUMENT_BYTES = 8 << 20  # an image's config may have 4 MiB
_NO_DOCUMENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO})

T = TypeVar("T")


def read_document(path: Path, kind: type[T]) -> T | None:
    """What the file says; None when it is not there, damaged, or no plain file of a sensible size. Raises OSError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in _NO_DOCUMENT:
            return None
        raise
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_DOCUMENT_BYTES:
            return None
        data = os.read(fd, MAX_DOCUMENT_BYTES)
    finally:
        os.close(fd)
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def write_document(path: Path, document: object, *, durably: bool = False) -> None:
    """Replaces the file, in one step for whoever reads it. Only `durably` it is on the disk afterwards; after a power
    cut it may otherwise be the old one, or damaged. Raises OSError."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}{NEW}")
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(msgspec.json.encode(document))
            if durably:
                file.flush()
                os.fsync(file.fileno())
        os.rename(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durably:
        sync_directory(path.parent)


def remove_document(path: Path) -> None:
    """Nothing there is no error, nor is a directory that somebody has put there: it stays. Raises OSError."""
    try:
        path.unlink()
    except (FileNotFoundError, IsADirectoryError):
        pass


def sync_directory(path: Path) -> None:
    """The names in a directory are on the disk. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

"""Locks between processes (flock): freed by the kernel when their holder dies, however it dies."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

# Another process is waited for like this: flock cannot be waited for without a thread that cannot be cancelled.
_FIRST_POLL_S = 0.001
_POLL_S = 0.05


class Gate:
    """The lock that the file `path` stands for, which stays. Tasks of this process wait in a queue, without polling."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._queue = trio.Lock()

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Waits while anybody else has it. Raises OSError."""
        async with self._queue, exclusive(self._path, keep=True):
            yield


@asynccontextmanager
async def exclusive(path: Path, *, keep: bool = False) -> AsyncIterator[None]:
    """Holds the lock that the file `path` stands for; made when it is not there, and removed afterwards unless `keep`.

    Waits while another process has it. Raises OSError.
    """
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        pause_s = _FIRST_POLL_S
        try:
            while not try_lock(fd):
                await trio.sleep(pause_s)
                pause_s = min(2 * pause_s, _POLL_S)
            if _is_still(path, fd):
                break
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # its former holder has removed it meanwhile: whoever comes now makes another
    try:
        yield
    finally:
        if not keep:
            path.unlink(missing_ok=True)
        os.close(fd)


def try_lock(fd: int) -> bool:
    """Takes the lock of an open file or directory unless another has it. Held until every copy of `fd` is closed."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def remove_if_free(path: Path) -> None:
    """Removes a file of no further use, unless a living process holds its lock."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if try_lock(fd) and _is_still(path, fd):
            path.unlink(missing_ok=True)
    finally:
        os.close(fd)


def open_to_lock(path: Path) -> int | None:
    """A descriptor of a file or directory; None when it is gone, or is what RIK never made. Raises OSError."""
    try:
        return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENXIO):  # the latter two: a symbolic link, a socket
            return None
        raise


def is_locked(path: Path) -> bool:
    """Whether a living process holds the lock of this file or directory; False when it is gone. Raises OSError."""
    fd = open_to_lock(path)
    if fd is None:
        return False
    try:
        return not try_lock(fd)
    finally:
        os.close(fd)


def _is_still(path: Path, fd: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(fd))
    except FileNotFoundError:
        return False

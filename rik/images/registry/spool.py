"""One blob on its way: an unlinked file that one task fills and any number read while it grows.

The file has no name, so a process that dies leaves nothing; hashing, writing and reading are done in threads.
"""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import trio

from rik.images.errors import ImageError, ImageInvalid, ImagePullFailed
from rik.images.registry.attempts import TransientFailure
from rik.images.source import Digest

# Large enough that a thread's round trip (110 µs) does not count.
BATCH_BYTES = 1 << 20
# A reader that has waited so long takes what has come, though it is less than a batch.
LONGEST_WAIT_S = 0.25
# What a file system without unnamed files answers, and a kernel that has never heard of them (EISDIR).
_NO_UNNAMED_FILES = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL)


class Spool:
    """`total` bytes whose digest is `digest`; `what` begins messages. Nothing is opened before `open`.

    One task at a time appends; when it goes, another may go on from `received`. The last one closes.
    """

    def __init__(self, directory: Path, total: int, digest: str, what: str) -> None:
        self.total = total
        self.size = 0
        self.finished = False
        self.error: ImageError | None = None
        self._directory = directory
        self._what = what
        self._digest = Digest(digest)
        self._batch = bytearray()
        self._fd = -1
        self._readers = trio.lowlevel.ParkingLot()

    @property
    def received(self) -> int:
        """How many bytes have been appended; `size` of them are on the disk."""
        return self.size + len(self._batch)

    async def open(self) -> None:
        """Makes the file unless it is there. Raises ImagePullFailed, which ends the spool."""
        if self._fd < 0:
            try:
                self._fd = await trio.to_thread.run_sync(_unnamed_file, self._directory)
            except OSError as error:
                raise self._not_kept(error) from error

    async def append(self, data: bytes) -> None:
        """More bytes, on the disk once there is a batch of them. Raises ImageInvalid when there are more than stated
        and ImagePullFailed when the disk does not take them: either ends the spool."""
        if self.received + len(data) > self.total:
            raise self._fail(ImageInvalid(f"{self._what} has more than the {self.total:,} bytes that are stated"))
        rest = memoryview(data)
        while rest:
            room = BATCH_BYTES - len(self._batch)
            self._batch += rest[:room]
            rest = rest[room:]
            if len(self._batch) == BATCH_BYTES:
                await self._write()

    async def finish(self) -> None:
        """The body has ended. Raises TransientFailure when bytes are missing, and ImageInvalid, which ends the spool,
        when they are others than stated."""
        if self._batch:
            await self._write()
        if self.size < self.total:
            raise TransientFailure(f"the body ended after {self.size:,} of {self.total:,} bytes")
        try:
            self._digest.check(self._what)
        except ImageInvalid as error:
            raise self._fail(error) from None
        self.finished = True
        self._readers.unpark_all()

    async def wait_beyond(self, offset: int) -> None:
        """Until there are bytes to read beyond `offset`, or all is there and right. Raises the ImageError that ended
        the spool."""
        while self.error is None and not self.finished and self.size <= offset:
            with trio.move_on_after(LONGEST_WAIT_S) as wait:
                await self._readers.park()
            if wait.cancelled_caught and self.received > offset:
                break
        if self.error is not None:
            raise type(self.error)(self.error.message, next_step=self.error.next_step)

    async def read(self, offset: int, count: int) -> bytes:
        """At most `count` bytes from `offset` on, none at the end of what there is. Raises ImagePullFailed."""
        if offset >= self.size:
            return bytes(self._batch[offset - self.size :][:count])
        try:
            return await trio.to_thread.run_sync(os.pread, self._fd, min(count, self.size - offset), offset)
        except OSError as error:
            message = f"{self._what} cannot be read in {self._directory}: {error.strerror or error}"
            raise ImagePullFailed(message) from error

    async def close(self) -> None:
        """Nobody reads or appends any more. Freeing the blocks of a large file takes long: in a thread too."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(os.close, fd)

    async def _write(self) -> None:
        try:
            await trio.to_thread.run_sync(self._write_batch)
        except OSError as error:
            raise self._not_kept(error) from error
        # Not before: when this was cancelled before the thread began, the batch is still to be written.
        self.size += len(self._batch)
        self._batch.clear()
        self._readers.unpark_all()

    def _write_batch(self) -> None:
        batch, done = memoryview(self._batch), 0
        try:
            while done < len(batch):
                done += os.pwrite(self._fd, batch[done:], self.size + done)
            self._digest.update(batch)
        finally:
            batch.release()

    def _not_kept(self, error: OSError) -> ImageError:
        return self._fail(
            ImagePullFailed(f"{self._what} cannot be kept in {self._directory}: {error.strerror or error}")
        )

    def _fail(self, error: ImageError) -> ImageError:
        self.error = error
        self._readers.unpark_all()
        return error


def _unnamed_file(directory: Path) -> int:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in _NO_UNNAMED_FILES:
            raise
    fd, name = tempfile.mkstemp(dir=directory)
    os.unlink(name)
    return fd

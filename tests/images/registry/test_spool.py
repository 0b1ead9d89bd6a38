"""The unlinked file that a blob is received into: read while it grows, verified at its end."""

from __future__ import annotations

import errno
import hashlib
import os
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trio.testing

from rik.images.errors import ImageInvalid, ImagePullFailed
from rik.images.registry.attempts import TransientFailure
from rik.images.registry.spool import BATCH_BYTES, Spool

DATA = random.Random(3).randbytes(3 * BATCH_BYTES + 12345)


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@pytest.fixture
async def spool(tmp_path: Path) -> AsyncIterator[Spool]:
    made = Spool(tmp_path / "downloads", len(DATA), digest(DATA), "the layer")
    await made.open()
    yield made
    await made.close()


async def read_all(spool: Spool) -> bytes:
    data = bytearray()
    while True:
        await spool.wait_beyond(len(data))
        piece = await spool.read(len(data), BATCH_BYTES)
        if not piece:
            return bytes(data)
        data += piece


@pytest.mark.parametrize("piece", [997, 65536, BATCH_BYTES, len(DATA)])
async def test_read_while_it_grows(spool: Spool, piece: int) -> None:
    """Readers that come early and late get the same bytes as were appended, whatever the pieces."""
    found = []

    async def read() -> None:
        found.append(await read_all(spool))

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            for start in range(0, len(DATA), piece):
                await spool.append(DATA[start : start + piece])
                assert spool.received == min(len(DATA), start + piece)
            nursery.start_soon(read)
            assert not spool.finished
            await spool.finish()
        await read()
    assert found == [DATA] * 3


async def test_readers_are_not_kept_waiting_for_a_batch(spool: Spool) -> None:
    """Of a slow download a reader sees what has come, though it is less than a batch."""
    await spool.append(b"some")
    assert (spool.size, spool.received) == (0, 4)
    with trio.fail_after(5):
        await spool.wait_beyond(0)
        assert await spool.read(0, 100) == b"some"
        await spool.append(b"more")
        await spool.wait_beyond(4)
    assert await spool.read(4, 2) == b"mo"


async def test_it_has_no_name(spool: Spool) -> None:
    """Nothing is in the directory while a spool is in use, nor after it."""
    await spool.append(DATA)
    assert os.listdir(spool._directory) == []
    assert os.fstat(spool._fd).st_nlink == 0


async def test_file_system_without_unnamed_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no file can be made without a name it loses its name at once."""
    original = os.open

    def refusing(path: object, flags: int, *args: int, **kwargs: object) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP), path)
        return original(path, flags, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", refusing)
    spool = Spool(tmp_path, len(DATA), digest(DATA), "the layer")
    await spool.open()
    assert os.listdir(tmp_path) == []
    await spool.append(DATA)
    await spool.finish()
    assert await read_all(spool) == DATA
    await spool.close()


async def test_wrong_digest(spool: Spool) -> None:
    """Other bytes than stated: ImageInvalid for the one who appends and for everybody who reads."""
    await spool.append(DATA[:-1] + b"?")
    with pytest.raises(ImageInvalid, match=r"the layer is not what it says it is: its digest is sha256:.*, stated is"):
        await spool.finish()
    with pytest.raises(ImageInvalid, match="not what it says it is"):
        await read_all(spool)


async def test_more_than_stated(spool: Spool) -> None:
    """Bytes beyond the stated size are never kept."""
    await spool.append(DATA)
    with pytest.raises(ImageInvalid, match=f"the layer has more than the {len(DATA):,} bytes that are stated"):
        await spool.append(b"?")
    with pytest.raises(ImageInvalid, match="more than"):
        await spool.wait_beyond(0)


async def test_fewer_than_stated(spool: Spool) -> None:
    """A body that ends too soon may go on later: nothing is lost, and readers wait on."""
    await spool.append(DATA[:1000])
    with pytest.raises(TransientFailure, match=f"the body ended after 1,000 of {len(DATA):,} bytes"):
        await spool.finish()
    await spool.append(DATA[1000:])
    await spool.finish()
    assert await read_all(spool) == DATA


async def test_waiting_readers_hear_of_a_failure(spool: Spool) -> None:
    """A reader that waits for more is told the error that ends the spool."""

    async def read() -> None:
        with pytest.raises(ImageInvalid, match="more than"):
            await spool.wait_beyond(0)

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(ImageInvalid):
                await spool.append(DATA + b"?")


async def test_cancelled_append_loses_nothing(spool: Spool) -> None:
    """What an append that was cancelled has taken is counted, and the next one goes on after it."""
    for start in range(0, BATCH_BYTES - 1000, 1000):
        await spool.append(DATA[start : start + 1000])
    with trio.CancelScope() as scope:
        scope.cancel()
        await spool.append(DATA[spool.received : spool.received + 1_500_000])
    assert scope.cancelled_caught
    assert 0 < spool.received < 1_500_000
    await spool.append(DATA[spool.received :])
    await spool.finish()
    assert await read_all(spool) == DATA


async def test_full_disk(small_disk: Path) -> None:
    """A full disk ends the spool with the directory and the cause."""
    spool = Spool(small_disk / "downloads", len(DATA), digest(DATA), "the layer")
    await spool.open()
    message = f"the layer cannot be kept in {small_disk}/downloads: No space left on device"
    with pytest.raises(ImagePullFailed, match=message):
        await spool.append(DATA)
    with pytest.raises(ImagePullFailed, match=message):
        await spool.wait_beyond(0)
    await spool.close()
    assert os.statvfs(small_disk).f_bfree == os.statvfs(small_disk).f_blocks


async def test_unusable_directory(tmp_path: Path) -> None:
    """A directory that cannot be is named, with the cause."""
    (tmp_path / "file").write_text("")
    spool = Spool(tmp_path / "file" / "downloads", 1, digest(b"1"), "the layer")
    with pytest.raises(ImagePullFailed, match=r"cannot be kept in .*/file/downloads: Not a directory"):
        await spool.open()
    await spool.close()


async def test_closing(tmp_path: Path) -> None:
    """Closing gives the descriptor back, also under cancellation, and does no harm when nothing is open."""
    before = os.listdir("/proc/self/fd")
    spool = Spool(tmp_path, len(DATA), digest(DATA), "the layer")
    await spool.close()
    await spool.open()
    await spool.append(DATA)
    with trio.CancelScope() as scope:
        scope.cancel()
        await spool.close()
    await spool.close()
    assert os.listdir("/proc/self/fd") == before

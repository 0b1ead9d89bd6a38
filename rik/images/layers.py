"""Unpacked layers: each whole wherever its name is seen, made once however many want it.

    layers/<key>/fs/            the layer's files
    layers/<key>/layer.json     its sizes, and what could not be kept
    layers/tmp-<host>-<pid>-…/  one that is being made or taken away; who does so (the unpacking child, too) locks it
    layers/<key>.lock           held while that layer is made, by whichever process does it

A layer is synced to disk before the rename that makes it visible: a crash at any point leaves whole layers and `tmp-*`.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, aclosing, asynccontextmanager, contextmanager
from pathlib import Path

import msgspec
import trio

from rik.images.confined import Owners
from rik.images.documents import read_document, sync_directory, write_document
from rik.images.errors import ImageInvalid, keeping
from rik.images.locks import Gate, exclusive, is_locked, open_to_lock, try_lock
from rik.images.slot import Slot
from rik.images.source import Layer, Source
from rik.images.unpack import Limits, Unpacked, remove_tree, unpack

CLEANUP_DEADLINE_S = 60.0
# Unpacking takes a processor and a half: more at once only fills the memory. Those that wait for bytes do not count.
UNPACK_AT_ONCE = 4
_TEMPORARY = "tmp-"
_KEY = re.compile(r"([0-9a-f]{64}){1,2}(-[0-9a-f]{8})?")


class Wanted(msgspec.Struct, frozen=True):
    """One layer of an image: `keys` are those of the layers up to this one, lowest first; `where` names the image."""

    source: Source
    layer: Layer
    diff_id: str
    keys: tuple[str, ...]
    where: str

    @property
    def key(self) -> str:
        return self.keys[-1]

    @property
    def what(self) -> str:
        return f"{self.where}: the layer {self.layer.name}"


class _Making:
    """One layer being made, and everybody in this process who waits for it."""

    def __init__(self) -> None:
        self.lock = trio.Lock()
        self.listeners: list[Callable[[int], None]] = []


class Layers:
    """The layers below `directory`; `gate` is the store's lock, `suffix` the mark of this RIK's id map in keys."""

    def __init__(self, directory: Path, host_id: str, owners: Owners, gate: Gate, suffix: str) -> None:
        self.directory = directory / "layers"
        self._prefix = f"{_TEMPORARY}{host_id}-{os.getpid()}-"
        self._owners = owners
        self._gate = gate
        self._suffix = suffix
        self._making: dict[str, _Making] = {}
        self._slots = trio.CapacityLimiter(UNPACK_AT_ONCE)

    def key(self, chain_id: str) -> str:
        """Of the layer with that chain id (hex)."""
        return chain_id + self._suffix

    def path(self, key: str) -> Path:
        """Where its files are."""
        return self.directory / key / "fs"

    def are_here(self, keys: Sequence[str]) -> bool:
        """All of them."""
        return all(self.path(key).is_dir() for key in keys)

    def note(self, key: str) -> Unpacked | None:
        """What became of it; None when it is not here, or damaged. Raises OSError."""
        if not self.path(key).is_dir():  # a stranger's `rm -r` may end halfway
            return None
        return read_document(self.directory / key / "layer.json", Unpacked)

    def made_at(self, key: str) -> int:
        """In ms; 0 when it is not here."""
        try:
            return os.lstat(self.directory / key / "layer.json").st_mtime_ns // 1_000_000
        except (FileNotFoundError, NotADirectoryError):
            return 0

    def all(self) -> list[str]:
        """The keys of this id map's layers that are here."""
        return [path.name for path in self._paths() if self._is_own(path.name) and (path / "fs").is_dir()]

    async def bring(self, wanted: Wanted, limits: Limits, listen: Callable[[int], None]) -> Unpacked:
        """The layer, which is made when it is not here. `listen` is told how many of its bytes have been read, by
        whoever makes it. Raises ImageError, with nothing half-made left behind."""
        making = self._making.setdefault(wanted.key, _Making())
        making.listeners.append(listen)
        try:
            with keeping(wanted.what):
                async with making.lock:
                    # Another pull may have failed to make it, by the fault of its source: this one has its own.
                    there = await trio.to_thread.run_sync(self.note, wanted.key)
                    return there if there is not None else await self._make(wanted, limits, making)
        finally:
            making.listeners.remove(listen)
            if not making.listeners:
                del self._making[wanted.key]

    @contextmanager
    def hidden(self, keys: Sequence[str]) -> Iterator[list[Path]]:
        """Takes these layers out of sight, for the body to remove their trees. Enter it under the store's lock; killed
        in between, it leaves what a sweep removes. Raises OSError."""
        paths: list[Path] = []
        locks: list[int] = []
        try:
            for key in keys:
                path = self._temporary_name()
                fd = os.open(self.directory / key, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
                locks.append(fd)
                try_lock(fd)  # before a sweep can see it; nobody holds that of a layer
                os.rename(self.directory / key, path)
                paths.append(path)
            yield paths
        finally:
            for fd in locks:
                os.close(fd)

    @contextmanager
    def abandoned(self) -> Iterator[list[Path]]:
        """Half-made directories that nobody works on, for the body to remove. Enter it under the store's lock."""
        paths: list[Path] = []
        locks: list[int] = []
        try:
            for path in self._paths():
                if path.name.startswith(_TEMPORARY) and (fd := open_to_lock(path)) is not None:
                    locks.append(fd)
                    if try_lock(fd):
                        paths.append(path)
            yield paths
        finally:
            for fd in locks:
                os.close(fd)

    def half_made(self) -> list[tuple[Path, bool]]:
        """Directories of layers that are being made or taken away, and whether anybody still does. Call it under the
        store's lock."""
        found = [(path, is_locked(path)) for path in self._paths() if path.name.startswith(_TEMPORARY)]
        return [(path, alive) for path, alive in found if alive or os.path.lexists(path)]

    def strangers(self) -> list[Path]:
        """What is nothing that RIK makes here."""
        return [
            path
            for path in self._paths()
            if not path.name.startswith(_TEMPORARY) and path.suffix != ".lock" and not _KEY.fullmatch(path.name)
        ]

    def lock_files(self) -> list[Path]:
        return [path for path in self._paths() if path.suffix == ".lock"]

    async def _make(self, wanted: Wanted, limits: Limits, making: _Making) -> Unpacked:
        done = 0

        def read(count: int) -> None:
            nonlocal done
            done += count
            for listener in list(making.listeners):
                listener(done)

        async with exclusive(self.directory / f"{wanted.key}.lock"):
            there = await trio.to_thread.run_sync(self.note, wanted.key)
            if there is not None:
                return there  # another process was faster
            async with wanted.source.open_layer(wanted.layer) as chunks:
                # A child that waits for the first byte of a slow registry would only take memory.
                first = await anext(chunks, b"")
                async with (
                    Slot(self._slots) as slot,
                    self._temporary() as (folder, lock_fd),
                    aclosing(slot.fed(first, chunks)) as all_chunks,
                ):
                    made = await self._unpack(wanted, all_chunks, limits, folder, lock_fd, read)
                    await trio.to_thread.run_sync(_commit, folder, self.directory / wanted.key, made)
                    return made

    async def _unpack(
        self,
        wanted: Wanted,
        chunks: AsyncIterator[bytes],
        limits: Limits,
        folder: Path,
        lock_fd: int,
        read: Callable[[int], None],
    ) -> Unpacked:
        target = folder / "fs"
        target.mkdir(mode=0o755)
        made = await unpack(
            chunks,
            target,
            [self.path(key) for key in wanted.keys[-2::-1]],  # highest first, as overlays are mounted
            self._owners,
            limits,
            wanted.what,
            algorithm=wanted.diff_id.partition(":")[0],
            read=read,
            lock_fd=lock_fd,
        )
        if made.diff_id != wanted.diff_id:
            raise ImageInvalid(f"{wanted.what} unpacks to {made.diff_id}; the image's config says {wanted.diff_id}")
        return made

    @asynccontextmanager
    async def _temporary(self) -> AsyncIterator[tuple[Path, int]]:
        """A new directory whose lock is held; removed again unless it was renamed."""
        path = self._temporary_name()
        with ExitStack() as stack:
            try:
                async with self._gate.held():
                    fd = await trio.to_thread.run_sync(_make_locked, path)
                    stack.callback(os.close, fd)
                yield path, fd
            finally:
                with trio.move_on_after(CLEANUP_DEADLINE_S, shield=True):
                    await remove_tree(path, self._owners)

    def _temporary_name(self) -> Path:
        return self.directory / (self._prefix + secrets.token_hex(4))

    def _paths(self) -> list[Path]:
        return sorted(self.directory.glob("*"))

    def _is_own(self, name: str) -> bool:
        return _KEY.fullmatch(name) is not None and (name.endswith(self._suffix) if self._suffix else "-" not in name)


def _make_locked(path: Path) -> int:
    """A new directory and its lock. Call it under the store's lock: nobody sees the one without the other."""
    path.mkdir(mode=0o700)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try_lock(fd)
    return fd


def _commit(folder: Path, final: Path, note: Unpacked) -> None:
    """Makes a finished layer visible under its name, durably, in place of one whose note was damaged."""
    write_document(folder / "layer.json", note, durably=True)
    if final.exists():
        os.rename(final, folder.with_name(f"{folder.name}-damaged"))  # for the next sweep
    os.rename(folder, final)
    sync_directory(final.parent)

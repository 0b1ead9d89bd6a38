"""The images of this host: every layer unpacked once, shared by all that want it.

    <data>/images/
      layers/<key>/fs/            one unpacked layer, complete whenever it is there
      layers/<key>/layer.json     its sizes, and what could not be kept
      layers/tmp-<host>-<pid>-…/  one that is being made; its maker (and the unpacking child) holds the directory's lock
      layers/<key>.lock           held while that layer is made, by whichever process does it
      records/<digest>.json       an image whose layers were all there once, with its config
      lock                        held for moments: making a temporary directory, sweeping

`key` is the layer's chain id (it with all below it), and a mark of the id map when owners are not the true ones.
A layer is synced to disk before the rename that makes it visible: a crash at any point leaves whole layers and `tmp-*`.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import trio

from rik.images.confined import Owners
from rik.images.errors import ImageError, ImageInvalid, ImagePullFailed
from rik.images.locks import exclusive, is_locked, remove_if_free, try_lock
from rik.images.manifest import ImageConfig, Platform, chain_ids, read_config, this_platform
from rik.images.opening import open_source
from rik.images.pruning import Pruned, StoredImage
from rik.images.reference import Reference, familiar, parse_reference
from rik.images.registry.registries import Registries
from rik.images.source import Layer, Source
from rik.images.unpack import Limits, Unpacked, check_totals, remove_tree, unpack
from rik.linux.idmap import IdMap, Unavailable
from rik.model.instance import ImageUse, Progress
from rik.model.node import HostResource
from rik.settings import ImageSettings

CLEANUP_DEADLINE_S = 60.0
# Unpacking takes a processor and a half: more at once only fills the memory.
UNPACK_AT_ONCE = 4
_TEMPORARY = "tmp-"

ReportProgress = Callable[[Progress], None]


class Image(msgspec.Struct, frozen=True):
    """An image that is on the disk. `layers` are the directories to stack, lowest first; `size_bytes` is that of
    their files. The rest is as in `ImageUse`."""

    reference: str
    digest: str
    config: ImageConfig
    layers: tuple[Path, ...]
    size_bytes: int
    origin: str = ""
    cached: bool = False
    pulled_layers: int = 0
    pulled_bytes: int = 0
    seconds: float = 0.0
    pulled_at: int = 0
    dropped: dict[str, int] = {}

    def use(self, *containers: str) -> ImageUse:
        """What an instance's record says of it."""
        return ImageUse(
            reference=familiar(parse_reference(self.reference)),
            digest=self.digest,
            containers=containers,
            origin=self.origin,
            cached=self.cached,
            layers=len(self.layers),
            pulled_layers=self.pulled_layers,
            pulled_bytes=self.pulled_bytes,
            size_bytes=self.size_bytes,
            seconds=self.seconds,
            pulled_at=self.pulled_at,
            exposed_ports=self.config.exposed_ports,
            dropped=self.dropped,
        )


class _Record(msgspec.Struct, frozen=True):
    digest: str
    config: ImageConfig
    keys: tuple[str, ...]
    size_bytes: int


class _Wanted(msgspec.Struct, frozen=True):
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
    def below(self) -> tuple[str, ...]:
        """Highest first, as overlays are mounted."""
        return self.keys[-2::-1]

    @property
    def what(self) -> str:
        return f"{self.where}: the layer {self.layer.name}"


class _Flight:
    """One layer being made, and everybody in this process who waits for it."""

    def __init__(self) -> None:
        self.lock = trio.Lock()
        self.listeners: list[Callable[[int], None]] = []
        self.error: ImageError | None = None


class ImageStore:
    """The images below `directory`, which is this host's own and private (mode 0700).

    `idmap` is what pods get (`rik.linux.idmap.detect()`): it decides which owners files have on disk. `allow_dirs`
    None lets images be read from anywhere. Several processes may use one directory.
    """

    def __init__(
        self,
        directory: Path,
        host_id: str,
        idmap: IdMap | Unavailable,
        *,
        allow_dirs: Sequence[Path] | None = None,
        limits: Limits | None = None,
        platform: Platform | None = None,
        settings: ImageSettings | None = None,
    ) -> None:
        self.directory = directory
        self._layers = directory / "layers"
        self._records = directory / "records"
        self._prefix = f"{_TEMPORARY}{host_id}-{os.getpid()}-"
        self._owners = Owners(idmap, os.geteuid())
        self._suffix = f"-{self._owners.key}" if self._owners.key else ""
        self._allow_dirs = allow_dirs
        self._limits = limits or Limits()
        self._platform = platform or this_platform()
        self._registries = Registries(settings or ImageSettings(), directory / "downloads")
        self._flights: dict[str, _Flight] = {}
        self._unpacking = trio.CapacityLimiter(UNPACK_AT_ONCE)

    async def ensure(
        self,
        reference: Reference,
        progress: ReportProgress = lambda progress: None,
        *,
        holder: str = "",
        refresh: bool = False,
    ) -> Image:
        """The image with all its layers on disk; what is missing is fetched, once however many ask.

        `holder` is an instance's uid: until `release(holder)` nothing of it is pruned ("": until this returns). With
        `refresh` its source is asked whatever is here already. `progress` is called for every piece read.

        Raises ImageError, with nothing half-made left behind; a cancelled call leaves nothing either, and another one
        that waits for the same layer goes on with it. `host` is no image (ValueError).
        """
        source = await open_source(reference, self._platform, self._allow_dirs, self._registries)
        resolved = await source.resolve()
        where = str(reference)
        found = await trio.to_thread.run_sync(self._find, resolved.digest)
        if found is not None:
            return self._image(reference, found)
        config, diff_ids = read_config(resolved.config, self._platform, len(resolved.layers), f"{where}: its config")
        if not resolved.layers:
            raise ImageInvalid(f"{where} has no layers: there is nothing in it that could run")
        keys = tuple(chain + self._suffix for chain in chain_ids(diff_ids))
        total = sum(layer.size for layer in resolved.layers)
        done = 0
        unpacked: list[Unpacked] = []
        for index, layer in enumerate(resolved.layers):

            def listen(count: int, before: int = done) -> None:
                progress(Progress(source.step, before + count, total, "bytes"))

            listen(0)
            limits = check_totals(unpacked, self._limits, where)
            wanted = _Wanted(source, layer, diff_ids[index], keys[: index + 1], where)
            made = await self._layer(wanted, limits, listen)
            unpacked.append(made)
            done += layer.size
        check_totals(unpacked, self._limits, where)
        record = _Record(resolved.digest, config, keys, sum(layer.bytes for layer in unpacked))
        try:
            await trio.to_thread.run_sync(_write_durably, self._record_path(record.digest), msgspec.json.encode(record))
        except OSError as error:
            raise ImagePullFailed(f"{where} cannot be kept: {error.strerror or error}") from error
        progress(Progress(source.step, total, total, "bytes"))
        return self._image(reference, record)

    async def release(self, holder: str) -> None:
        """That instance needs its images no longer."""

    async def list_images(self) -> list[StoredImage]:
        """Every image whose layers are all here, the last used first."""
        return []

    async def size_bytes(self) -> int:
        """What all layers take, each counted once."""
        return 0

    async def prune(self, unused_s: float = 0.0, *, cache_bytes: int = 0, dry_run: bool = False) -> Pruned:
        """Removes images that nothing uses, and has not for `unused_s`. With `cache_bytes` also the least recently used
        ones until all layers together take no more. With neither: every unused image. With `dry_run` only says which.
        Raises OSError."""
        return Pruned((), 0, 0, 0)

    async def inventory(self) -> list[HostResource]:
        """Every layer and record as a file of RIK's own; what is half-made and no longer worked on has no owner."""
        return await trio.to_thread.run_sync(self._inventory)

    async def sweep(self, owned: frozenset[str] | None = None) -> list[HostResource]:
        """Removes what is half-made and no longer worked on, and what instances that are not in `owned` held (None: all
        of them may live), and returns it. Call it at start. Raises OSError."""
        if not self._layers.is_dir():
            return []
        removed = []
        async with exclusive(self.directory / "lock", keep=True):
            for path in sorted(self._layers.glob(f"{_TEMPORARY}*")):
                if not await trio.to_thread.run_sync(is_locked, path):
                    await remove_tree(path, self._owners)
                    removed.append(_resource(path, "", "half-made layer"))
        for path in (*self._layers.glob("*.lock"), *self._records.glob("*.new")):
            await trio.to_thread.run_sync(remove_if_free, path)
        return removed

    async def remove_tree(self, path: Path) -> None:
        """Removes files that pods or images have left, whose owners this process may not be. Raises OSError."""
        await remove_tree(path, self._owners)

    # -- one layer -----------------------------------------------------------------------------------------------------

    async def _layer(self, wanted: _Wanted, limits: Limits, listen: Callable[[int], None]) -> Unpacked:
        key = wanted.key
        flight = self._flights.setdefault(key, _Flight())
        flight.listeners.append(listen)
        try:
            async with flight.lock:
                if flight.error is not None:
                    raise type(flight.error)(flight.error.message, next_step=flight.error.next_step)
                there = await trio.to_thread.run_sync(self._unpacked, key)
                if there is not None:
                    return there
                try:
                    return await self._make(wanted, limits, flight)
                except ImageError as error:
                    flight.error = error
                    raise
        finally:
            flight.listeners.remove(listen)
            if (flight.error is not None or not flight.listeners) and self._flights.get(key) is flight:
                del self._flights[key]

    async def _make(self, wanted: _Wanted, limits: Limits, flight: _Flight) -> Unpacked:
        what, diff_id, key = wanted.what, wanted.diff_id, wanted.key
        done = 0

        def read(count: int) -> None:
            nonlocal done
            done += count
            for listener in list(flight.listeners):
                listener(done)

        lower = [self._layers / name / "fs" for name in wanted.below]
        try:
            for folder in (self.directory, self._layers, self._records):
                folder.mkdir(mode=0o700, exist_ok=True)
            async with exclusive(self._layers / f"{key}.lock"):
                there = await trio.to_thread.run_sync(self._unpacked, key)
                if there is not None:
                    return there  # another process was faster
                async with self._temporary() as (folder, lock_fd):
                    target = folder / "fs"
                    target.mkdir(mode=0o755)
                    async with self._unpacking, wanted.source.open_layer(wanted.layer) as chunks:
                        made = await unpack(
                            chunks,
                            target,
                            lower,
                            self._owners,
                            limits,
                            what,
                            algorithm=diff_id.partition(":")[0],
                            read=read,
                            lock_fd=lock_fd,
                        )
                    if made.diff_id != diff_id:
                        raise ImageInvalid(f"{what} unpacks to {made.diff_id}; the image's config says {diff_id}")
                    await trio.to_thread.run_sync(_commit, folder, self._layers / key, msgspec.json.encode(made))
                    return made
        except OSError as error:
            raise ImagePullFailed(f"{what} cannot be kept: {error.strerror or error} ({error.filename})") from error

    @asynccontextmanager
    async def _temporary(self) -> AsyncIterator[tuple[Path, int]]:
        """A new directory whose lock is held; removed again unless it was renamed."""
        # No sweep sees it between being made and being locked.
        async with exclusive(self.directory / "lock", keep=True):
            path = self._layers / (self._prefix + secrets.token_hex(4))
            path.mkdir(mode=0o700)
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            while not try_lock(fd):
                await trio.sleep(0.001)  # an inventory is just looking whether anybody holds it
        try:
            yield path, fd
        finally:
            with trio.move_on_after(CLEANUP_DEADLINE_S, shield=True):
                await remove_tree(path, self._owners)
            os.close(fd)

    # -- what is on the disk -------------------------------------------------------------------------------------------

    def _unpacked(self, key: str) -> Unpacked | None:
        try:
            return msgspec.json.decode((self._layers / key / "layer.json").read_bytes(), type=Unpacked)
        except (FileNotFoundError, msgspec.DecodeError):
            return None

    def _find(self, digest: str) -> _Record | None:
        try:
            record = msgspec.json.decode(self._record_path(digest).read_bytes(), type=_Record)
        except (FileNotFoundError, msgspec.DecodeError):
            return None
        return record if all((self._layers / key / "fs").is_dir() for key in record.keys) else None

    def _record_path(self, digest: str) -> Path:
        return self._records / f"{digest.replace(':', '-')}{self._suffix}.json"

    def _image(self, reference: Reference, record: _Record) -> Image:
        layers = tuple(self._layers / key / "fs" for key in record.keys)
        return Image(str(reference), record.digest, record.config, layers, record.size_bytes)

    def _inventory(self) -> list[HostResource]:
        found = [_resource(path, "rik", "image") for path in sorted(self._records.glob("*.json"))]
        for path in sorted(self._layers.glob("*")):
            if path.name.startswith(_TEMPORARY):
                found.append(_resource(path, "rik" if is_locked(path) else "", "half-made layer"))
            elif (path / "layer.json").is_file():
                found.append(_resource(path, "rik", "layer"))
            elif path.suffix != ".lock":
                found.append(_resource(path, "", "not of the layer store"))
        return found


def _resource(path: Path, owner: str, detail: str) -> HostResource:
    return HostResource("file", str(path), owner, detail)


def _commit(folder: Path, final: Path, note: bytes) -> None:
    """Makes a finished layer visible under its name, durably, in place of one whose note was damaged."""
    _write_durably(folder / "layer.json", note)
    if final.exists():
        os.rename(final, folder.with_name(f"{folder.name}-damaged"))  # for the next sweep
    os.rename(folder, final)
    _sync_directory(final.parent)


def _write_durably(path: Path, data: bytes) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.new")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

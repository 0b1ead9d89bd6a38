"""The images of this host: every layer unpacked once, shared by all that want it.

    <data>/images/
      layers/                  unpacked layers (`rik.images.layers`)
      records/, references/    what is known of images (`rik.images.catalog`)
      leases/                  who needs which (`rik.images.leases`)
      downloads/               layers on their way from a registry: files without a name, so that it seems empty
      lock                     held for moments: looking whether layers are here, making a temporary directory, pruning

A layer's key is its chain id (it with all below it), and a mark of the id map when owners are not the true ones.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

import msgspec
import trio

from rik.images.catalog import Catalog, Pointer, Pull, Record, short
from rik.images.confined import Owners
from rik.images.errors import ImageError, ImageInvalid, ImagePullFailed, ImageSpoilt
from rik.images.flights import Flights, ReportProgress
from rik.images.housekeeping import Housekeeping
from rik.images.layers import Layers, Wanted
from rik.images.leases import Leases
from rik.images.locks import Gate
from rik.images.manifest import ImageConfig, Platform, chain_ids, read_config, this_platform
from rik.images.opening import open_source
from rik.images.pruning import Pruned, StoredImage
from rik.images.reference import HostReference, Reference, RegistryReference
from rik.images.registry.registries import Registries
from rik.images.source import Resolved, Source
from rik.images.tally import Tally
from rik.images.unpack import Limits, Unpacked, check_totals, remove_tree
from rik.linux.idmap import IdMap, Unavailable
from rik.model.instance import ImageUse
from rik.model.node import HostResource
from rik.settings import ImageSettings

# An image may be pruned between being found and being held; more often than this it is not by chance.
_TRIES = 5
_FULL = (errno.ENOSPC, errno.EDQUOT)
_MAKE_ROOM = "make room: `rik image prune` removes images that nothing uses"


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
            reference=short(self.reference),
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


class _Found(msgspec.Struct, frozen=True):
    """Where a reference leads; `cached` says that the image was here already."""

    digest: str
    origin: str
    cached: bool


class _Plan(msgspec.Struct, frozen=True):
    """A pull: the image `where`, its layers' digests and keys, lowest first, and the numbers of those not here."""

    where: str
    source: Source
    resolved: Resolved
    config: ImageConfig
    diff_ids: tuple[str, ...]
    keys: tuple[str, ...]
    missing: frozenset[int] = frozenset()


class ImageStore:
    """The images below `directory`, which is this host's own and private (mode 0700).

    `idmap` is what pods get (`rik.linux.idmap.detect()`): it decides which owners files have on disk. `allow_dirs`
    None lets images be read from anywhere. Several processes may use one directory, also of several hosts (`host_id`).
    """

    def __init__(
        self,
        directory: Path,
        host_id: str,
        idmap: IdMap | Unavailable,
        *,
        allow_dirs: Sequence[Path] | None = None,
        platform: Platform | None = None,
        settings: ImageSettings | None = None,
    ) -> None:
        self.directory = directory
        self._owners = Owners(idmap, os.geteuid())
        self._suffix = f"-{self._owners.key}" if self._owners.key else ""
        self._allow_dirs = allow_dirs
        settings = settings or ImageSettings()
        self._limits = Limits.of(settings)
        self._registries = Registries(settings, directory / "downloads")
        self._platform = platform or this_platform()
        self._gate = Gate(directory / "lock")
        self._catalog = Catalog(directory, self._suffix)
        self._leases = Leases(directory, host_id)
        self._layers = Layers(directory, host_id, self._owners, self._gate, self._suffix)
        self._housekeeping = Housekeeping(self._catalog, self._layers, self._leases, self._gate, self._owners)
        self._flights: Flights[_Found] = Flights()

    async def ensure(
        self,
        reference: Reference,
        progress: ReportProgress = lambda progress: None,
        *,
        holder: str = "",
        refresh: bool = False,
    ) -> Image:
        """The image with all its layers on disk; what is missing is fetched, once however many ask, who all see the
        same `progress`. An image of a registry that is here is taken without asking; with `refresh` the registry is
        asked where a tag leads now, unless the reference has a digest. Files on this host are always looked at.

        `holder` is an instance's uid: until `release(holder)` nothing of it is pruned ("": until this returns).

        Raises ImageError: nothing half-made is left behind then, though layers that were complete stay until they are
        pruned. A cancelled call leaves as little; when others wait for the same, the pull goes on. `host` is no image
        (ValueError).
        """
        if isinstance(reference, HostReference):
            raise ValueError("`host` has no layers")
        where = str(reference)
        ask = not isinstance(reference, RegistryReference) or (refresh and reference.digest is None)
        with _explained(where):
            await trio.to_thread.run_sync(self._make_directories)
        spoilt: ImageSpoilt | None = None
        for _ in range(_TRIES):
            if not ask and (image := await self._take(reference, holder)) is not None:
                return image
            try:
                async with self._flights.join(where, partial(self._find_or_pull, reference), progress) as found:
                    if (image := await self._take(reference, holder, found)) is not None:
                        return image
            except ImageSpoilt as error:
                spoilt = error
        if spoilt is not None:
            raise spoilt
        raise ImagePullFailed(f"{where} was removed again whenever it was here")

    async def find(self, reference: Reference, *, holder: str = "") -> Image | None:
        """The image, held as by `ensure`, if it is here; its source is not asked. Raises ImagePullFailed."""
        with _explained(str(reference)):
            await trio.to_thread.run_sync(self._make_directories)
        return await self._take(reference, holder)

    async def release(self, holder: str) -> None:
        """That instance needs its images no longer. Raises OSError."""

        def release() -> None:
            for digest in self._leases.release(holder):
                self._catalog.touch(digest)

        await trio.to_thread.run_sync(release)

    async def list_images(self) -> list[StoredImage]:
        """Every image whose layers are all here, the last used first. Raises OSError."""
        return await self._housekeeping.images()

    async def size_bytes(self) -> int:
        """What all layers take, each counted once. Raises OSError."""
        return await self._housekeeping.size_bytes()

    async def prune(self, unused_s: float = 0.0, *, cache_bytes: int = 0, dry_run: bool = False) -> Pruned:
        """Removes images that nothing uses, and has not for `unused_s`. With `cache_bytes` also the least recently used
        ones until all layers together take no more. With neither: every unused image. With `dry_run` only says which.
        Layers that no image needs (of pulls that failed) count and go like images.

        Raises OSError when some of it could not be removed; that, and what a kill leaves, the next `sweep` removes.
        """
        return await self._housekeeping.prune(unused_s, cache_bytes, dry_run)

    async def inventory(self) -> list[HostResource]:
        """Every layer and what is known of images as files of RIK's own, leases as their holders'; what is half-made
        and no longer worked on has no owner. Raises OSError."""
        return await self._housekeeping.inventory()

    async def sweep(self, owned: frozenset[str] | None = None) -> list[HostResource]:
        """Removes what is half-made and no longer worked on, what is damaged, and what instances of this host that are
        not in `owned` held (None: all of them may live). Returns the layers and leases among it. Call it at start.
        Raises OSError."""
        return await self._housekeeping.sweep(owned)

    async def remove_tree(self, path: Path) -> None:
        """Removes files that pods or images have left, whose owners this process may not be. Raises OSError."""
        await remove_tree(path, self._owners)

    # -- what is here --------------------------------------------------------------------------------------------------

    async def _take(self, reference: Reference, holder: str, found: _Found | None = None) -> Image | None:
        """The image, if it is here, held by `holder` from now on. Raises ImagePullFailed."""
        where = str(reference)

        def claim() -> Image | None:
            here = found or self._known(reference)
            record = self._catalog.record(here.digest) if here is not None else None
            if here is None or record is None:
                return None
            lease = self._leases.hold(holder, record.digest, record.keys) if holder else None
            if not self._is_whole(record):
                if lease is not None:
                    lease.unlink(missing_ok=True)
                return None
            self._catalog.touch(record.digest)
            return self._image(where, record, here)

        with _explained(where):
            async with self._gate.held():
                return await trio.to_thread.run_sync(claim)

    def _known(self, reference: Reference) -> _Found | None:
        """Where the reference led the last time. With a digest it can lead nowhere else."""
        pointer = self._catalog.pointer(str(reference))
        if pointer is not None:
            return _Found(pointer.digest, pointer.origin, cached=True)
        if isinstance(reference, RegistryReference) and reference.digest is not None:
            return _Found(reference.digest, "", cached=True)
        return None

    def _is_whole(self, record: Record) -> bool:
        return all(self._layers.is_here(key) for key in record.keys)

    def _image(self, where: str, record: Record, found: _Found) -> Image:
        return Image(
            reference=where,
            digest=record.digest,
            config=record.config,
            layers=tuple(self._layers.path(key) for key in record.keys),
            size_bytes=record.size_bytes,
            origin=found.origin or record.pull.origin,
            cached=found.cached,
            pulled_layers=record.pull.layers,
            pulled_bytes=record.pull.bytes,
            seconds=record.pull.seconds,
            pulled_at=record.pull.at,
            dropped=record.dropped,
        )

    def _make_directories(self) -> None:
        folders = (self._layers.directory, self._catalog.records, self._catalog.references, self._leases.directory)
        for folder in (self.directory, *folders):
            folder.mkdir(mode=0o700, exist_ok=True)

    # -- a pull, which all who want the image share --------------------------------------------------------------------

    @asynccontextmanager
    async def _find_or_pull(self, reference: Reference, report: ReportProgress) -> AsyncIterator[_Found]:
        """While it is open, what was pulled is not pruned. Raises ImageError."""
        began, where = trio.current_time(), str(reference)
        source = await open_source(reference, self._platform, self._allow_dirs, self._registries)
        resolved = await source.resolve()
        origin = resolved.origin or where
        found = _Found(resolved.digest, origin, cached=True)
        with _explained(where):
            record = await trio.to_thread.run_sync(self._catalog.record, resolved.digest)
            if record is not None and await trio.to_thread.run_sync(self._is_whole, record):
                await self._note(None, Pointer(where, resolved.digest, origin))
                yield found
                return
        plan = self._plan(where, source, msgspec.structs.replace(resolved, origin=origin))
        with ExitStack() as stack:
            with _explained(where):
                async with self._gate.held():
                    await trio.to_thread.run_sync(stack.enter_context, self._leases.pulling(resolved.digest, plan.keys))
                plan = await trio.to_thread.run_sync(self._looked_up, plan)
            await self._pull(plan, report, began)
            yield msgspec.structs.replace(found, cached=False)

    def _plan(self, where: str, source: Source, resolved: Resolved) -> _Plan:
        config, diff_ids = read_config(resolved.config, self._platform, len(resolved.layers), f"{where}: its config")
        if not resolved.layers:
            raise ImageInvalid(f"{where} has no layers: there is nothing in it that could run")
        keys = tuple(chain + self._suffix for chain in chain_ids(diff_ids))
        return _Plan(where, source, resolved, config, diff_ids, keys)

    def _looked_up(self, plan: _Plan) -> _Plan:
        missing = [number for number, key in enumerate(plan.keys) if self._layers.note(key) is None]
        return msgspec.structs.replace(plan, missing=frozenset(missing))

    async def _pull(self, plan: _Plan, report: ReportProgress, began: float) -> None:
        layers = [plan.resolved.layers[number] for number in sorted(plan.missing)]
        tally = Tally(report, len(plan.keys), layers, began, remote=plan.source.step == "pull")
        try:
            async with tally.ticking():
                unpacked = await self._bring(plan, tally)
        except ImagePullFailed as error:
            message = "; ".join(filter(None, (error.message, tally.so_far())))
            raise ImagePullFailed(message, next_step=_advice(error)) from error
        dropped: dict[str, int] = {}
        for kind, count in (item for layer in unpacked for item in layer.dropped.items()):
            dropped[kind] = dropped.get(kind, 0) + count
        resolved = plan.resolved
        pull = Pull(resolved.origin, len(layers), tally.total, tally.seconds(), time.time_ns() // 1_000_000)
        size = sum(layer.bytes for layer in unpacked)
        with _explained(plan.where):
            await self._note(
                Record(resolved.digest, plan.config, plan.keys, size, dropped, pull),
                Pointer(plan.where, resolved.digest, resolved.origin),
            )

    async def _bring(self, plan: _Plan, tally: Tally) -> list[Unpacked]:
        """Every layer, lowest first: each needs those below it. Those that are missing are on their way meanwhile."""
        unpacked: list[Unpacked] = []
        layers = plan.resolved.layers
        async with plan.source.fetching([layers[number] for number in sorted(plan.missing)], tally.receive):
            for number, layer in enumerate(layers):
                limits = check_totals(unpacked, self._limits, plan.where)
                wanted = Wanted(plan.source, layer, plan.diff_ids[number], plan.keys[: number + 1], plan.where)
                unpacked.append(await self._layers.bring(wanted, limits, tally.reader(number, layer)))
                if number in plan.missing:
                    tally.completed(number, layer)
        check_totals(unpacked, self._limits, plan.where)
        return unpacked

    async def _note(self, record: Record | None, pointer: Pointer) -> None:
        """Under the store's lock, so that no sweep mistakes what is being written for remains."""

        def note() -> None:
            if record is not None:
                self._catalog.keep(record)
            self._catalog.point(pointer)

        async with self._gate.held():
            await trio.to_thread.run_sync(note)


@contextmanager
def _explained(where: str) -> Iterator[None]:
    """Trouble with the store's own files is told as that of the image."""
    try:
        yield
    except OSError as error:
        failed = ImagePullFailed(f"{where} cannot be kept: {error.strerror or error} ({error.filename})")
        raise ImagePullFailed(failed.message, next_step=_advice(failed)) from error


def _advice(error: ImageError) -> str:
    """What to do about it; of a full disk, wherever in the pull it was met."""
    full = any(os.strerror(number) in error.message for number in _FULL)
    return error.next_step or (_MAKE_ROOM if full else "")

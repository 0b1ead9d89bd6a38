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

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import msgspec
import trio

from rik.images.catalog import Catalog, Record, short
from rik.images.confined import Owners
from rik.images.errors import ImagePullFailed, ImageSpoilt, keeping
from rik.images.flights import Flights, ReportProgress
from rik.images.housekeeping import Housekeeping
from rik.images.layers import Layers
from rik.images.leases import Leases
from rik.images.locks import Gate
from rik.images.manifest import ImageConfig, Platform, this_platform
from rik.images.opening import open_source
from rik.images.pruning import Pruned, StoredImage
from rik.images.pulling import Found, Pulling
from rik.images.reference import HostReference, Reference, RegistryReference
from rik.images.registry.registries import Registries
from rik.images.source import Source
from rik.images.unpack import Limits, remove_tree
from rik.linux.idmap import IdMap, Unavailable
from rik.model.instance import ImageUse
from rik.model.node import HostResource
from rik.settings import ImageSettings

# An image may be pruned between being found and being held; more often than this it is not by chance.
_TRIES = 5


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
            labels=self.config.labels,
        )


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
        suffix = f"-{self._owners.key}" if self._owners.key else ""
        self._allow_dirs = allow_dirs
        settings = settings or ImageSettings()
        self._registries = Registries(settings, directory / "downloads")
        self._platform = platform or this_platform()
        self._gate = Gate(directory / "lock")
        self._catalog = Catalog(directory, suffix)
        self._leases = Leases(directory, host_id)
        self._layers = Layers(directory, host_id, self._owners, self._gate, suffix)
        self._housekeeping = Housekeeping(self._catalog, self._layers, self._leases, self._gate, self._owners)
        self._pulling = Pulling(
            self._catalog, self._layers, self._leases, self._gate, Limits.of(settings), self._platform
        )
        self._flights: Flights[Found] = Flights()
        self._pulled = trio.Event()

    @property
    def pulled(self) -> trio.Event:
        """Is set when the next pull has ended, well or not; ask for it anew for the one after that."""
        return self._pulled

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
        with keeping(where):
            await trio.to_thread.run_sync(self._make_directories)
        spoilt: ImageSpoilt | None = None
        for _ in range(_TRIES):
            if not ask and (image := await self._take(reference, holder)) is not None:
                return image
            cached = False
            try:
                pull = partial(self._pulling.find_or_pull, where, partial(self._open, reference))
                async with self._flights.join(where, pull, progress) as found:
                    cached = found.cached
                    if (image := await self._take(reference, holder, found)) is not None:
                        return image
            except ImageSpoilt as error:
                spoilt = error
            finally:
                if not cached:
                    self._announce()
        if spoilt is not None:
            raise spoilt
        raise ImagePullFailed(f"{where} was removed again whenever it was here")

    async def find(self, reference: Reference, *, holder: str = "") -> Image | None:
        """The image, held as by `ensure`, if it is here; its source is not asked. Raises ImagePullFailed."""
        with keeping(str(reference)):
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

    async def unfinished_bytes(self) -> int:
        """What layers take that belong to no image and that no pull is bringing: such as failed have left them. Raises
        OSError."""
        return await self._housekeeping.unfinished_bytes()

    async def prune(self, unused_s: float = 0.0, *, cache_bytes: int = 0, dry_run: bool = False) -> Pruned:
        """Removes images that nothing uses, and has not for `unused_s`. With `cache_bytes` also the least recently used
        ones until all layers together take no more. With neither: every unused image. With `dry_run` only says which.
        Layers that no image needs (of pulls that failed) count and go like images.

        Raises OSError when some of it could not be removed; that, and what a kill leaves, the next `prune` or `sweep`
        removes. Cancelled, it goes on for a minute at the most.
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

    def _announce(self) -> None:
        self._pulled.set()
        self._pulled = trio.Event()

    async def _open(self, reference: Reference) -> Source:
        return await open_source(reference, self._platform, self._allow_dirs, self._registries)

    async def _take(self, reference: Reference, holder: str, found: Found | None = None) -> Image | None:
        """The image, if it is here, held by `holder` from now on. Raises ImagePullFailed."""
        where = str(reference)

        def claim() -> Image | None:
            here = found or self._known(reference)
            record = self._catalog.record(here.digest) if here is not None else None
            if here is None or record is None:
                return None
            lease = self._leases.hold(holder, record.digest, record.keys) if holder else None
            if not self._layers.are_here(record.keys):
                if lease is not None:
                    lease.unlink(missing_ok=True)
                return None
            self._catalog.touch(record.digest)
            return self._image(where, record, here)

        with keeping(where):
            async with self._gate.held():
                return await trio.to_thread.run_sync(claim)

    def _known(self, reference: Reference) -> Found | None:
        """Where the reference led the last time. With a digest it can lead nowhere else."""
        pointer = self._catalog.pointer(str(reference))
        if pointer is not None:
            return Found(pointer.digest, pointer.origin, cached=True)
        if isinstance(reference, RegistryReference) and reference.digest is not None:
            return Found(reference.digest, "", cached=True)
        return None

    def _image(self, where: str, record: Record, found: Found) -> Image:
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

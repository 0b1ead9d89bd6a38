"""Looking over all that the image store has, and making room in it."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path

import trio

from rik.images.catalog import Catalog, Record, short
from rik.images.confined import Owners
from rik.images.documents import remove_document
from rik.images.layers import CLEANUP_DEADLINE_S, Layers
from rik.images.leases import Leases
from rik.images.locks import Gate, remove_if_free
from rik.images.pruning import Plan, Pruned, Shelf, StoredImage, choose
from rik.images.unpack import remove_tree
from rik.model.node import HostResource

# A download that has a name for longer than this has nobody.
_NAMED_S = 60.0


class Housekeeping:
    """Of the store whose lock is `gate`; everything that it asks of the disk, it asks in threads."""

    def __init__(self, catalog: Catalog, layers: Layers, leases: Leases, gate: Gate, owners: Owners) -> None:
        self._catalog = catalog
        self._layers = layers
        self._leases = leases
        self._gate = gate
        self._owners = owners

    async def images(self) -> list[StoredImage]:
        """Those whose layers are all here, the last used first. Raises OSError."""
        return await trio.to_thread.run_sync(self._images)

    async def size_bytes(self) -> int:
        """What all layers take. Raises OSError."""
        return sum((await trio.to_thread.run_sync(self._sizes)).values())

    async def unfinished_bytes(self) -> int:
        """See `ImageStore.unfinished_bytes`."""

        def add_up() -> int:
            shelf = self._shelf()
            return sum(shelf.layers[key] for key in shelf.loose - shelf.needed)

        return await trio.to_thread.run_sync(add_up)

    async def prune(self, unused_s: float, cache_bytes: int, dry_run: bool) -> Pruned:
        """See `ImageStore.prune`."""
        if not self._layers.directory.is_dir():
            return Pruned((), 0, 0, 0)
        if not dry_run:
            await self.sweep(None)
        with ExitStack() as stack:
            async with self._gate.held():

                def clear() -> tuple[Pruned, list[Path]]:
                    shelf = self._shelf()
                    plan = choose(shelf, _now(), unused_s, cache_bytes)
                    pruned = self._pruned(shelf, plan)
                    return pruned, [] if dry_run else self._hide(plan, stack)

                pruned, paths = await trio.to_thread.run_sync(clear)
            try:
                await self._remove(paths)
            except trio.Cancelled:
                with trio.move_on_after(CLEANUP_DEADLINE_S, shield=True):
                    await self._remove(paths)
                raise
        return pruned

    async def inventory(self) -> list[HostResource]:
        """See `ImageStore.inventory`."""
        if not self._layers.directory.is_dir():
            return []
        async with self._gate.held():
            return await trio.to_thread.run_sync(self._inventory)

    async def sweep(self, owned: frozenset[str] | None) -> list[HostResource]:
        """See `ImageStore.sweep`."""
        if not self._layers.directory.is_dir():
            return []
        with ExitStack() as stack:
            async with self._gate.held():
                swept, paths = await trio.to_thread.run_sync(self._sweep, owned, stack)
            await self._remove(paths)
        return swept

    # -- in threads ----------------------------------------------------------------------------------------------------

    def _images(self) -> list[StoredImage]:
        shelf = self._shelf()
        whole = [digest for digest, keys in shelf.images.items() if all(key in shelf.layers for key in keys)]
        return sorted(self._stored(whole), key=lambda image: (-image.used_at, image.digest))

    def _sizes(self) -> dict[str, int]:
        notes = {key: self._layers.note(key) for key in self._layers.all()}
        return {key: note.bytes if note else 0 for key, note in notes.items()}

    def _shelf(self) -> Shelf:
        """The leases are read first: what a pull that ends meanwhile has brought has its record by then."""
        leases = self._leases.all()
        images = {record.digest: record.keys for record in self._catalog.all_records()}
        layers = self._sizes()
        needed = {key for lease in leases for key in lease.keys or images.get(lease.digest, ())}
        return Shelf(
            images,
            layers,
            made_at={key: self._layers.made_at(key) for key in layers},
            used_at={digest: self._catalog.used_at(digest) for digest in images},
            held=frozenset(lease.digest for lease in leases),
            needed=frozenset(needed),
        )

    def _stored(self, digests: list[str]) -> list[StoredImage]:
        references: dict[str, list[str]] = {}
        for pointer in self._catalog.all_pointers():
            references.setdefault(pointer.digest, []).append(short(pointer.reference))
        holders: dict[str, set[str]] = {}
        for lease in self._leases.all():
            if lease.holder:
                holders.setdefault(lease.digest, set()).add(lease.holder)
        return [
            self._describe(record, references.get(digest, []), holders.get(digest, set()))
            for digest in digests
            if (record := self._catalog.record(digest)) is not None
        ]

    def _describe(self, record: Record, references: list[str], holders: set[str]) -> StoredImage:
        return StoredImage(
            references=tuple(sorted(references)),
            digest=record.digest,
            origin=record.pull.origin,
            layers=len(record.keys),
            size_bytes=record.size_bytes,
            pulled_bytes=record.pull.bytes,
            seconds=record.pull.seconds,
            pulled_at=record.pull.at,
            used_at=self._catalog.used_at(record.digest),
            holders=tuple(sorted(holders)),
            dropped=record.dropped,
            exposed_ports=record.config.exposed_ports,
            labels=record.config.labels,
        )

    def _pruned(self, shelf: Shelf, plan: Plan) -> Pruned:
        left = shelf.layers.keys() - plan.layers
        kept = [
            digest
            for digest, keys in shelf.images.items()
            if digest not in plan.images and not {*keys}.difference(left)
        ]
        return Pruned(
            tuple(self._stored(list(plan.images))),
            plan.freed_bytes,
            len(kept),
            sum(shelf.layers[key] for key in left),
        )

    def _hide(self, plan: Plan, stack: ExitStack) -> list[Path]:
        """Layers first: a record without its layers is swept, while layers without a record would stay."""
        paths = stack.enter_context(self._layers.hidden(plan.layers))
        self._catalog.forget(frozenset(plan.images))
        return paths

    def _sweep(self, owned: frozenset[str] | None, stack: ExitStack) -> tuple[list[HostResource], list[Path]]:
        swept = []
        for lease in self._leases.void(owned):
            remove_document(lease.path)
            self._catalog.touch(lease.digest)
            swept.append(_resource(lease.path, lease.holder, "image lease"))
        abandoned = stack.enter_context(self._layers.abandoned())
        swept += [_resource(path, "", "half-made layer") for path in abandoned]
        shelf = self._shelf()
        broken = (digest for digest, keys in shelf.images.items() if any(key not in shelf.layers for key in keys))
        self._catalog.forget(frozenset(broken) - shelf.held)
        for path in (*self._catalog.useless(), *self._leases.unfinished()):
            remove_document(path)
        for path in self._layers.lock_files():
            remove_if_free(path)
        for path in self._downloads():
            if _age_s(path) > _NAMED_S:
                remove_document(path)
                swept.append(_resource(path, "", "half-made download"))
        return swept, abandoned

    def _inventory(self) -> list[HostResource]:
        found = [_resource(path, "rik", "image") for path in sorted(self._catalog.records.glob("*.json"))]
        found += [_resource(path, "rik", "image reference") for path in sorted(self._catalog.references.glob("*.json"))]
        dead = {lease.path for lease in self._leases.void()}
        for lease in self._leases.known():
            owner = lease.holder if self._leases.is_own(lease) and lease.holder else "rik"
            found.append(_resource(lease.path, "" if lease.path in dead else owner, "image lease"))
        found += [_resource(self._layers.directory / key, "rik", "layer") for key in self._layers.all()]
        found += [
            _resource(path, "rik" if alive else "", "half-made layer") for path, alive in self._layers.half_made()
        ]
        for path in self._downloads():
            found.append(_resource(path, "" if _age_s(path) > _NAMED_S else "rik", "half-made download"))
        return found + [_resource(path, "", "not of the layer store") for path in self._layers.strangers()]

    def _downloads(self) -> list[Path]:
        """Downloads lose their names at once where they have any; a kill in between leaves one."""
        return sorted((self._layers.directory.parent / "downloads").glob("*"))

    async def _remove(self, paths: list[Path]) -> None:
        """All of them, whatever becomes of one."""
        failure: OSError | None = None
        for path in paths:
            try:
                await remove_tree(path, self._owners)
            except OSError as error:
                failure = failure or error
        if failure is not None:
            raise failure


def _resource(path: Path, owner: str, detail: str) -> HostResource:
    return HostResource("file", str(path), owner, detail)


def _age_s(path: Path) -> float:
    """Since it was changed; 0 when it is gone."""
    try:
        return time.time() - path.lstat().st_mtime
    except FileNotFoundError:
        return 0.0


def _now() -> int:
    return time.time_ns() // 1_000_000

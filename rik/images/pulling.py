"""One pull, from a source to a record: what is missing is fetched, unpacked layer by layer, and written down."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager

import msgspec
import trio

from rik.images.beside import beside
from rik.images.catalog import Catalog, Pointer, Pull, Record
from rik.images.errors import ImageInvalid, ImageNotFound, ImagePullFailed, ImageUnauthorized, advice, keeping
from rik.images.flights import ReportProgress
from rik.images.layers import Layers, Wanted
from rik.images.leases import Leases
from rik.images.locks import Gate
from rik.images.manifest import ImageConfig, Platform, chain_ids, read_config
from rik.images.source import Resolved, Source
from rik.images.tally import PULL, Tally
from rik.images.unpack import Limits, Unpacked, check_totals
from rik.model.instance import Progress


class Found(msgspec.Struct, frozen=True):
    """Where a reference leads; `cached` says that the image was here already."""

    digest: str
    origin: str
    cached: bool


class _Plan(msgspec.Struct, frozen=True):
    """The image `where`, its layers' digests and keys, lowest first, and the numbers of those not here."""

    where: str
    source: Source
    resolved: Resolved
    config: ImageConfig
    diff_ids: tuple[str, ...]
    keys: tuple[str, ...]
    missing: frozenset[int] = frozenset()


class Pulling:
    """Pulls of images for `platform`, within `limits`, into the store whose parts these are."""

    def __init__(
        self, catalog: Catalog, layers: Layers, leases: Leases, gate: Gate, limits: Limits, platform: Platform
    ) -> None:
        self._catalog = catalog
        self._layers = layers
        self._leases = leases
        self._gate = gate
        self._limits = limits
        self._platform = platform

    @asynccontextmanager
    async def find_or_pull(
        self, where: str, open_source: Callable[[], Awaitable[Source]], report: ReportProgress
    ) -> AsyncIterator[Found]:
        """What the source says that `where` is; pulled unless it is here. While it is open, what was pulled is not
        pruned. Raises ImageError."""
        began = trio.current_time()
        source = await open_source()
        if source.step == PULL:
            report(Progress(PULL))  # of how much, only the registry knows
        resolved = await source.resolve()
        origin = resolved.origin or where
        found = Found(resolved.digest, origin, cached=True)
        with keeping(where):
            here = await trio.to_thread.run_sync(self._is_here, resolved.digest)
            if here:
                await self._note(None, Pointer(where, resolved.digest, origin))
        if here:
            yield found
            return
        plan = self._plan(where, source, msgspec.structs.replace(resolved, origin=origin))
        with ExitStack() as stack:
            with keeping(where):
                async with self._gate.held():
                    await trio.to_thread.run_sync(stack.enter_context, self._leases.pulling(resolved.digest, plan.keys))
                plan = await trio.to_thread.run_sync(self._looked_up, plan)
            await self._pull(plan, report, began)
            yield msgspec.structs.replace(found, cached=False)

    def _is_here(self, digest: str) -> bool:
        record = self._catalog.record(digest)
        return record is not None and self._layers.are_here(record.keys)

    def _plan(self, where: str, source: Source, resolved: Resolved) -> _Plan:
        config, diff_ids = read_config(resolved.config, self._platform, len(resolved.layers), f"{where}: its config")
        if not resolved.layers:
            raise ImageInvalid(f"{where} has no layers: there is nothing in it that could run")
        keys = tuple(self._layers.key(chain) for chain in chain_ids(diff_ids))
        return _Plan(where, source, resolved, config, diff_ids, keys)

    def _looked_up(self, plan: _Plan) -> _Plan:
        missing = [number for number, key in enumerate(plan.keys) if self._layers.note(key) is None]
        return msgspec.structs.replace(plan, missing=frozenset(missing))

    async def _pull(self, plan: _Plan, report: ReportProgress, began: float) -> None:
        layers = [plan.resolved.layers[number] for number in sorted(plan.missing)]
        tally = Tally(report, len(plan.keys), layers, began, remote=plan.source.step == PULL)
        try:
            async with beside(tally.tick):
                unpacked = await self._bring(plan, tally)
        except (ImageNotFound, ImageUnauthorized, ImagePullFailed) as error:
            message = "; ".join(filter(None, (error.message, tally.so_far())))
            raise type(error)(message, next_step=error.next_step or advice(error.message)) from error
        dropped: Counter[str] = Counter()
        for layer in unpacked:
            dropped.update(layer.dropped)
        resolved = plan.resolved
        pull = Pull(resolved.origin, len(layers), tally.total, tally.seconds(), time.time_ns() // 1_000_000)
        size = sum(layer.bytes for layer in unpacked)
        with keeping(plan.where):
            await self._note(
                Record(resolved.digest, plan.config, plan.keys, size, dict(dropped), pull),
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

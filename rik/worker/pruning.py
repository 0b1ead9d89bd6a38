"""Keeping a host's images within bounds, by itself: by age and by size, each removal told with its figures."""

from __future__ import annotations

import logging
import math

import msgspec
import trio

from rik.errors import RikError
from rik.images.pruning import Pruned
from rik.images.store import ImageStore
from rik.model.sizes import format_bytes
from rik.model.spans import format_span
from rik.settings import ImageSettings

log = logging.getLogger(__name__)


class Round(msgspec.Struct, frozen=True):
    """What a look at all images came to: how many `images` went and what that freed, or the `failure` that it met.
    `at` is Trio's clock."""

    at: float
    images: int = 0
    freed_bytes: int = 0
    failure: str = ""


class Pruner:
    """Prunes `store` as `settings` say. One prune at a time."""

    def __init__(self, store: ImageStore, settings: ImageSettings) -> None:
        self._store = store
        self._settings = settings
        self._latest: Round | None = None
        self._fruitful: Round | None = None

    async def run(self) -> None:
        """Until cancelled: at once, at every interval, and by size whenever a pull has ended; of several pulls that end
        meanwhile once. What goes wrong is logged, and tried again the next time."""
        due = -math.inf
        while True:
            pulled = self._store.pulled  # one that ends during this round is looked at after it
            thorough = trio.current_time() >= due
            if thorough:
                due = trio.current_time() + self._settings.prune_interval_s
            await self._round(thorough=thorough)
            with trio.move_on_at(due):
                await pulled.wait()

    def told(self) -> str:
        """The last automatic prune in words: `last pruned 3 images, 1.2 GB freed, 2 h ago`; "" before the first."""
        if self._latest is None:
            return ""
        if self._latest.failure:
            return f"pruning failed {_ago(self._latest)}: {self._latest.failure}"
        if self._fruitful is None:
            return f"nothing to prune {_ago(self._latest)}"
        freed = f"{format_bytes(self._fruitful.freed_bytes)} freed"
        return f"last pruned {_images(self._fruitful.images)}, {freed}, {_ago(self._fruitful)}"

    @property
    def failing(self) -> bool:
        """The last round met a failure."""
        return self._latest is not None and bool(self._latest.failure)

    async def _round(self, *, thorough: bool) -> None:
        failure, done = "", []
        try:
            if thorough and self._settings.keep_unused_s > 0:
                done.append(await self._by_age())
            if self._settings.cache_bytes > 0 and (thorough or await self._is_over()):
                done.append(await self._by_size())
        except (OSError, RikError) as error:
            log.error("images cannot be pruned: %s", error)
            failure = str(error)
        except Exception as fault:
            log.exception("pruning images met a fault in RIK, and is tried again later")
            failure = f"{type(fault).__name__}: {fault}"
        images, freed = sum(len(pruned.removed) for pruned in done), sum(pruned.freed_bytes for pruned in done)
        self._latest = Round(trio.current_time(), images, freed, failure)
        if images or freed:
            self._fruitful = self._latest

    async def _by_age(self) -> Pruned:
        unused_s = self._settings.keep_unused_s
        pruned = await self._store.prune(unused_s)
        log_pruned(pruned, f"that nothing had used for {format_span(unused_s)}")
        return pruned

    async def _by_size(self) -> Pruned:
        pruned = await self._store.prune(cache_bytes=self._settings.cache_bytes)
        log_pruned(pruned, f"to keep all within {format_bytes(self._settings.cache_bytes)}")
        return pruned

    async def _is_over(self) -> bool:
        return await self._store.size_bytes() > self._settings.cache_bytes


def log_pruned(pruned: Pruned, why: str) -> None:
    """Unless nothing went."""
    if pruned.removed or pruned.freed_bytes:
        log.info(
            "pruned %s %s: %s freed, %d kept (%s)",
            _images(len(pruned.removed)),
            why,
            format_bytes(pruned.freed_bytes),
            pruned.kept,
            format_bytes(pruned.size_bytes),
        )


def _images(count: int) -> str:
    """Without an image it was layers that belong to none."""
    return f"{count} image{'' if count == 1 else 's'}" if count else "unfinished pulls"


def _ago(of: Round) -> str:
    passed_s = trio.current_time() - of.at
    return f"{format_span(passed_s)} ago" if passed_s >= 1 else "just now"

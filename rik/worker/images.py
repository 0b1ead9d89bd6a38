"""The images of a worker's host: answers what the api asks of them, keeps them within bounds, and looks at them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import trio
from msgspec.structs import replace

from rik.errors import Unavailable
from rik.images.errors import ImageError, ImageInvalid
from rik.images.pruning import StoredImage
from rik.images.reference import HostReference, parse_reference
from rik.images.store import Image, ImageStore
from rik.link.base import LinkClosed, Stream
from rik.messages import ListImages, PruneImages, PullImage
from rik.model.instance import Progress
from rik.model.node import Check
from rik.model.public import render_image_use, render_progress, render_time
from rik.model.sizes import format_bytes
from rik.model.spans import format_span
from rik.settings import ImageSettings
from rik.worker.frames import cancel_when_closed, send_whole
from rik.worker.pruning import Pruner, log_pruned

# The answers of a node that keeps none.
NO_IMAGES: dict[str, Any] = {"images": [], "size_bytes": 0, "cache_bytes": 0, "keep_unused_s": 0.0}
NOTHING_PRUNED: dict[str, Any] = {"removed": [], "freed_bytes": 0, "kept": 0, "size_bytes": 0}

# Of a pull: how often its progress is told at most, and at least, so that who waits knows that somebody is there.
PROGRESS_INTERVAL_S = 0.5
HEARTBEAT_S = 5.0

NameOf = Callable[[str], str | None]


class NodeImages:
    """What `store` holds, with the bounds that `settings` set. `name_of` tells an instance's name by its uid."""

    def __init__(self, store: ImageStore, settings: ImageSettings) -> None:
        self._store = store
        self._settings = settings
        self._pruner = Pruner(store, settings)

    async def answer(self, request: ListImages | PullImage | PruneImages, stream: Stream, name_of: NameOf) -> None:
        """All but the end of the stream. Raises ImageError, Unavailable and LinkClosed."""
        try:
            match request:
                case ListImages():
                    await send_whole(stream, await self._list(name_of))
                case PruneImages():
                    await send_whole(stream, await self._prune(request, name_of))
                case PullImage():
                    await self._pull(request, stream)
        except OSError as error:
            raise Unavailable(f"the images in {self._store.directory} cannot be had: {error}") from error

    async def keep_pruned(self) -> None:
        """Prunes by age and size until cancelled (see `Pruner.run`)."""
        await self._pruner.run()

    async def _list(self, name_of: NameOf) -> dict[str, Any]:
        found = await self._store.list_images()
        return {
            "images": [_render_stored(image, name_of) for image in found],
            "size_bytes": await self._store.size_bytes(),
            "cache_bytes": self._settings.cache_bytes,
            "keep_unused_s": self._settings.keep_unused_s,
        }

    async def _prune(self, request: PruneImages, name_of: NameOf) -> dict[str, Any]:
        pruned = await self._store.prune(request.unused_s, dry_run=request.dry_run)
        if not request.dry_run:
            since = f" had used for {format_span(request.unused_s)}" if request.unused_s else " uses"
            log_pruned(pruned, f"that nothing{since}, as was asked for")
        return {
            "removed": [_render_stored(image, name_of) for image in pruned.removed],
            "freed_bytes": pruned.freed_bytes,
            "kept": pruned.kept,
            "size_bytes": pruned.size_bytes,
        }

    async def check(self) -> Check:
        """How many, how large, how large they may be all together, what room the disk has, and what was pruned last."""
        name = "images"
        limit = self._settings.cache_bytes
        try:
            count, size = len(await self._store.list_images()), await self._store.size_bytes()
            unfinished = await self._store.unfinished_bytes()
            over = 0 < limit < size
            going = (await self._store.prune(cache_bytes=limit, dry_run=True)).freed_bytes if over else 0
            free = await trio.to_thread.run_sync(_free_bytes, self._store.directory)
        except OSError as error:
            return Check(name, False, str(error), f"look at {self._store.directory}: pods may not start without it")
        detail = f"{count} image{'' if count == 1 else 's'}, {format_bytes(size)}"
        if limit:
            detail += f" of {format_bytes(limit)}"
        if unfinished:
            detail += f", {format_bytes(unfinished)} of unfinished pulls"
        if going:
            detail += f"; {format_bytes(going)} of it is unused and goes at the next prune"
        detail = "; ".join(filter(None, (detail, f"{format_bytes(free)} free", self._pruner.told())))
        if self._pruner.failing:
            return Check(name, False, detail, "mend what it says; it is tried again by itself, or by `rik image prune`")
        if over and size - going > limit:
            return Check(name, False, detail, "what is used stays: delete instances, or give more by --image-cache")
        return Check(name, True, detail)

    # --- pulling ------------------------------------------------------------------------------------------------------

    async def _pull(self, request: PullImage, stream: Stream) -> None:
        reference = parse_reference(request.reference)
        if isinstance(reference, HostReference):
            raise ImageInvalid("`host` is the node's own file system: there is nothing to pull")
        told = _Told(stream)
        image: Image | None = None
        problem: ImageError | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancel_when_closed, stream, nursery.cancel_scope)
            nursery.start_soon(told.run, nursery.cancel_scope)
            try:
                image = await self._store.ensure(reference, told.hear, refresh=True)
            except ImageError as error:  # not through the nursery, which would wrap it
                problem = error
            nursery.cancel_scope.cancel()
        if problem is not None:
            raise problem
        if image is not None:
            await send_whole(stream, {"type": "image", **_render_pulled(image)}, end=b"\n")


class _Told:
    """The progress of one pull, on its way to who asked for it: the latest wins, and silence is broken."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._latest = Progress("pull")
        self._heard_at = trio.current_time()
        self._news = trio.Event()

    def hear(self, progress: Progress) -> None:
        self._latest = progress
        self._heard_at = trio.current_time()
        self._news.set()

    async def run(self, scope: trio.CancelScope) -> None:
        """Until cancelled, or until nobody listens: then it cancels the pull."""
        try:
            while True:
                with trio.move_on_after(HEARTBEAT_S - PROGRESS_INTERVAL_S):
                    await self._news.wait()
                self._news = trio.Event()
                passed_s = trio.current_time() - self._heard_at
                shown = replace(self._latest, seconds=self._latest.seconds + passed_s)
                line = {"type": "progress", "step": shown.step, **render_progress(shown)}
                await self._stream.send(msgspec.json.encode(line) + b"\n")
                await trio.sleep(PROGRESS_INTERVAL_S)
        except LinkClosed:
            scope.cancel()


def _free_bytes(directory: Path) -> int:
    """Of the disk that the directory is on, or will be."""
    there = next(path for path in (directory, *directory.parents) if path.exists())
    return shutil.disk_usage(there).free


# --- as JSON ----------------------------------------------------------------------------------------------------------


def _render_pulled(image: Image) -> dict[str, Any]:
    """As an instance's use of it, which nobody's is."""
    rendered = render_image_use(image.use())
    del rendered["containers"]
    return rendered


def _render_stored(image: StoredImage, name_of: NameOf) -> dict[str, Any]:
    """`instances` are names; a holder that this worker does not know (it is just being removed, or another process's)
    keeps its uid, because it keeps the image all the same."""
    return {
        "references": list(image.references),
        "digest": image.digest,
        "origin": image.origin,
        "layers": image.layers,
        "size_bytes": image.size_bytes,
        "pulled_bytes": image.pulled_bytes,
        "seconds": round(image.seconds, 3),
        "pulled_at": render_time(image.pulled_at),
        "used_at": render_time(image.used_at),
        "instances": sorted(name_of(holder) or holder for holder in image.holders),
        "exposed_ports": list(image.exposed_ports),
        "dropped": dict(image.dropped),
        "labels": dict(image.labels),
    }

"""The layers under way: each blob is downloaded once, into a spool that everybody reads while it grows.

Whoever wants a blob stands ready to download it: one does, the others wait for the lock. When he goes, because he was
cancelled or his endpoint failed, the next goes on from where the spool ends. No task is without an owner.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import trio

from rik.images.errors import ImageError, ImageInvalid, ImagePullFailed
from rik.images.registry.attempts import MOST_TRIES, TransientFailure, persist
from rik.images.registry.patience import Patience, Turns
from rik.images.registry.spool import Spool
from rik.images.source import READ_BYTES, Layer
from rik.settings import ImageSettings


class Body(NamedTuple):
    """A layer's bytes from `start` on (0 when the registry does not resume)."""

    start: int
    chunks: AsyncIterator[bytes]


# A hundred other tasks, or the heartbeat, wait no longer than this for one download.
LONGEST_BREATH_S = 0.005

OpenAt = Callable[[Layer, int], AbstractAsyncContextManager[Body]]


class _Key(NamedTuple):
    origin: str
    digest: str
    size: int


class _Blob:
    """One blob and everybody who wants it. `fetcher` is held by the one who downloads."""

    def __init__(self, key: _Key, spool: Spool, patience: Patience) -> None:
        self.key = key
        self.spool = spool
        self.patience = patience
        self.fetcher = trio.Lock()
        self.users = 0
        self.listeners: list[Callable[[int], None]] = []
        self.told = 0  # what listeners have heard of; the spool may be a chunk ahead
        self.last_cause = ""
        self.given_up_at = -1  # how much had been received when somebody's tries were used up

    def tell(self, count: int) -> None:
        self.told += count
        for listener in list(self.listeners):
            listener(count)


class _Wanted(NamedTuple):
    """A blob for one `fetching`: `rank` is the layer's place in the image, `prefix` begins messages."""

    layer: Layer
    blob: _Blob
    rank: int
    prefix: str

    @property
    def what(self) -> str:
        return f"{self.prefix}{_name(self.layer)}"

    def told(self, error: ImageError) -> ImageError:
        """What ended the blob for everybody, in words for this one."""
        return type(error)(f"{self.prefix}{error.message}", next_step=error.next_step)


class Downloads:
    """All downloads of one host, with at most `settings.downloads_at_once` connections (see `Turns`); spools lie in
    `directory`."""

    def __init__(self, directory: Path, settings: ImageSettings) -> None:
        self._directory = directory
        self._settings = settings
        self._turns = Turns(settings.downloads_at_once)
        self._blobs: dict[_Key, _Blob] = {}

    @asynccontextmanager
    async def fetching(
        self,
        layers: Sequence[Layer],
        open_at: OpenAt,
        received: Callable[[int], None],
        *,
        where: str = "",
        origin: str = "",
    ) -> AsyncIterator[None]:
        """While it is open these layers are on their way, the first ones first, each digest once.

        `open_at(layer, offset)` connects; it and its chunks raise TransientFailure for what is worth another try, and
        ImageError for what is not. `received` is told the size of every piece, and at once what is there already.
        `where` (registry and repository) begins messages. A blob is shared among those who name the same `origin`
        (the registry): nobody's download hangs on, or is spoilt by, a registry that he did not ask.

        A failure cancels the body and is raised when the context is left: one ImageError, never a group. What the body
        raises passes through as it is. Leaving it ends what is still under way, unless others want it.
        """
        prefix = f"{where}: " if where else ""
        self._check_sizes(layers, prefix)
        failures: list[ImageError] = []
        raised: Exception | None = None
        wanted: list[_Wanted] = []
        try:
            for key, layer in {_key(layer, origin): layer for layer in layers}.items():
                wanted.append(_Wanted(layer, self._join(key, layer), len(wanted), prefix))
                wanted[-1].blob.listeners.append(received)
                if already := wanted[-1].blob.told:
                    received(already)
            async with trio.open_nursery() as nursery:

                async def fetch(one: _Wanted) -> None:
                    try:
                        await self._fetch(one, open_at)
                    except ImageError as error:
                        failures.append(error)
                        nursery.cancel_scope.cancel()

                for one in wanted:
                    nursery.start_soon(fetch, one)
                try:
                    yield
                except Exception as error:  # noqa: BLE001 - raised below: through the nursery it would become a group
                    raised = error
                nursery.cancel_scope.cancel()
        finally:
            for one in wanted:
                one.blob.listeners.remove(received)
                await self._leave(one.blob)
        if raised is not None and not isinstance(raised, ImageError):
            raise raised
        # The body may have met a failure, at the end of what it read, before the task that had it.
        failures += (one.told(one.blob.spool.error) for one in wanted if one.blob.spool.error is not None)
        if failures:
            raise failures[0]
        if raised is not None:
            raise raised

    @asynccontextmanager
    async def open_layer(self, layer: Layer, *, origin: str = "") -> AsyncIterator[AsyncIterator[bytes]]:
        """Inside of `fetching`: the layer's bytes as they come, about 1 MiB at a time. The iterator raises ImageError,
        at the latest at its end when size or digest are wrong."""
        blob = self._blobs.get(_key(layer, origin))
        if blob is None:
            raise RuntimeError(f"{_name(layer)} is not being fetched")
        blob.users += 1
        try:
            async with aclosing(_chunks(blob.spool)) as chunks:
                yield chunks
        finally:
            await self._leave(blob)

    # -- one blob ------------------------------------------------------------------------------------------------------

    async def _fetch(self, wanted: _Wanted, open_at: OpenAt) -> None:
        """Until the blob is there, whoever downloads it."""
        blob, spool = wanted.blob, wanted.blob.spool
        with blob.patience.waiting() as waiting:
            async with blob.fetcher:
                if spool.error is not None:
                    raise wanted.told(spool.error)
                if not spool.finished:
                    try:
                        await self._download(wanted, open_at)
                    except ImageError as error:
                        if error is spool.error:
                            raise wanted.told(error) from error
                        raise
        if waiting.scope.cancelled_caught:
            message = (
                f"{wanted.what}: only {waiting.arrived:,} bytes of the layer arrived in {self._settings.idle_s:g} s"
            )
            cause = f"; the last failure: {blob.last_cause}" if blob.last_cause else ""
            raise ImagePullFailed(message + cause, next_step="check the registry and the network")

    async def _download(self, wanted: _Wanted, open_at: OpenAt) -> None:
        blob, spool = wanted.blob, wanted.blob.spool
        real_bytes = max(1, self._settings.idle_bytes)
        try:
            await persist(
                wanted.what,
                lambda: self._attempt(wanted, open_at),
                progress=lambda: spool.received // real_bytes,
                # Twenty that wait for a dead registry do not each wait as long as the first.
                most_tries=1 if blob.given_up_at == spool.received else MOST_TRIES,
            )
        except ImagePullFailed as error:
            if isinstance(error.__cause__, TransientFailure):
                blob.given_up_at = spool.received
            raise

    async def _attempt(self, wanted: _Wanted, open_at: OpenAt) -> None:
        """One connection, from what is there to the end."""
        blob, spool = wanted.blob, wanted.blob.spool
        with blob.patience.held():
            await self._turns.take(wanted.rank, blob.key.origin)
        try:
            await spool.open()
            if spool.received < spool.total:
                async with open_at(wanted.layer, spool.received) as body:
                    try:
                        await _receive(body, blob)
                    finally:
                        if isinstance(body.chunks, AsyncGenerator):
                            await body.chunks.aclose()
            with blob.patience.held():
                await spool.finish()
        except TransientFailure as failure:
            blob.last_cause = failure.cause
            raise
        finally:
            self._turns.give(blob.key.origin)

    def _join(self, key: _Key, layer: Layer) -> _Blob:
        blob = self._blobs.get(key)
        if blob is None or blob.spool.error is not None:
            spool = Spool(self._directory, layer.size, layer.digest, _name(layer))
            blob = self._blobs[key] = _Blob(key, spool, Patience(self._settings.idle_bytes, self._settings.idle_s))
        blob.users += 1
        return blob

    async def _leave(self, blob: _Blob) -> None:
        blob.users -= 1
        if not blob.users:
            if self._blobs.get(blob.key) is blob:
                del self._blobs[blob.key]
            await blob.spool.close()

    def _check_sizes(self, layers: Sequence[Layer], prefix: str) -> None:
        """No registry fills the disk by stating sizes that could never be unpacked."""
        total = sum(layer.size for layer in layers)
        if total > self._settings.max_bytes:
            message = f"{prefix}its layers have {total:,} bytes even before they are unpacked"
            step = "if it is as it should be, start this node with a larger `--image-max-size`"
            raise ImageInvalid(f"{message}; an image may have {self._settings.max_bytes:,}", next_step=step)


async def _receive(body: Body, blob: _Blob) -> None:
    spool, patience = blob.spool, blob.patience
    if body.start not in (0, spool.received):
        message = f"the registry answers with the bytes from {body.start:,} on, asked for were those from"
        raise TransientFailure(f"{message} {spool.received:,} on")
    skip = spool.received - body.start
    breathed_at = trio.current_time()
    async for chunk in body.chunks:
        patience.arrived(len(chunk))
        new = chunk[skip:] if skip else chunk
        skip = max(0, skip - len(chunk))
        if new:
            before = spool.received
            try:
                with patience.held():
                    await spool.append(new)
            finally:
                blob.tell(spool.received - before)  # a cancelled one may have taken a part
        # Ten thousand tiny chunks may come in one packet.
        if trio.current_time() - breathed_at > LONGEST_BREATH_S:
            await trio.lowlevel.checkpoint()
            breathed_at = trio.current_time()


async def _chunks(spool: Spool) -> AsyncGenerator[bytes, None]:
    offset = 0
    while True:
        await spool.wait_beyond(offset)
        chunk = await spool.read(offset, READ_BYTES)
        if not chunk:
            return
        offset += len(chunk)
        yield chunk


def _key(layer: Layer, origin: str) -> _Key:
    return _Key(origin, layer.digest, layer.size)


def _name(layer: Layer) -> str:
    return f"the layer {layer.digest or layer.name}"

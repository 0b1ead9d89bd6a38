"""A registry without a network: references lead to layouts on this disk, and what is asked is counted."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from pathlib import Path

import msgspec
import trio

from rik.images.errors import ImageError, ImagePullFailed
from rik.images.manifest import Platform
from rik.images.opening import open_source
from rik.images.reference import Reference, RegistryReference, parse_reference
from rik.images.registry.registries import Registries
from rik.images.source import Layer, Resolved, Source

PIECE_BYTES = 65_536


class Remote:
    """Takes the place of `open_source`. `images` are the layouts that full references lead to; `go_on` unset holds
    back the second half of every layer, and `trickle` unset, of what has come, all but the first megabyte; the layer
    that is read as number `breaks_at` cannot be had."""

    def __init__(self) -> None:
        self.images: dict[str, Path] = {}
        self.asked: list[str] = []
        self.fetched: list[str] = []
        self.go_on = trio.Event()
        self.go_on.set()
        self.halfway = trio.Event()
        self.trickle = trio.Event()
        self.trickle.set()
        self.breaks_at = 0
        self.read = 0

    async def open(
        self, reference: Reference, wanted: Platform, allow_dirs: Sequence[Path] | None, registries: Registries
    ) -> Source:
        if not isinstance(reference, RegistryReference):
            return await open_source(reference, wanted, allow_dirs, registries)
        files = parse_reference(f"oci:{self.images[str(reference)]}")
        return _RemoteSource(self, str(reference), await open_source(files, wanted, None, registries))


class _RemoteSource:
    step = "pull"

    def __init__(self, remote: Remote, reference: str, inner: Source) -> None:
        self._remote = remote
        self._reference = reference
        self._inner = inner
        self._came: dict[str, trio.Event] = {}

    async def resolve(self) -> Resolved:
        self._remote.asked.append(self._reference)
        return msgspec.structs.replace(await self._inner.resolve(), origin="registry.example by mirror")

    @asynccontextmanager
    async def fetching(self, layers: Sequence[Layer], received: Callable[[int], None]) -> AsyncIterator[None]:
        self._came = {layer.digest: trio.Event() for layer in layers}

        async def fetch(layer: Layer) -> None:
            self._remote.fetched.append(layer.digest)
            for start in range(0, layer.size, PIECE_BYTES):
                if start >= layer.size // 2:
                    self._remote.halfway.set()
                    await self._remote.go_on.wait()
                received(min(PIECE_BYTES, layer.size - start))
                await trio.lowlevel.checkpoint()
            self._came[layer.digest].set()

        raised: ImageError | None = None
        async with trio.open_nursery() as nursery:
            for layer in layers:
                nursery.start_soon(fetch, layer)
            try:
                yield
            except ImageError as error:
                raised = error  # the contract: never a group
            nursery.cancel_scope.cancel()
        if raised is not None:
            raise raised

    def open_layer(self, layer: Layer) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        return self._open_layer(layer)

    @asynccontextmanager
    async def _open_layer(self, layer: Layer) -> AsyncIterator[AsyncIterator[bytes]]:
        await self._came[layer.digest].wait()
        self._remote.read += 1
        if self._remote.read == self._remote.breaks_at:
            raise ImagePullFailed("registry.example: the connection broke")
        async with self._inner.open_layer(layer) as chunks, aclosing(self._held_back(chunks)) as slow:
            yield slow

    async def _held_back(self, chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        async for chunk in chunks:
            yield chunk
            await self._remote.trickle.wait()

"""The layers under way: each blob is downloaded once, into a spool that everybody reads while it grows."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from rik.images.source import Layer
from rik.settings import ImageSettings


class Body(NamedTuple):
    """A layer's bytes from `start` on (0 when the registry does not resume)."""

    start: int
    chunks: AsyncIterator[bytes]


OpenAt = Callable[[Layer, int], AbstractAsyncContextManager[Body]]


class Downloads:
    """All downloads of one host, with at most `settings.downloads_at_once` connections; spools lie in `directory`."""

    def __init__(self, directory: Path, settings: ImageSettings) -> None:
        raise NotImplementedError

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
        raise NotImplementedError
        yield

    @asynccontextmanager
    async def open_layer(self, layer: Layer, *, origin: str = "") -> AsyncIterator[AsyncIterator[bytes]]:
        """Inside of `fetching`: the layer's bytes as they come, about 1 MiB at a time. The iterator raises ImageError,
        at the latest at its end when size or digest are wrong."""
        raise NotImplementedError
        yield

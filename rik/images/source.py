"""Where an image's parts come from: what the layer store asks of every kind of reference, and what the kinds share.

A source is cheap to make and to throw away; nothing is kept open between two calls.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import Protocol

import msgspec
import trio

from rik.images.errors import ImageInvalid, ImagePullFailed
from rik.images.files import Files, Part
from rik.images.manifest import Platform
from rik.images.reference import ArchiveReference, LayoutReference

READ_BYTES = 1 << 20  # large enough that a thread's round trip (110 µs) does not count
_MAX_LISTED_NAMES = 20


class Layer(msgspec.Struct, frozen=True):
    """One layer as the source has it: `digest` of the bytes it hands out ("" when it states none), `size` in bytes."""

    name: str
    size: int
    digest: str = ""


class Resolved(msgspec.Struct, frozen=True):
    """One image for this platform: `digest` is its identity, `config` the bytes of its JSON, already verified; layers
    lowest first; `origin` says where it comes from, in words for people."""

    digest: str
    config: bytes
    layers: tuple[Layer, ...]
    origin: str = ""


class Source(Protocol):
    """One reference, ready to be read. `step` is what reading it is called in progress reports: pull or unpack."""

    step: str

    async def resolve(self) -> Resolved:
        """Index, manifest and config. Raises ImageError; every digest and size has been checked."""
        ...

    def fetching(self, layers: Sequence[Layer], received: Callable[[int], None]) -> AbstractAsyncContextManager[None]:
        """While it is open, these layers are on their way, several at a time; `open_layer` delivers what has come.

        `received` is told the size of every piece (negative when some must come again). A failure cancels the body,
        and is raised when the context is left: one ImageError, never a group. Nothing is left behind.
        """
        ...

    def open_layer(self, layer: Layer) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """The layer's bytes, while it is fetched. The iterator raises ImageError, at the latest at its end when size or
        digest are wrong."""
        ...


class FileSource(ABC):
    """The image `reference` names among `files`: a source whose parts lie on this host."""

    step = "unpack"

    def __init__(self, reference: LayoutReference | ArchiveReference, files: Files, wanted: Platform) -> None:
        self._reference = reference
        self._files = files
        self._wanted = wanted

    async def resolve(self) -> Resolved:
        try:
            return await trio.to_thread.run_sync(self._resolve, abandon_on_cancel=True)
        except OSError as error:
            raise ImagePullFailed(f"{self._reference} cannot be read: {error.strerror or error}") from error

    @asynccontextmanager
    async def fetching(self, layers: Sequence[Layer], received: Callable[[int], None]) -> AsyncIterator[None]:
        """They lie here already."""
        yield

    def open_layer(self, layer: Layer) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        return _verified_part(lambda: self._files.open(self._path(layer)), layer, str(self._reference))

    @abstractmethod
    def _resolve(self) -> Resolved:
        """In a thread; what OSError it raises is translated."""

    @abstractmethod
    def _path(self, layer: Layer) -> str:
        """The layer's name among the files."""


def listed(names: Sequence[str]) -> str:
    """What there is to choose from; long names and long lists are cut short."""
    more = f" and {len(names) - _MAX_LISTED_NAMES} more" if len(names) > _MAX_LISTED_NAMES else ""
    return f"it has {', '.join(f'`{name[:100]}`' for name in names[:_MAX_LISTED_NAMES])}{more}"


@asynccontextmanager
async def _verified_part(
    open_part: Callable[[], Part], layer: Layer, where: str
) -> AsyncIterator[AsyncIterator[bytes]]:
    """The bytes of a local file, read and hashed in threads; its size and digest are checked at the end."""
    try:
        part = await trio.to_thread.run_sync(open_part)
    except FileNotFoundError:
        raise ImageInvalid(f"{where}: the layer {layer.name} is missing") from None
    except OSError as error:
        raise ImagePullFailed(f"{where}: the layer {layer.name} cannot be read: {error.strerror}") from error
    try:
        async with aclosing(_verified(part, layer, where)) as chunks:
            yield chunks
    finally:
        part.close()


async def _verified(part: Part, layer: Layer, where: str) -> AsyncGenerator[bytes, None]:
    digest = Digest(layer.digest)
    if part.size != layer.size:
        raise ImageInvalid(f"{where}: the layer {layer.name} has {part.size:,} bytes where {layer.size:,} are stated")

    def step() -> bytes:
        data = part.read(READ_BYTES)
        digest.update(data)
        return data

    done = 0
    try:
        while data := await trio.to_thread.run_sync(step):
            done += len(data)
            yield data
    except OSError as error:
        raise ImagePullFailed(f"{where}: the layer {layer.name} cannot be read: {error.strerror}") from error
    if done != layer.size:
        raise ImageInvalid(f"{where}: the layer {layer.name} ends after {done:,} of {layer.size:,} bytes")
    digest.check(f"{where}: the layer {layer.name}")


class Digest:
    """Checks bytes against a stated digest as they come by; "" states none."""

    def __init__(self, stated: str) -> None:
        self._stated = stated
        self._hash = hashlib.new(stated.partition(":")[0]) if stated else None

    def update(self, data: bytes | memoryview) -> None:
        if self._hash is not None:
            self._hash.update(data)

    def check(self, what: str) -> None:
        """Raises ImageInvalid when the bytes were others than stated."""
        if self._hash is None:
            return
        found = f"{self._stated.partition(':')[0]}:{self._hash.hexdigest()}"
        if found != self._stated:
            raise ImageInvalid(f"{what} is not what it says it is: its digest is {found}, stated is {self._stated}")

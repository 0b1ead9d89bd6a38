"""Where an image's parts come from: what the layer store asks of every kind of reference.

A source is cheap to make and to throw away; nothing is kept open between two calls. The registry client will be one
more.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from pathlib import Path
from typing import Protocol

import msgspec
import trio

from rik.images.errors import ImageInvalid, ImagePullFailed
from rik.images.files import ArchiveFiles, DirectoryFiles, Files, Part, locate
from rik.images.manifest import Platform
from rik.images.reference import (
    ArchiveReference,
    HostReference,
    LayoutReference,
    Reference,
    RegistryReference,
    familiar,
)

READ_BYTES = 1 << 20  # large enough that a thread's round trip (110 µs) does not count


class Layer(msgspec.Struct, frozen=True):
    """One layer as the source has it: `digest` of the bytes it hands out ("" when it states none), `size` in bytes."""

    name: str
    size: int
    digest: str = ""


class Resolved(msgspec.Struct, frozen=True):
    """One image for this platform: `digest` is its identity, `config` the bytes of its JSON, already verified; layers
    lowest first."""

    digest: str
    config: bytes
    layers: tuple[Layer, ...]


class Source(Protocol):
    """One reference, ready to be read. `step` is what reading it is called in progress reports."""

    step: str

    async def resolve(self) -> Resolved:
        """Index, manifest and config. Raises ImageError; every digest and size has been checked."""
        ...

    def open_layer(self, layer: Layer) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """The layer's bytes. The iterator raises ImageError, at the latest at its end when size or digest are wrong."""
        ...


async def open_source(reference: Reference, wanted: Platform, allow_dirs: Sequence[Path] | None) -> Source:
    """The source for a reference. Raises ImageError; for a registry always, until there is a client for them."""
    from rik.images.docker_archive import DockerArchive
    from rik.images.layout import OciLayout

    if isinstance(reference, RegistryReference):
        raise ImagePullFailed(
            f"{familiar(reference)} cannot be pulled from {reference.registry}: RIK does not pull from registries yet",
            next_step="use `oci:DIR`, `oci-archive:FILE` or `docker-archive:FILE`, which skopeo and docker save "
            "write, or `host`",
        )
    if isinstance(reference, HostReference):
        raise ValueError("`host` has no layers")
    files = await trio.to_thread.run_sync(_open_files, reference, allow_dirs, abandon_on_cancel=True)
    if isinstance(reference, ArchiveReference) and reference.format == "docker":
        return DockerArchive(reference, files, wanted)
    return OciLayout(reference, files, wanted)


def _open_files(reference: LayoutReference | ArchiveReference, allow_dirs: Sequence[Path] | None) -> Files:
    try:
        path = locate(reference, allow_dirs)
        if isinstance(reference, LayoutReference):
            return DirectoryFiles(reference, path)
        return ArchiveFiles(reference, path)
    except OSError as error:
        raise ImagePullFailed(f"{reference} cannot be read: {error.strerror or error}") from error


@asynccontextmanager
async def verified_part(open_part: Callable[[], Part], layer: Layer, where: str) -> AsyncIterator[AsyncIterator[bytes]]:
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

    def update(self, data: bytes) -> None:
        if self._hash is not None:
            self._hash.update(data)

    def check(self, what: str) -> None:
        """Raises ImageInvalid when the bytes were others than stated."""
        if self._hash is None:
            return
        found = f"{self._stated.partition(':')[0]}:{self._hash.hexdigest()}"
        if found != self._stated:
            raise ImageInvalid(f"{what} is not what it says it is: its digest is {found}, stated is {self._stated}")

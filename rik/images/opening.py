"""The source for each kind of reference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import trio

from rik.images.docker_archive import DockerArchive
from rik.images.errors import ImagePullFailed
from rik.images.files import ArchiveFiles, DirectoryFiles, Files, locate
from rik.images.layout import OciLayout
from rik.images.manifest import Platform
from rik.images.reference import (
    ArchiveReference,
    HostReference,
    LayoutReference,
    Reference,
    RegistryReference,
)
from rik.images.registry.registries import Registries
from rik.images.source import Source


async def open_source(
    reference: Reference, wanted: Platform, allow_dirs: Sequence[Path] | None, registries: Registries
) -> Source:
    """The source for a reference. Raises ImageError; `host` is none (ValueError)."""
    if isinstance(reference, RegistryReference):
        return registries.source(reference, wanted)
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

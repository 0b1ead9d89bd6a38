"""A pull without a store of layers: what a source says, and the bytes of its layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import trio

from rik.images.manifest import this_platform
from rik.images.reference import RegistryReference, parse_reference
from rik.images.registry.registries import Registries
from rik.images.source import Resolved
from rik.settings import ImageSettings

LIMIT_S = 20.0


def registries_in(directory: Path, **settings: Any) -> Registries:
    return Registries(ImageSettings(**settings), directory / "downloads")


async def pull(registries: Registries, text: str) -> tuple[Resolved, list[bytes]]:
    """Raises ImageError."""
    reference = parse_reference(text)
    assert isinstance(reference, RegistryReference)
    source = registries.source(reference, this_platform())
    layers = []
    with trio.fail_after(LIMIT_S):
        resolved = await source.resolve()
        async with source.fetching(resolved.layers, lambda count: None):
            for layer in resolved.layers:
                async with source.open_layer(layer) as chunks:
                    layers.append(b"".join([chunk async for chunk in chunks]))
    return resolved, layers

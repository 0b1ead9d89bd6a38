"""What is told of an image that an instance was given. Pure."""

from __future__ import annotations

from rik.model.instance import ImageUse
from rik.model.sizes import format_bytes
from rik.model.spans import format_span


def tell_of_use(image: ImageUse, now: int) -> str:
    """One sentence: how it came to the node, or since when it was there (`now` in ms)."""
    named = not image.origin or image.reference.startswith(image.origin)
    origin = "" if named else f" from {image.origin}"
    unpacked = f"{format_bytes(image.size_bytes)} unpacked"
    if image.cached:
        since = f" (pulled {format_span(max(0, now - image.pulled_at) / 1000)} ago{origin})" if image.pulled_at else ""
        return f"{image.reference} was here already{since}: {_layers(image.layers)}, {unpacked}"
    return (
        f"{image.reference}{origin}: {image.pulled_layers} of {_layers(image.layers)}, "
        f"{format_bytes(image.pulled_bytes)} in {format_span(image.seconds)}; {unpacked}"
    )


def _layers(count: int) -> str:
    return f"{count} layer" if count == 1 else f"{count} layers"

"""What `rik describe instance` tells of an instance's images. Pure functions from a record to lines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rik.cli.amounts import absolute, age, decimal_bytes, duration
from rik.cli.imagewords import layers, left_out, port_to_publish
from rik.cli.output import clean
from rik.cli.spelling import spelled
from rik.cli.story import is_final

IMAGE_REASONS = ("ImageNotFound", "ImageUnauthorized", "ImagePullFailed", "ImageInvalid")
LABEL_WIDTH = 8

Record = Mapping[str, Any]


def image_lines(record: Record) -> list[str]:
    """For each image: its name, digest and origin, how it came to the node, what is missing, what it exposes."""
    lines = []
    for image in record.get("images") or ():
        users = ", ".join(image.get("containers") or ())
        lines.append(clean(image.get("reference")) + (f"  (of {clean(users)})" if users else ""))
        parts = [("digest", str(image.get("digest") or ""))]
        if image.get("origin"):
            parts.append(("from", str(image["origin"])))
        parts.append(("size", f"{decimal_bytes(image.get('size_bytes'))} unpacked, {layers(image)}"))
        parts.append(_how_it_came(image))
        parts += [("note", line) for line in left_out(image.get("dropped") or {})]
        parts += _exposed(record, image)
        lines += [f"  {label:<{LABEL_WIDTH}}{clean(text)}" for label, text in parts]
    return lines


def next_for_image(record: Record) -> list[str]:
    """What to type after a failure for an image's sake: the same pull again, seen from close by."""
    if record.get("reason") not in IMAGE_REASONS:
        return []
    containers = (record.get("spec") or {}).get("containers") or ()
    images = {str(container.get("image")) for container in containers}
    where = f" --node {record['node']}" if record.get("node") else ""
    if len(images) != 1:  # which of them it was, the message says
        return [spelled(f"image list{where}")]
    return [spelled(f"image pull {images.pop()}{where}")]


def _how_it_came(image: Record) -> tuple[str, str]:
    fetched = f"{decimal_bytes(image.get('pulled_bytes') or 0)} in {duration(image.get('seconds') or 0)}"
    at = f"{absolute(image['pulled_at'])} ({age(image['pulled_at'])})" if image.get("pulled_at") else ""
    if image.get("cached"):
        return "cached", "it was on the node already" + (f", pulled {at}: {fetched}" if at else "")
    count, of = image.get("pulled_layers") or 0, image.get("layers") or 0
    shared = f"; the other {of - count} were there already" if 0 < count < of else ""
    if of and not count:
        shared = "; all layers were there already"
    return "pulled", f"{count} of {layers(image)}, {fetched}{f', {at}' if at else ''}{shared}"


def _exposed(record: Record, image: Record) -> list[tuple[str, str]]:
    """The ports that the image names, when no container that runs it publishes any: and how that is done."""
    exposed = list(image.get("exposed_ports") or ())
    spec = record.get("spec") or {}
    users = image.get("containers") or ()
    if not exposed or spec.get("hostNetwork") or is_final(record):
        return []
    if any(container.get("ports") for container in spec.get("containers") or () if container.get("name") in users):
        return []
    how = f"to publish it, write {port_to_publish(exposed)} into the container"
    return [("exposes", f"{', '.join(map(str, exposed))}, which nothing publishes; {how}")]

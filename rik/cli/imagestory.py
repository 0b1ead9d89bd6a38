"""What `rik describe instance` tells of an instance's images. Pure functions from a record to lines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rik.cli.amounts import absolute, age, decimal_bytes, duration
from rik.cli.command import plural
from rik.cli.imagewords import layers, left_out, port_to_publish
from rik.cli.output import clean
from rik.cli.spelling import spelled
from rik.cli.story import is_final

IMAGE_REASONS = ("ImageNotFound", "ImageUnauthorized", "ImagePullFailed", "ImageInvalid")
HOST = "host"
LABEL_WIDTH = 8
LABELS_SHOWN = 4
LABEL_CHARS = 60
OCI_LABELS = "org.opencontainers.image."
# What is asked for first: which version it is, and where it was made.
FIRST_LABELS = tuple(OCI_LABELS + name for name in ("version", "source", "revision", "title"))

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
        parts += _labels(image.get("labels") or {})
        parts += [("note", line) for line in left_out(image.get("dropped") or {})]
        parts += _exposed(record, image)
        lines += [f"  {label:<{LABEL_WIDTH}}{clean(text)}" for label, text in parts]
    return lines


def next_for_image(record: Record) -> list[str]:
    """What to type after a failure for an image's sake: the same pull again, seen from close by. What is no reference
    can be mended in the document alone."""
    if record.get("reason") not in IMAGE_REASONS:
        return []
    wrong = wrong_references(record)
    if wrong:
        names = ", ".join(f"`{clean(_cut(image))}`" for image in wrong)
        return [f"write another image for {names}, then {spelled('create workload -f FILE')}"]
    images = _images(record)
    where = f" --node {record['node']}" if record.get("node") else ""
    if len(images) != 1 or HOST in images:  # which of them it was, the message says
        return [spelled(f"image list{where}")]
    return [spelled(f"image pull {images[0]}{where}")]


def wrong_references(record: Record) -> list[str]:
    """The images that no node could pull, of an instance that failed for being given one."""
    from rik.images.errors import ImageInvalid
    from rik.images.reference import parse_reference

    wrong = []
    for image in _images(record) if record.get("reason") == "ImageInvalid" else ():
        try:
            parse_reference(image)
        except ImageInvalid:
            wrong.append(image)
    return wrong


def _images(record: Record) -> list[str]:
    containers = (record.get("spec") or {}).get("containers") or ()
    return list(dict.fromkeys(str(container.get("image")) for container in containers))


def _how_it_came(image: Record) -> tuple[str, str]:
    fetched = f"{decimal_bytes(image.get('pulled_bytes') or 0)} in {duration(image.get('seconds') or 0)}"
    at = f"{absolute(image['pulled_at'])} ({age(image['pulled_at'])})" if image.get("pulled_at") else ""
    if image.get("cached"):
        return "cached", "it was on the node already" + (f", pulled {at}: {fetched}" if at else "")
    count, of = image.get("pulled_layers") or 0, image.get("layers") or 0
    rest = of - count
    shared = f"; the other {f'{rest} were' if rest > 1 else 'one was'} there already" if 0 < count < of else ""
    if of and not count:
        shared = "; all layers were there already"
    return "pulled", f"{count} of {layers(image)}, {fetched}{f', {at}' if at else ''}{shared}"


def _labels(labels: Record) -> list[tuple[str, str]]:
    """A few of them, the standard ones first and by their short names; of the rest, how many there are."""

    def rank(name: str) -> tuple[int, bool]:
        first = FIRST_LABELS.index(name) if name in FIRST_LABELS else len(FIRST_LABELS)
        return first, not name.startswith(OCI_LABELS)

    told = sorted((name for name, value in labels.items() if value), key=rank)[:LABELS_SHOWN]
    words = [f"{_cut(name.removeprefix(OCI_LABELS))} {_cut(str(labels[name]))}" for name in told]
    rest = len(labels) - len(told)
    if rest:
        words.append(f"{rest} more in -o json" if told else f"{plural(rest, 'label')} in -o json")
    return [("labels", ", ".join(words))] if words else []


def _cut(text: str) -> str:
    return text if len(text) <= LABEL_CHARS else text[: LABEL_CHARS - 1] + "…"


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

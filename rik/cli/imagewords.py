"""An image in words: what it is called, how it came to a node, what of it was left out. Pure functions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rik.cli.amounts import decimal_bytes, duration
from rik.cli.command import listed, plural

DIGEST_CHARS = 12  # of 64: as other tools shorten them; unique enough to be looked up
UNNAMED = "(no name)"
EXAMPLE_PORT = 8080

# What a node could not keep of an image: what one and several of them are called, and why they were left out.
LEFT_OUT = {
    "devices": ("device", "devices", "were left out: only root may make them"),
    "owners": ("owner", "owners", "could not be kept: this node has no such user ids to give"),
    "xattrs": ("extended attribute", "extended attributes", "could not be kept on this file system"),
    "other": ("file", "files", "of a kind that layers do not have were left out"),
}

Json = Mapping[str, Any]


def short_digest(digest: str) -> str:
    """`sha256:0123456789ab`."""
    kind, _, value = digest.partition(":")
    return f"{kind}:{value[:DIGEST_CHARS]}"


def short_reference(reference: str) -> str:
    """The reference with its digest, if any, shortened."""
    name, at, digest = reference.partition("@")
    return f"{name}@{short_digest(digest)}" if at else reference


def references(image: Json, *, full: bool = False) -> str:
    """What a stored image is called: all its names, or the first and how many more."""
    names = [str(name) if full else short_reference(str(name)) for name in image.get("references") or ()]
    return listed(names, len(names) if full else 1) or UNNAMED


def layers(image: Json) -> str:
    return plural(int(image.get("layers") or 0), "layer")


def pulled(image: Json) -> str:
    """`3 of 3 layers, 3.4 MB in 1.2 s, 7.8 MB unpacked`."""
    fetched = f"{decimal_bytes(image.get('pulled_bytes') or 0)} in {duration(image.get('seconds') or 0)}"
    unpacked = f"{decimal_bytes(image.get('size_bytes') or 0)} unpacked"
    return f"{image.get('pulled_layers') or 0} of {layers(image)}, {fetched}, {unpacked}"


def left_out(dropped: Json) -> list[str]:
    """A sentence for each kind: `2 devices were left out: only root may make them`."""
    lines = []
    for kind, count in dropped.items():
        if not count:
            continue
        one, several, what = LEFT_OUT.get(kind, (kind, kind, "could not be kept"))
        lines.append(f"{plural(count, one, several)} {what.replace('were', 'was', 1) if count == 1 else what}")
    return lines


def port_to_publish(exposed: Sequence[str]) -> str:
    """The JSON that publishes the first exposed port (`80/tcp`) of a container: its `ports`."""
    target, _, protocol = exposed[0].partition("/")
    number = int(target.partition("-")[0]) if target.partition("-")[0].isdecimal() else 0
    port: dict[str, Any] = {"port": number if number >= 1024 else EXAMPLE_PORT, "targetPort": number}
    if protocol.lower() == "udp":
        port["protocol"] = "UDP"
    return json.dumps({"ports": [port]})[1:-1]

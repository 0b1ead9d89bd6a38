"""An image in words: what it is called, how it came to a node, what of it was left out. Pure functions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rik.cli.amounts import decimal_bytes, duration
from rik.cli.command import plural

DIGEST_CHARS = 12  # of 64: as other tools shorten them; unique enough to be looked up
UNNAMED = "(no name)"
EXAMPLE_PORT = 8080

# What a node could not keep of an image: of one, and of several.
LEFT_OUT = {
    "devices": ("{} device was left out: not allowed here", "{} devices were left out: not allowed here"),
    "owners": (
        "{} file belongs to another user than in the image: this node has no such id to give",
        "{} files belong to other users than in the image: this node has no such ids to give",
    ),
    "xattrs": (
        "{} extended attribute was left out: not allowed here",
        "{} extended attributes were left out: not allowed here",
    ),
    "other": ("{} entry of an unknown kind was left out", "{} entries of unknown kinds were left out"),
}

Json = Mapping[str, Any]


def short_digest(digest: str) -> str:
    """`sha256:0123456789ab`."""
    kind, _, value = digest.partition(":")
    return f"{kind}:{value[:DIGEST_CHARS]}"


def digest_cell(image: Json) -> str:
    """`0123456789ab`: what a table has room for."""
    return short_digest(str(image.get("digest") or "")).partition(":")[2]


def short_reference(reference: str) -> str:
    """The reference with its digest, if any, shortened."""
    name, at, digest = reference.partition("@")
    return f"{name}@{short_digest(digest)}" if at else reference


def references(image: Json, *, full: bool = False) -> str:
    """What a stored image is called: all its names, or the first and how many more: `alpine:3.20 (+1)`."""
    names = [str(name) for name in image.get("references") or ()]
    if full or not names:
        return ", ".join(names) or UNNAMED
    return short_reference(names[0]) + (f" (+{len(names) - 1})" if len(names) > 1 else "")


def layers(image: Json) -> str:
    return plural(int(image.get("layers") or 0), "layer")


def pulled(image: Json) -> str:
    """`3 of 3 layers, 3.4 MB in 1.2 s, 7.8 MB unpacked`."""
    fetched = f"{decimal_bytes(image.get('pulled_bytes') or 0)} in {duration(image.get('seconds') or 0)}"
    unpacked = f"{decimal_bytes(image.get('size_bytes') or 0)} unpacked"
    return f"{image.get('pulled_layers') or 0} of {layers(image)}, {fetched}, {unpacked}"


def left_out(dropped: Json) -> list[str]:
    """A sentence for each kind: `2 devices were left out: not allowed here`."""
    lines = []
    for kind, count in dropped.items():
        one, several = LEFT_OUT.get(kind, (f"{{}} {kind} was left out", f"{{}} {kind} were left out"))
        if count:
            lines.append((one if count == 1 else several).format(f"{count:,}"))
    return lines


def port_to_publish(exposed: Sequence[str]) -> str:
    """The JSON that publishes the first exposed port (`80/tcp`) of a container: its `ports`."""
    target, _, protocol = exposed[0].partition("/")
    number = int(target.partition("-")[0]) if target.partition("-")[0].isdecimal() else 0
    port: dict[str, Any] = {"port": number if number >= 1024 else EXAMPLE_PORT, "targetPort": number}
    if protocol.lower() == "udp":
        port["protocol"] = "UDP"
    return json.dumps({"ports": [port]})[1:-1]

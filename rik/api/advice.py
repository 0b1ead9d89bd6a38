"""What a workload document is warned of beyond what `rik.model.document` knows: images that cannot be pulled. Pure."""

from __future__ import annotations

from typing import Any

from rik.images.errors import ImageInvalid
from rik.images.reference import parse_reference
from rik.model.document import MAX_WARNINGS
from rik.model.workload import FUNCTION


def image_warnings(document: dict[str, Any]) -> list[str]:
    """A sentence, after the JSON pointer, for each image of a (checked) document that is no reference; at most
    `MAX_WARNINGS`. Its instances will fail with it; it is no error, because such documents have always been taken."""
    if document.get("kind") == FUNCTION:  # none of its containers runs, of which it is warned already
        return []
    containers = (document.get("spec") or {}).get("containers") or ()
    found = []
    for index, container in enumerate(containers):
        try:
            parse_reference(container["image"])
        except ImageInvalid as error:
            found.append(f"/spec/containers/{index}/image: {error.message}")
    return found[:MAX_WARNINGS]

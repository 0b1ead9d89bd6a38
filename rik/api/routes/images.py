"""Images: what nodes have, pulling, pruning."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from rik.api import problem
from rik.api.images import InvalidImage, Line, Pulls, list_images, prune_images, pull_image
from rik.api.operations import (
    API,
    GET,
    JSON_LINES,
    POST,
    Call,
    Operation,
    Outcome,
    Parameter,
    Reply,
    decode_body,
    encode,
)
from rik.api.schemas import BOOLEAN, TEXT, array, ref
from rik.api.service import Service
from rik.errors import FieldError, RikError

# Names the nodes whose images are not in the list, because they could not be asked; separated by commas.
UNANSWERED_HEADER = "Rik-Unanswered"
# Three centuries: beyond that a time no longer is one.
MAX_UNUSED_S = 1e10


class PullBody(msgspec.Struct, frozen=True):
    """Which image, to which node (id or name)."""

    image: str | None = None
    node: str | None = None


class PruneBody(msgspec.Struct, frozen=True):
    """Where (id or name; every Ready node), how long unused (0: at this moment), and whether only to look."""

    node: str | None = None
    unused_s: Annotated[float, msgspec.Meta(ge=0, le=MAX_UNUSED_S)] | None = None
    dry_run: bool | None = None


async def list_all(service: Service, call: Call) -> Reply:
    listed = await list_images(service, call.query["node"] or "")
    return encode(listed.entries, headers={UNANSWERED_HEADER: ",".join(listed.unanswered)} if listed.unanswered else {})


async def pull(service: Service, call: Call) -> Reply:
    body = await call.json(PullBody)
    if body.image is None:
        sentence = "`image` is required: the reference of the image to pull"
        raise InvalidImage(sentence, (FieldError("/image", sentence),))
    if call.query["stream"]:
        pulls = await Pulls.open(service, body.image, body.node or "")
        return Reply(200, PullLines(pulls), JSON_LINES)
    return encode(await pull_image(service, body.image, body.node or ""))


async def prune(service: Service, call: Call) -> Reply:
    data = await call.bytes()
    body = decode_body(data, PruneBody) if data.strip() else PruneBody()
    found = await prune_images(service, body.node or "", body.unused_s or 0.0, dry_run=bool(body.dry_run))
    return encode(found)


class PullLines:
    """A pull as lines of JSON, as it goes."""

    def __init__(self, pulls: Pulls) -> None:
        self._pulls = pulls

    async def chunk(self) -> bytes | None:
        """What nodes have just said; failures are told in a line: the answer's status has long been sent."""
        lines = await self._pulls.next()
        return b"".join(msgspec.json.encode(_render(line)) + b"\n" for line in lines) or None

    async def aclose(self) -> None:
        await self._pulls.aclose()


def _render(line: Line) -> dict[str, Any]:
    if isinstance(line.value, RikError):
        body = problem.of_exception(line.value, POST, 0).body
        assert isinstance(body, bytes)
        return {"type": "error", "node": line.node, "problem": msgspec.Raw(body)}
    return {"type": line.value["type"], "node": line.node, **line.value}


OPERATIONS = (
    Operation(
        "images.list",
        GET,
        f"{API}/images.list",
        f"What each node has, the last used first. Nodes that cannot be asked are left out, and named by the header "
        f"`{UNANSWERED_HEADER}`; when that is the chosen one, or all of them, the answer is a problem.",
        "images",
        list_all,
        parameters=(Parameter("node", "text", "Only this node's (id or name)."),),
        outcomes={200: Outcome("The images, an entry for each node that has it.", array(ref("ImageEntry")))},
    ),
    Operation(
        "images.pull",
        POST,
        f"{API}/images.pull",
        "Bring an image to a node, or to every Ready node; its source is asked even when it is there. Answers when all "
        "have it, or with the first failure; with `stream` at once, by lines of JSON: progress at most twice a second "
        "and at least every 5 s, and at last an image or an error for each node. To hang up is to give it up.",
        "images",
        pull,
        parameters=(Parameter("stream", "boolean", "Follow it, line by line."),),
        body={
            "type": "object",
            "properties": {"image": TEXT, "node": {**TEXT, "description": "Id or name; every Ready node by default."}},
            "required": ["image"],
        },
        outcomes={200: Outcome("Where it is now.", ref("Pulled"), lines=ref("PullLine"))},
    ),
    Operation(
        "images.prune",
        POST,
        f"{API}/images.prune",
        "Remove what no instance uses, and nothing has used for so many seconds.",
        "images",
        prune,
        body={
            "type": "object",
            "properties": {
                "node": {**TEXT, "description": "Id or name; every Ready node by default."},
                "unused_s": {"type": "number", "minimum": 0, "maximum": MAX_UNUSED_S, "default": 0},
                "dry_run": {**BOOLEAN, "description": "Only say what would go."},
            },
        },
        outcomes={200: Outcome("What went, and what is left.", ref("PrunedImages"))},
    ),
)

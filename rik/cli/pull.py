"""What `rik image pull` does: follow a pull on each node with its progress, and say what came."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from types import TracebackType
from typing import Any

from rik.cli.amounts import decimal_bytes
from rik.cli.board import BAR_WIDTH, BAR_WIDTH_NARROW, REFRESHES_PER_S, WIDE_COLUMNS
from rik.cli.client import Client, refusal
from rik.cli.document import absolute_image
from rik.cli.errors import EXIT_FAILED, CommandError, RequestRefused, Usage
from rik.cli.imagewords import left_out, pulled, short_digest, short_reference
from rik.cli.output import clean, console, is_terminal, note, say
from rik.cli.progress import Milestones, Speed, phrase
from rik.cli.spelling import spelled

SILENCE_S = 60.0  # a node tells of its pull at least every 5 s
NEXT_STEPS = {
    "ImageNotFound": "check its name and tag",
    "ImageUnauthorized": "docker login REGISTRY on the node as the user RIK runs as, or put credentials into "
    "~/.docker/config.json there",
}

Frame = Mapping[str, Any]


def checked_reference(image: str) -> str:
    """The image as the server is to be asked for it. Raises Usage when it is none, or nothing that can be pulled."""
    from rik.images.errors import ImageInvalid
    from rik.images.reference import HOST, parse_reference

    try:
        parse_reference(image)
    except ImageInvalid as error:
        raise Usage(error.message, next_step=error.next_step or "name an image such as alpine:3.20") from error
    if image == HOST:
        raise Usage(
            "the image `host` is each node's own file system: there is nothing to pull",
            next_step=f"run it: {spelled('run host -- COMMAND…')}",
        )
    return absolute_image(image)


def pull(client: Client, image: str, node: str | None, *, quiet: bool) -> int:
    """Pulls on `node`, or on every node that is ready; the exit code. What failed on one node does not stop others."""
    nodes = [node] if node else _ready_nodes(client)
    board: AbstractContextManager[PlainPulls | LivePulls | None] = nullcontext() if quiet else _board(nodes)
    body = {"image": image, **({"node": node} if node else {})}
    digests: dict[str, None] = {}
    errors: list[RequestRefused] = []
    frames = client.post_stream("images.pull", body, query={"stream": "true"}, silence_s=SILENCE_S)
    with closing(frames), board as shown:
        for frame in frames:
            if frame["type"] == "error":
                errors.append(_failure(frame, several=len(nodes) > 1))
            elif frame["type"] == "image":
                digests[str(frame["digest"])] = None
            if shown is not None:
                shown.take(frame)
    if quiet:
        for digest in digests:
            say(digest)
    for error in errors:
        note(f"error: {error.message}" + (f"\nnext: {error.next_step}" if error.next_step else ""))
    if not digests and not errors:
        raise CommandError(
            "the server ended its answer before it said what became of the pull",
            next_step=f"see what is there: {spelled('image list')}",
        )
    return EXIT_FAILED if errors else 0


def told(image: Frame, where: str = "") -> list[str]:
    """The lines that say what came; `where` is put before them, when there are several nodes."""
    name, digest = short_reference(clean(image.get("reference"))), short_digest(clean(image.get("digest")))
    if image.get("cached"):
        return [f"{where}{name} is up to date  {digest}"]
    origin = f"  from {clean(image['origin'])}" if image.get("origin") else ""
    return [
        f"{where}pulled {name}  {digest}{origin}: {pulled(image)}",
        *(f"{where}  {line}" for line in left_out(image.get("dropped") or {})),
    ]


def _ready_nodes(client: Client) -> list[str]:
    entries = client.get("nodes.list").json()
    return [str(entry["name"]) for entry in entries if entry.get("value", entry).get("status") == "Ready"]


def _failure(frame: Frame, *, several: bool) -> RequestRefused:
    """The error of a node, with its reason and, when there are others, its name."""
    problem = frame["problem"]
    error = refusal(int(problem.get("status") or 500), json.dumps(problem).encode())
    where = f"{frame.get('node')}: " if several else ""
    reason = f"{error.reason}: " if error.reason.startswith("Image") else ""  # others say less than their sentence
    return RequestRefused(
        f"{where}{reason}{clean(error.message)}",
        status=error.status,
        reason=error.reason,
        next_step=str(problem.get("next") or "") or NEXT_STEPS.get(error.reason, error.next_step),
    )


def _board(nodes: Sequence[str]) -> AbstractContextManager[PlainPulls | LivePulls]:
    return LivePulls(nodes) if is_terminal() else nullcontext(PlainPulls(nodes))


class PlainPulls:
    """A line for each tenth, layer or few seconds of a pull, and for what came of it."""

    def __init__(self, nodes: Sequence[str]) -> None:
        self._several = len(nodes) > 1
        self._milestones = Milestones()

    def take(self, frame: Frame) -> None:
        node = str(frame.get("node"))
        where = f"{node}: " if self._several else ""
        if frame["type"] == "image":
            for line in told(frame, where):
                say(line)
        elif frame["type"] == "progress" and self._milestones.worth_a_line(node, frame["step"], frame):
            line = phrase(frame["step"], frame)
            if line != frame["step"]:  # else there is nothing to tell yet
                say(f"{where}{line}")


class LivePulls:
    """A row for each node that is at it, with a bar; what came is said above, and the rows go."""

    def __init__(self, nodes: Sequence[str]) -> None:
        from rich.live import Live

        self._width = max(map(len, nodes), default=0) if len(nodes) > 1 else 0
        self._rows: dict[str, tuple[Frame, float | None]] = {}
        self._speeds: dict[str, Speed] = {}
        self._spinners: dict[str, Any] = {}
        self._screen = console(sys.stdout)
        self._live = Live(
            console=self._screen, refresh_per_second=REFRESHES_PER_S, get_renderable=self._draw, transient=True
        )

    def __enter__(self) -> LivePulls:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)

    def take(self, frame: Frame) -> None:
        from rich.text import Text

        node = str(frame.get("node"))
        if frame["type"] == "progress":
            speed = self._speeds.setdefault(node, Speed()).take(frame["step"], frame.get("done") or 0)
            self._rows[node] = frame, speed
            return
        self._rows.pop(node, None)
        if frame["type"] == "image":
            for line in told(frame, f"{node}: " if self._width else ""):
                self._screen.print(Text(line), soft_wrap=True)

    def _draw(self) -> Any:
        from rich.progress_bar import ProgressBar
        from rich.spinner import Spinner
        from rich.table import Table
        from rich.text import Text

        columns = self._screen.width
        bar_width = BAR_WIDTH if columns >= WIDE_COLUMNS else BAR_WIDTH_NARROW
        room = columns - len("⠋ ") - (self._width + 1 if self._width else 0) - bar_width - 1
        grid = Table.grid(padding=(0, 1))
        for node, (frame, speed) in self._rows.items():
            text = phrase(frame["step"], frame, room)
            rate = f"  {decimal_bytes(round(speed))}/s" if speed else ""
            bar = ProgressBar(total=frame.get("total") or None, completed=frame.get("done") or 0, width=bar_width)
            spinner = self._spinners.setdefault(node, Spinner("dots"))
            name = [Text(node, no_wrap=True)] if self._width else []
            grid.add_row(spinner, *name, bar, Text(text + rate if len(text + rate) <= room else text, no_wrap=True))
        return grid

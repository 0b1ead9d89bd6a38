"""Images on nodes, without HTTP: each question goes to the workers concerned, to several at a time.

Raises `Refused`, `Unavailable` and `StreamFailed`, as the rest of the service does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import trio

from rik.api.operations import MalformedBody
from rik.api.service import STREAM_DEADLINE_S, Service
from rik.api.streams import GOODBYE, cancel_when
from rik.errors import FieldError, NodeUnavailable, RikError, Unavailable
from rik.images.errors import ImageInvalid
from rik.images.reference import HostReference, parse_reference
from rik.link.base import Stream, StreamFailed
from rik.messages import ListImages, PruneImages, PullImage, StreamRequest
from rik.model.node import Node, NodeStatus

# Removing fifty gigabytes of small files takes its time.
PRUNE_DEADLINE_S = 600.0
# A worker says something of a pull every 5 s; one that has said nothing for so long is gone.
SILENCE_S = 30.0


class InvalidImage(MalformedBody):
    """The body names no image that could be pulled."""

    title = "Bad request"
    reason = "ImageInvalid"


class Listed(NamedTuple):
    """Entries of `images.list`; `unanswered` are the names of nodes that could not be asked."""

    entries: list[dict[str, Any]]
    unanswered: list[str]


async def list_images(service: Service, node: str) -> Listed:
    """Of one node (id or name), or of all that answer. Raises NotFound, and what went wrong when none answers."""
    nodes = [service.node(node)] if node else sorted(service.view.nodes.values(), key=_by_name)
    entries: list[dict[str, Any]] = []
    problems: dict[str, RikError] = {}
    for asked, answer in await _ask_each(service, nodes, ListImages(), STREAM_DEADLINE_S):
        if isinstance(answer, RikError):
            problems[asked.name] = answer
        else:
            entries += [_entry(asked.name, image) for image in answer["images"]]
    if problems and len(problems) == len(nodes):
        raise next(iter(problems.values()))
    return Listed(entries, list(problems))


def _entry(node: str, image: dict[str, Any]) -> dict[str, Any]:
    name = next(iter(image["references"]), image["digest"])
    return {"id": image["digest"], "name": name, "value": {"node": node, **image}}


async def prune_images(service: Service, node: str, unused_s: float, *, dry_run: bool) -> dict[str, Any]:
    """On one node, or on every Ready one. The first failure is raised, whatever other nodes have removed."""
    nodes = _of_choice(service, node)
    found: list[dict[str, Any]] = []
    for asked, answer in await _ask_each(service, nodes, PruneImages(unused_s, dry_run), PRUNE_DEADLINE_S):
        if isinstance(answer, RikError):
            raise answer
        found.append({"node": asked.name, **answer})
    return {"nodes": found, "freed_bytes": sum(one["freed_bytes"] for one in found)}


async def pull_image(service: Service, image: str, node: str) -> dict[str, Any]:
    """To one node, or to every Ready one, however long it takes. The first failure is raised, and ends the others."""
    pulled: list[dict[str, Any]] = []
    async with await Pulls.open(service, image, node) as pulls:
        while lines := await pulls.next():
            for line in lines:
                if isinstance(line.value, StreamFailed) and pulls.count > 1:
                    raise _located(line.value, line.node)
                if isinstance(line.value, RikError):
                    raise line.value
                if line.value["type"] == "image":
                    pulled.append({"node": line.node, **{k: v for k, v in line.value.items() if k != "type"}})
    return {"image": image, "pulled": sorted(pulled, key=lambda one: str(one["node"]))}


class Line(NamedTuple):
    """What one node says of its pull: progress, the image, or why there is none. The latter two are its last."""

    node: str
    value: dict[str, Any] | RikError


class Pulls:
    """One image on its way to `count` nodes. Closing it gives up what is not there yet."""

    def __init__(self, closing: trio.Event) -> None:
        self.count = 0
        self._closing = closing
        self._streams: dict[str, Stream] = {}
        self._deadlines: dict[str, float] = {}
        self._rests: dict[str, bytes] = {}
        self._refused: list[Line] = []

    @classmethod
    async def open(cls, service: Service, image: str, node: str) -> Pulls:
        """Raises InvalidImage, NotFound, and NodeUnavailable when the one node, or every node, cannot be reached."""
        _check(image)
        pulls = cls(service.closing)
        try:
            for wanted in _of_choice(service, node):
                pulls.count += 1
                try:
                    stream = await service.open_stream(wanted.id, wanted.name, PullImage(image))
                except NodeUnavailable as error:
                    if node:
                        raise
                    pulls._refused.append(Line(wanted.name, error))
                else:
                    pulls._streams[wanted.name] = stream
                    pulls._deadlines[wanted.name] = trio.current_time() + SILENCE_S
                    pulls._rests[wanted.name] = b""
        except BaseException:
            await pulls.aclose()
            raise
        return pulls

    async def __aenter__(self) -> Pulls:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        with trio.CancelScope(shield=True):
            for stream in self._streams.values():
                await stream.aclose()
        self._streams.clear()

    async def next(self) -> list[Line]:
        """Waits until some node has said something; [] once all have said their last."""
        found, self._refused = self._refused, []
        while not found and self._streams:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(cancel_when, self._closing, nursery.cancel_scope)
                for name in self._streams:
                    nursery.start_soon(self._receive, name, found, nursery.cancel_scope)
            if self._closing.is_set():
                found += [Line(name, Unavailable(GOODBYE)) for name in self._streams]
            for line in found:
                if isinstance(line.value, RikError) or line.value["type"] == "image":
                    await self._end(line.node)
        return found

    async def _receive(self, name: str, found: list[Line], heard: trio.CancelScope) -> None:
        problem: RikError
        with trio.move_on_at(self._deadlines[name]) as limit:
            try:
                frame = await self._streams[name].receive()
            except StreamFailed as failure:
                problem = failure
            else:
                if frame is not None:
                    self._deadlines[name] = trio.current_time() + SILENCE_S
                    *lines, self._rests[name] = (self._rests[name] + frame).split(b"\n")
                    found += [Line(name, msgspec.json.decode(line)) for line in lines if line]
                    heard.cancel()
                    return
                problem = NodeUnavailable(f"node {name} disconnected before it had the image")
        if limit.cancelled_caught:
            problem = NodeUnavailable(f"node {name} has said nothing of its pull for {SILENCE_S:.0f} s")
        found.append(Line(name, problem))
        heard.cancel()

    async def _end(self, name: str) -> None:
        stream = self._streams.pop(name, None)
        if stream is not None:
            with trio.CancelScope(shield=True):
                await stream.aclose()


def _check(image: str) -> None:
    """What any worker would refuse, before one is asked. Raises InvalidImage."""
    try:
        reference = parse_reference(image)
    except ImageInvalid as error:
        raise InvalidImage(error.message, (FieldError("/image", error.message),)) from None
    if isinstance(reference, HostReference):
        message = "`host` is the node's own file system: there is nothing to pull"
        raise InvalidImage(message, (FieldError("/image", message),))


def _of_choice(service: Service, node: str) -> list[Node]:
    """The named one, or every Ready one. Raises NotFound, NodeUnavailable when none is Ready."""
    if node:
        return [service.node(node)]
    ready = [one for one in service.view.nodes.values() if one.status is NodeStatus.READY]
    if not ready:
        raise NodeUnavailable("no node is Ready", next_step="see `rik get nodes`")
    return sorted(ready, key=_by_name)


def _located(failure: StreamFailed, node: str) -> StreamFailed:
    """The same, naming the node, for who asked several."""
    message = f"node {node}: {failure.message}"
    return StreamFailed(message, status=failure.http_status, reason=failure.reason, next_step=failure.next_step)


def _by_name(node: Node) -> tuple[str, int, str]:
    return node.name, node.created_at, node.id


async def _ask_each(
    service: Service, nodes: Sequence[Node], request: StreamRequest, deadline_s: float
) -> list[tuple[Node, dict[str, Any] | RikError]]:
    """The answers of all, at once, in the order of the nodes; a failure stands in the place of an answer."""
    answers: dict[str, dict[str, Any] | RikError] = {}

    async def ask(node: Node) -> None:
        try:
            answers[node.id] = msgspec.json.decode(await service.ask_worker(node.id, node.name, request, deadline_s))
        except msgspec.DecodeError:
            answers[node.id] = NodeUnavailable(f"node {node.name} disconnected while it answered")
        except StreamFailed as failure:
            answers[node.id] = _located(failure, node.name) if len(nodes) > 1 else failure
        except Unavailable as error:
            answers[node.id] = error

    async with trio.open_nursery() as nursery:
        for node in nodes:
            nursery.start_soon(ask, node)
    return [(node, answers[node.id]) for node in nodes]

"""Which link leads to which node: how the api reaches a worker for logs, exec, stats and audits."""

from __future__ import annotations

from rik.errors import NodeUnavailable
from rik.link.base import Link, LinkClosed, Stream
from rik.messages import FromWorker, StreamRequest, ToWorker


class Switchboard:
    """Kept by the host; the scheduler attaches a node's link when its worker has said hello."""

    def __init__(self) -> None:
        self._links: dict[str, Link[ToWorker, FromWorker]] = {}

    def attach(self, node: str, link: Link[ToWorker, FromWorker]) -> None:
        """The latest link of a node wins."""
        self._links[node] = link

    def detach(self, node: str, link: Link[ToWorker, FromWorker]) -> None:
        """Only if it is still that one."""
        if self._links.get(node) is link:
            del self._links[node]

    async def open(self, node: str, request: StreamRequest) -> Stream:
        """A stream to the worker of `node`. Raises NodeUnavailable when it is not connected."""
        link = self._links.get(node)
        if link is None:
            raise NodeUnavailable(f"node {node} is not connected", next_step="see `rik get nodes`")
        try:
            return await link.open_stream(request)
        except LinkClosed:
            raise NodeUnavailable(f"node {node} has just disconnected", next_step="see `rik get nodes`") from None

"""A watcher that outlives the server: it resumes where it was, and knows a hole or a repeat when it sees one."""

from __future__ import annotations

import json
from typing import Any

import trio
from trio_websocket import ConnectionClosed, HandshakeError, open_websocket_url

RECONNECT_S = 0.05


class Watcher:
    """Collects the numbered frames of `instances.watch`, from revision `since` on, over any number of connections."""

    def __init__(self, since: int = 0) -> None:
        self.revision = since
        self.frames: list[dict[str, Any]] = []
        self.gaps = 0
        self.connections = 0
        self._url = ""
        self._moved = trio.Event()

    def follow(self, url: str) -> None:
        """From now on the server is there."""
        self._url = url.replace("http", "ws", 1)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                url = f"{self._url}/api/v0/instances.watch?since={self.revision}"
                async with open_websocket_url(url, connect_timeout=5) as socket:
                    self.connections += 1
                    while True:
                        self._take(json.loads(await socket.get_message()))
            except* (ConnectionClosed, HandshakeError, OSError):
                pass
            await trio.sleep(RECONNECT_S)

    def _take(self, frame: dict[str, Any]) -> None:
        if frame["type"] == "gap":
            self.gaps += 1
        if frame["type"] == "instance":
            self.frames.append(frame)
        if frame["type"] in ("instance", "sync", "snapshot"):
            assert frame["revision"] >= self.revision, f"{frame} after revision {self.revision}"
            self.revision = frame["revision"]
            self._moved.set()
            self._moved = trio.Event()

    async def reached(self, revision: int) -> None:
        """Returns once everything up to `revision` has been seen."""
        while self.revision < revision:
            await self._moved.wait()

    def told(self) -> list[tuple[int, str, str, str]]:
        """(revision, op, uid, status) of every numbered frame, in the order of arrival."""
        return [
            (frame["revision"], frame["op"], frame["instance"]["uid"], frame["instance"]["status"])
            for frame in self.frames
        ]

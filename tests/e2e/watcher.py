"""A watcher that outlives the server: it resumes where it was, and knows a hole or a repeat when it sees one."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlsplit

import trio
from trio_websocket import ConnectionClosed, HandshakeError, wrap_client_stream

RECONNECT_S = 0.05
HANDSHAKE_S = 5.0


class Watcher:
    """Collects the numbered frames of `instances.watch`, from revision `since` on, over any number of connections."""

    def __init__(self, since: int = 0) -> None:
        self.revision = since
        self.frames: list[dict[str, Any]] = []
        self.gaps = 0
        self.connections = 0
        self._host, self._port = "", 0
        self._moved = trio.Event()

    def follow(self, url: str) -> None:
        """From now on the server is there."""
        where = urlsplit(url)
        assert where.hostname and where.port
        self._host, self._port = where.hostname, where.port

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                with trio.fail_after(HANDSHAKE_S):
                    stream = await trio.open_tcp_stream(self._host, self._port)
                async with stream, trio.open_nursery() as nursery:
                    with trio.fail_after(HANDSHAKE_S):
                        socket = await wrap_client_stream(
                            nursery,
                            stream,
                            f"{self._host}:{self._port}",
                            f"/api/v0/instances.watch?since={self.revision}",
                        )
                    self.connections += 1
                    while True:
                        self._take(json.loads(await socket.get_message()))
            except* (ConnectionClosed, HandshakeError, OSError, trio.TooSlowError):
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

"""A watcher that never reads slows nobody, costs bounded memory, is told of its gap, and does not hold up the end."""

from __future__ import annotations

import json
import time
from datetime import datetime
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
import trio
from trio_websocket import open_websocket_url

from tests.e2e.server import Client, pod, serving
from tests.neverreading import never_reading_watcher

INSTANCES = 300
ROUNDS = 5


@pytest.mark.slow
async def test_one_that_never_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Beside a client that never reads another one gets every frame in time, and the server ends when told to."""
    delays: list[float] = []
    revisions: list[int] = []
    async with serving(tmp_path / "data", "--runtime", "fake") as server, Client(server.url) as client:
        slow = never_reading_watcher(urlsplit(server.url).port or 0)
        assert slow.recv(12) == b"HTTP/1.1 101"
        await client.post("workloads.create", pod("w", {"name": "main", "image": "host", "command": ["x"]}))
        before = psutil.Process(server.pid).memory_info().rss
        async with open_websocket_url(server.url.replace("http", "ws", 1) + "/api/v0/instances.watch") as quick:
            await quick.get_message()
            async with trio.open_nursery() as nursery:

                async def churn() -> None:
                    for _ in range(ROUNDS):
                        names = await client.post("instances.create", {"workload_id": "w", "replicas": INSTANCES})
                        for name in names[:20]:
                            await client.post("instances.delete", {"id": name})
                    await client.post("workloads.delete", {"name": "w"})

                nursery.start_soon(churn)
                gone = 0
                with trio.fail_after(120):
                    while gone < ROUNDS * INSTANCES:
                        frame = json.loads(await quick.get_message())
                        assert frame["type"] != "gap"
                        if frame["type"] != "instance":
                            continue
                        gone += frame["op"] == "delete"
                        revisions.append(frame["revision"])
                        told = datetime.fromisoformat(frame["instance"]["updated_at"]).timestamp()
                        delays.append(time.time() - told)
        assert revisions == sorted(set(revisions)), "a frame was lost, repeated, or out of order"
        grown = psutil.Process(server.pid).memory_info().rss - before
        assert grown < 200 * 2**20, "memory must not follow what one client leaves unread"
        with trio.fail_after(10):
            assert await server.stop() == 0
        slow.close()
    delays.sort()
    with capsys.disabled():
        print(
            f"\nbeside one that never reads, {len(delays)} frames: median {delays[len(delays) // 2] * 1000:.0f} ms, "
            f"p99 {delays[int(len(delays) * 0.99)] * 1000:.0f} ms; the server grew {grown / 2**20:.0f} MiB"
        )

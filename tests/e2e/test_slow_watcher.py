"""A watcher that never reads slows nobody, costs bounded memory, and does not hold up the end."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
import trio
from trio_websocket import open_websocket_url

from tests.e2e.server import Client, Server, pod, serving
from tests.neverreading import never_reading_watcher

INSTANCES = 200
ROUNDS = 4
MOST_GROWTH_BYTES = 200 * 2**20


async def watch_a_churn(server: Server, client: Client) -> list[float]:
    """Seconds from each change to its frame, while hundreds of instances come and go; every frame came, once."""
    delays: list[float] = []
    revisions: list[int] = []
    await client.post("workloads.create", pod("w", {"name": "main", "image": "host", "command": ["x"]}))
    async with open_websocket_url(server.url.replace("http", "ws", 1) + "/api/v0/instances.watch") as socket:
        await socket.get_message()
        async with trio.open_nursery() as nursery:

            async def churn() -> None:
                for _ in range(ROUNDS):
                    names = await client.post("instances.create", {"workload_id": "w", "replicas": INSTANCES})
                    for name in names[:20]:
                        await client.post("instances.delete", {"id": name})
                await client.post("workloads.delete", {"name": "w"})

            nursery.start_soon(churn)
            gone = 0
            while gone < ROUNDS * INSTANCES:
                frame = json.loads(await socket.get_message())
                assert frame["type"] != "gap"
                if frame["type"] != "instance":
                    continue
                gone += frame["op"] == "delete"
                revisions.append(frame["revision"])
                changed_at = datetime.fromisoformat(frame["instance"]["updated_at"]).timestamp()
                delays.append(time.time() - changed_at)
    assert revisions == sorted(set(revisions)), "a frame was lost, repeated, or out of order"
    return sorted(delays)


def told(delays: Sequence[float]) -> str:
    """`median 40 ms, p99 90 ms` of sorted seconds."""
    return f"median {delays[len(delays) // 2] * 1000:.0f} ms, p99 {delays[int(len(delays) * 0.99)] * 1000:.0f} ms"


@pytest.mark.slow
async def test_one_that_never_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Beside a client that never reads another one gets every frame as without it, and the server ends when told to."""
    async with serving(tmp_path / "data", "--runtime", "fake") as server, Client(server.url) as client:
        with trio.fail_after(120):
            alone = await watch_a_churn(server, client)
            before = psutil.Process(server.pid).memory_info().rss
            slow = never_reading_watcher(urlsplit(server.url).port or 0)
            assert slow.recv(12) == b"HTTP/1.1 101"
            beside = await watch_a_churn(server, client)
        grown = psutil.Process(server.pid).memory_info().rss - before
        assert grown < MOST_GROWTH_BYTES, "memory must not follow what one client leaves unread"
        with trio.fail_after(10):
            assert await server.stop() == 0
        slow.close()
    with capsys.disabled():
        print(
            f"\na watcher of {len(beside)} changes, alone: {told(alone)}; beside one that never reads: {told(beside)};"
            f" the server grew {grown / 2**20:.0f} MiB"
        )

"""From a request to what a watcher is told, over real sockets: latency, bulk, memory, and many clients at once.

Run with `python -m benchmarks.lifecycle`. Medians on the reference 2-core machine are the targets of the table.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import psutil
import trio
from trio_websocket import WebSocketConnection, open_websocket_url

from benchmarks.report import Figure, at_most, report
from tests.e2e.server import Client, Server, pod, serving, shell

LIMIT_S = 180.0
FAKE = {"name": "main", "image": "host", "command": ["/bin/true"]}


async def until(socket: WebSocketConnection, name: str, status: str) -> float:
    """The moment at which the frame arrived that says so."""
    while True:
        frame = json.loads(await socket.get_message())
        if frame["type"] == "instance" and frame["instance"]["name"] == name and frame["instance"]["status"] == status:
            return time.perf_counter()


async def create_to(client: Client, url: str, workload: str, status: str, runs: int) -> list[float]:
    """Milliseconds from sending `instances.create` to the frame on a websocket that watches."""
    taken = []
    async with open_websocket_url(url.replace("http", "ws", 1) + "/api/v0/instances.watch") as socket:
        for run in range(runs):
            name = f"{workload}-{run}"
            async with trio.open_nursery() as nursery:
                started = time.perf_counter()
                nursery.start_soon(client.post, "instances.create", {"workload_id": workload, "name": name})
                taken.append((await until(socket, name, status) - started) * 1000)
            await client.post("instances.delete", {"id": name})
            while any(entry["id"] == name for entry in await client.get("instances.list")):
                await trio.sleep(0.01)
    return taken


async def bulk(client: Client, url: str, workload: str, count: int) -> float:
    """Seconds from one request for `count` instances to the last Running frame."""
    async with open_websocket_url(url.replace("http", "ws", 1) + "/api/v0/instances.watch") as socket:
        started = time.perf_counter()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.post, "instances.create", {"workload_id": workload, "replicas": count})
            running: set[str] = set()
            while len(running) < count:
                frame = json.loads(await socket.get_message())
                if frame["type"] == "instance" and frame["instance"]["status"] == "Running":
                    running.add(frame["instance"]["uid"])
                if frame["type"] == "instance" and frame["instance"]["status"] == "Failed":
                    raise RuntimeError(frame["instance"]["message"])
        return time.perf_counter() - started


def rss(server: Server) -> float:
    return float(psutil.Process(server.pid).memory_info().rss)


async def process_runtime(runs: int) -> list[Figure]:
    with TemporaryDirectory() as directory:
        async with serving(Path(directory) / "data") as server, Client(server.url, checked=False) as client:
            await trio.sleep(1)
            idle = rss(server) / 2**20
            await client.post("workloads.create", pod("sleeper", shell("exec sleep 1000"), stopGraceSeconds=1))
            await client.post("workloads.create", pod("missing", {**FAKE, "command": ["no-such-command"]}))
            running = await create_to(client, server.url, "sleeper", "Running", runs)
            failed = await create_to(client, server.url, "missing", "Failed", runs)
            hundred = await bulk(client, server.url, "sleeper", 100)
    return [
        at_most("create to Running, process, host image", running, "ms", 80),
        at_most("create to Failed, missing command", failed, "ms", 150),
        at_most("100 instances in one request, all Running", [hundred], "s", 6),
        at_most("RSS, all roles idle", [idle], "MiB", 90),
    ]


async def fake_runtime(count: int, creates: int) -> list[Figure]:
    with TemporaryDirectory() as directory:
        async with (
            serving(Path(directory) / "data", "--runtime", "fake") as server,
            Client(server.url, checked=False) as client,
        ):
            await client.post("workloads.create", pod("fake", FAKE))
            await bulk(client, server.url, "fake", 10)  # what is imported and cached once is not an instance's cost
            before = rss(server)
            await bulk(client, server.url, "fake", count)
            await trio.sleep(1)
            each = (rss(server) - before) / count / 1024
            taken, names = await concurrent(server.url, creates)
            listed = {entry["id"] for entry in await client.get("instances.list")}
    lost = len(set(names) - listed)
    doubled = len(names) - len(set(names)) + len(listed) - count - 10 - len(set(names))
    return [
        at_most(f"RSS per fake instance, at {count}", [each], "KiB", 30),
        Figure(f"{creates} concurrent creates over HTTP", [taken], "s"),
        Figure("  of them lost", [lost], "", "0", lost == 0),
        Figure("  of them doubled", [doubled], "", "0", doubled == 0),
    ]


async def concurrent(url: str, creates: int) -> tuple[float, list[str]]:
    names: list[str] = []
    limits = httpx.Limits(max_connections=creates)
    async with httpx.AsyncClient(base_url=url, timeout=LIMIT_S, limits=limits, trust_env=False) as http:

        async def one() -> None:
            answer = await http.post("/api/v0/instances.create", json={"workload_id": "fake"})
            answer.raise_for_status()
            names.extend(answer.json())

        started = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for _ in range(creates):
                nursery.start_soon(one)
        return time.perf_counter() - started, names


async def command_line(runs: int) -> list[Figure]:
    async with serving(None, "--runtime", "fake") as server:
        help_ms = [timed(["--help"]) for _ in range(runs)]
        get_ms = [timed(["--server", server.url, "get", "instances"]) for _ in range(runs)]
    return [at_most("rik --help", help_ms, "ms", 120), at_most("rik get instances", get_ms, "ms", 200)]


def timed(arguments: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "rik", *arguments], check=True, stdout=subprocess.DEVNULL)
    return (time.perf_counter() - started) * 1000


async def main(options: argparse.Namespace) -> None:
    figures: list[Figure] = []
    for part in (
        process_runtime(options.runs),
        fake_runtime(1000, 500),
        command_line(options.runs),
    ):
        with trio.fail_after(LIMIT_S):
            figures += await part
    report("lifecycle", figures)


def parse() -> Any:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=15, help="measured runs of each latency")
    return parser.parse_args()


if __name__ == "__main__":
    trio.run(main, parse())

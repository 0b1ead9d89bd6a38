"""What follows a server survives its end and its next start."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
from pathlib import Path

import pytest
import trio

from tests.cli.conftest import LIMIT_S, Rik
from tests.e2e.server import Client, Server, serving

pytestmark = pytest.mark.require("user-namespaces", reason="the server runs pods")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Reader:
    """The lines of a program, as they come."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []

    async def until(self, text: str) -> str:
        """The first line that holds `text`, from where reading stopped."""
        assert self.process.stdout is not None
        with trio.fail_after(LIMIT_S):
            while True:
                line = await trio.to_thread.run_sync(self.process.stdout.readline, abandon_on_cancel=True)
                assert line, self.lines
                self.lines.append(line.rstrip("\n"))
                if text in line:
                    return self.lines[-1]

    async def end(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        await trio.to_thread.run_sync(self.process.communicate)


async def kill_and_restart(server: Server) -> None:
    server.kill()
    await server.wait_dead()
    await server.start()


async def test_kill_and_restart(tmp_path: Path) -> None:
    """A server that is killed and started again leaves no hole and no repeat in watch, logs -f and run."""
    options = ("--listen", f"127.0.0.1:{free_port()}", "--allow-dir", str(tmp_path))
    async with serving(tmp_path / "data", *options) as server, Client(server.url) as client:
        rik = Rik(server.url)
        script = (
            "i=0; while [ ! -e /tmp/stop ] && [ $i -lt 400 ]; do i=$((i+1)); echo line $i; sleep 0.05; done; echo end"
        )
        container = {"name": "main", "image": "host", "command": ["/bin/sh", "-c", script]}
        document = {"apiVersion": "v1", "kind": "Pod", "name": "count", "spec": {"containers": [container]}}
        path = tmp_path / "count.json"
        path.write_text(json.dumps(document))
        watching = Reader(rik.start("get", "instances", "--watch", "-o", "json"))
        running = following = None
        try:
            await watching.until('"snapshot"')
            running = Reader(rik.start("run", str(path)))
            await running.until("line 5")
            (entry,) = await client.get("instances.list")
            following = Reader(rik.start("logs", "-f", entry["name"]))
            await following.until("line 10")
            await kill_and_restart(server)
            await running.until("trying again")
            await client.until(entry["name"], "Running")
            stopped = await trio.to_thread.run_sync(rik, "exec", entry["name"], "--", "touch", "/tmp/stop")
            assert stopped.returncode == 0, stopped.stderr
            await client.until(entry["name"], "Terminated")
            for reader in (running, following):
                await reader.until("end")
                counted = [line for line in reader.lines if line.startswith("line ")]
                assert counted == [f"line {number}" for number in range(1, len(counted) + 1)]
            with trio.fail_after(LIMIT_S):
                assert await trio.to_thread.run_sync(running.process.wait) == 0
                assert await trio.to_thread.run_sync(following.process.wait) == 0
            await watching.until('"Terminated"')
            frames = [json.loads(line) for line in watching.lines if line.startswith("{")]
            changes = [frame for frame in frames if frame["type"] == "instance"]
            revisions = [change["revision"] for change in changes]
            assert revisions == sorted(set(revisions))
            assert [frame["type"] for frame in frames].count("snapshot") == 1, "it resumed, without a gap"
            statuses = dict.fromkeys(change["instance"]["status"] for change in changes)
            assert list(statuses) == ["Pending", "Creating", "Running", "Terminated"]
        finally:
            for each in (watching, running, following):
                if each is not None:
                    await each.end()


async def test_watch_says_what_it_missed(tmp_path: Path) -> None:
    """When the server comes back with other data, watch says that there is a gap, and shows what there is now."""
    options = ("--listen", f"127.0.0.1:{free_port()}", "--runtime", "fake", "--stop-instances")
    container = {"name": "main", "image": "x"}
    document = {"apiVersion": "v1", "kind": "Pod", "name": "w", "spec": {"containers": [container]}}
    async with serving(tmp_path / "first", *options) as server, Client(server.url) as client:
        watching = Reader(Rik(server.url).start("watch"))
        try:
            await client.post("workloads.create", document)
            await client.post("instances.create", {"workload_id": "w", "name": "before"})
            await watching.until("before  Running")
            await server.stop()
            await watching.until("-- connection lost")
            async with serving(tmp_path / "second", *options):
                assert "gap" in (await watching.until("-- gap"))
                await client.post("workloads.create", document)
                await client.post("instances.create", {"workload_id": "w", "name": "after"})
                await watching.until("after  Running")
        finally:
            await watching.end()

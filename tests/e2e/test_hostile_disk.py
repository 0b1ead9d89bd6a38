"""A disk that is full or cannot be written is told in a sentence, and nothing that was acknowledged is lost."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import trio

from tests.e2e.server import Client, Server, ServerDied, pod, shell

pytestmark = [
    pytest.mark.require("user-namespaces", reason="pods are made of them"),
    pytest.mark.require("root", reason="only root can mount a small disk"),
]

LIMIT_S = 60.0
SIZE = "24m"


@pytest.fixture
async def disk(tmp_path: Path) -> AsyncIterator[Path]:
    """A file system of a bounded size."""
    place = tmp_path / "disk"
    place.mkdir()
    await trio.run_process(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(place)])
    try:
        yield place
    finally:
        with trio.CancelScope(shield=True):
            await trio.run_process(["umount", "-l", str(place)])


def fill(disk: Path) -> Path:
    """Takes all the room that is left."""
    path = disk / "fill"
    with path.open("ab", buffering=0) as file:
        for size in (65_536, 4_096):
            try:
                while file.write(b"x" * size):
                    pass
            except OSError:
                continue
    return path


async def test_full(disk: Path) -> None:
    """On a full disk changes are refused with 503, pods run on and are explained once there is room again, and a start
    is refused in one sentence."""
    server = Server(disk / "data", "--publish-address", "127.0.0.1")
    with trio.fail_after(LIMIT_S):
        try:
            await server.start()
            async with Client(server.url) as client:
                await client.post("workloads.create", pod("live", shell("while :; do echo tick; sleep 0.2; done")))
                await client.post("workloads.create", pod("ends", shell("sleep 1; exit 7")))
                await client.post("instances.create", {"workload_id": "live", "name": "live"})
                await client.until("live", "Running")
                await client.post("instances.create", {"workload_id": "ends", "name": "ends"})
                await client.until("ends", "Running")
                filler = fill(disk)
                with pytest.raises(httpx.HTTPStatusError, match="503"):
                    await client.post("workloads.create", pod("more", shell("true")))
                assert (await client.get("instances.get/live"))["status"] == "Running"
                await trio.sleep(1.5)
            server.kill()
            await server.wait_dead()
            with pytest.raises(ServerDied) as died:
                await server.start()
            said = died.value.stderr.splitlines()
            assert [line for line in said if line.startswith("error: ") and "full" in line]
            assert "Traceback" not in died.value.stderr
            filler.unlink()
            await server.start()
            async with Client(server.url) as client:
                assert (await client.until("live", "Running", "Failed"))["status"] == "Running"
                ended = await client.until("ends", "Failed")
                assert (ended["reason"], ended["containers"][0]["exit_code"]) == ("ContainerExited", 7)
                await client.post("workloads.delete", {"name": "live"})
                await client.post("workloads.delete", {"name": "ends"})
                while await client.get("instances.list"):
                    await trio.sleep(0.05)
        finally:
            await server.close()

"""The demo leaves nothing: not when it ends in order, and when it was killed, not after the next one has begun."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
import trio

from rik.data_directory import HOST_FILE, LOCK_FILE
from rik.settings import DEMO_PREFIX
from tests.e2e.server import Client, Server, pod, shell

pytestmark = pytest.mark.require("user-namespaces", reason="pods are made of them")


def demos(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{DEMO_PREFIX}*"))


async def test_a_killed_demo_is_swept_by_the_next(tmp_path: Path) -> None:
    """Pods die with their demo; its directory, and what others were killed over, goes when the next demo starts."""
    marker = "31415.92653"
    demo = Server(None, env={"TMPDIR": str(tmp_path)})
    try:
        async with Client(await demo.start()) as client:
            await client.post("workloads.create", pod("w", shell(f"exec sleep {marker}")))
            await client.post("instances.create", {"workload_id": "w", "name": "it"})
            await client.until("it", "Running")
        demo.kill()
        await demo.wait_dead()
        with trio.fail_after(10):
            while [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", marker]]:
                await trio.sleep(0.05)
        (killed,) = demos(tmp_path)
        (tmp_path / f"{DEMO_PREFIX}just-made").mkdir()  # killed before it had begun
        damaged = tmp_path / f"{DEMO_PREFIX}damaged"
        damaged.mkdir()
        (damaged / HOST_FILE).write_text("{")
        half_removed = tmp_path / f"{DEMO_PREFIX}half-removed"
        (half_removed / "logs").mkdir(parents=True)
        await demo.start()
        left = demos(tmp_path)
        assert killed not in left
        assert half_removed not in left
        assert tmp_path / f"{DEMO_PREFIX}just-made" not in left
        assert damaged in left, "nobody can tell what it owns: it is left alone, and keeps nobody from starting"
        assert await demo.stop() == 0
        assert demos(tmp_path) == [damaged]
        assert LOCK_FILE in {path.name for path in damaged.iterdir()}
    finally:
        await demo.close()

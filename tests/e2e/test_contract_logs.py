"""Logs under load, as `contract.md` promises them, from a real server and a real pod."""

from __future__ import annotations

import httpx
import pytest
import trio

from tests.e2e.server import Client, Server, pod, shell

pytestmark = pytest.mark.require("user-namespaces", reason="pods are made of them")

ANSWERS_WITHIN_S = 2.0


async def test_a_log_that_floods_ends_and_holds_up_nobody(server: Server, client: Client) -> None:
    """Of a pod that writes without pause the last lines come, all of them end, and others are answered meanwhile."""
    await client.post("workloads.create", pod("flood", shell("yes flood")))
    await client.post("instances.create", {"workload_id": "flood", "name": "flood"})
    await client.until("flood", "Running")
    url = f"{server.url}/api/v0/instances.logs/flood"
    async with httpx.AsyncClient(timeout=30) as reader:
        with trio.fail_after(30):
            while (tail := await reader.get(url, params={"tail": 3})).text != "flood\n" * 3:
                assert tail.status_code == 200
                await trio.sleep(0.1)
        slowest = 0.0
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:

                async def read_all() -> None:
                    everything = await reader.get(url)
                    assert set(everything.text.splitlines()) == {"flood"}
                    nursery.cancel_scope.cancel()

                nursery.start_soon(read_all)
                while True:
                    asked = trio.current_time()
                    await client.get("instances.list")
                    slowest = max(slowest, trio.current_time() - asked)
                    await trio.sleep(0.05)
        assert slowest < ANSWERS_WITHIN_S
    await client.post("instances.delete", {"id": "flood"})

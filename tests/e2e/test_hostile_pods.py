"""Whatever a pod does, the host, the other pods and RIK itself do not notice."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.e2e.server import Client, Server, pod

pytestmark = pytest.mark.require("user-namespaces", reason="pods are made of them")

LIMIT_S = 60.0


def python(program: str, **fields: Any) -> dict[str, Any]:
    """A container on the host's image that runs a Python program."""
    return {"name": "main", "image": "host", "command": ["python3", "-S", "-c", program], **fields}


async def start(client: Client, container: dict[str, Any], **spec: Any) -> str:
    """The name of a new instance of it."""
    name = f"w{os.urandom(4).hex()}"
    await client.post("workloads.create", pod(name, container, **spec))
    names: list[str] = await client.post("instances.create", {"workload_id": name, "name": name})
    return names[0]


@pytest.mark.parametrize("kind", ["arguments", "environment"])
async def test_forged_marks(server: Server, client: Client, tmp_path: Path, kind: str) -> None:
    """A process of a pod that gives itself out as another pod's, or as that of a directory elsewhere, is still its own
    pod's, and nothing is removed for it."""
    assert server.data_dir is not None
    victim = tmp_path / "victim"
    victim.mkdir(mode=0o755)
    (victim / "precious").touch()
    pods = server.data_dir / "pods"
    host_id = json.loads((server.data_dir / "host.json").read_text())["host_id"]
    uids = [os.path.relpath(victim, pods), ".", "..", "0rphan0rphan0rphan00"]
    lines = ["import os, time"]
    for uid in uids:
        word, variable = (f"{pods}/{uid}", "") if kind == "arguments" else ("x", f"{host_id}.{uid}")
        arguments = ["rik.runtime.process.podinit.main", "-S", "-c", "import time; time.sleep(600)", word]
        lines.append(
            f"if not os.fork(): os.execvpe('python3', {arguments!r}, {{**os.environ, 'RIK_INSTANCE': {variable!r}}})"
        )
    lines += ["time.sleep(1)", "print('ready', flush=True)", "time.sleep(600)"]
    with trio.fail_after(LIMIT_S):
        name = await start(client, python("\n".join(lines)))
        while b"ready" not in (await client.http.get(f"/api/v0/instances.logs/{name}")).content:
            await trio.sleep(0.1)
        node = (await client.get("nodes.list"))[0]["name"]
        assert (await client.get(f"nodes.audit/{node}"))["orphans"] == []
        server.kill()
        await server.wait_dead()
        await server.start()
        async with Client(server.url) as again:
            record = await again.until(name, "Running", "Failed")
            assert record["status"] == "Running"
            assert (victim / "precious").exists()
            assert (pods / record["uid"] / "pod.json").exists()


async def test_very_many_containers(server: Server, client: Client) -> None:
    """A pod of more containers than can be supervised fails in a sentence; one of as many as can be runs."""
    containers = [{"name": f"c{number}", "image": "host", "command": ["true"]} for number in range(1_200)]
    with trio.fail_after(LIMIT_S):
        for name, count in (("many", 128), ("too-many", 1_200)):
            await client.post("workloads.create", pod(name, *containers[:count]))
            await client.post("instances.create", {"workload_id": name, "name": name})
        failed = await client.until("too-many", "Failed")
        assert failed["reason"] == "CreateFailed"
        assert "1200 containers" in failed["message"]
        assert (await client.until("many", "Terminated", "Failed"))["status"] == "Terminated"

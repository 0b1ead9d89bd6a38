"""The examples: what works, works; what fails is explained in the watch frame, in `describe`, and after deletion."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import trio

from tests.api.client import ApiClient
from tests.conftest import Require
from tests.e2e.server import Client, Server, serving

pytestmark = pytest.mark.require("user-namespaces", reason="pods are made of them")

EXAMPLES = Path(__file__).parents[2] / "examples"
FINAL = ("Failed", "Terminated")


class Expected(NamedTuple):
    status: str
    reason: str
    sentence: str
    exit_code: int | None
    last_line: str


ENDINGS = {
    "batch": Expected("Terminated", "", "every container exited with code 0", 0, "done"),
    "crash": Expected("Failed", "ContainerExited", "exited with code 3", 3, "fatal: the database said no"),
    "missing-command": Expected("Failed", "CommandNotFound", "`no-such-program` not found in PATH", None, ""),
    "missing-image": Expected("Failed", "ImageNotFound", "/no/such/image-layout does not exist", None, ""),
}


def example(name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((EXAMPLES / f"{name}.json").read_text())
    return document


def rik(server: Server, *arguments: str) -> str:
    """What the command prints."""
    command = [sys.executable, "-m", "rik", "--server", server.url, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout


def judge(record: dict[str, Any], expected: Expected) -> None:
    """A final record in full says everything about the end."""
    assert (record["status"], record["reason"]) == (expected.status, expected.reason)
    assert expected.sentence in record["message"]
    assert record["history"][-1]["status"] == expected.status
    if expected.exit_code is not None:
        assert [container["exit_code"] for container in record["containers"]] == [expected.exit_code]
    lines = [entry["line"] for entry in record["log_tail"]]
    assert (lines[-1] if lines else "") == expected.last_line


def make_layout(layout: Path, rootfs: Path) -> None:
    """An OCI layout with one image, `v1`, of busybox alone; `rootfs` is where umoci puts the tree that it packs."""
    subprocess.run(["umoci", "init", "--layout", layout], check=True)
    subprocess.run(["umoci", "new", "--image", f"{layout}:v1"], check=True)
    rootless = [] if os.geteuid() == 0 else ["--rootless"]
    subprocess.run(["umoci", "unpack", *rootless, "--image", f"{layout}:v1", rootfs.parent], check=True)
    (rootfs / "bin").mkdir()
    busybox = next(path for path in (Path("/bin/busybox"), Path("/usr/bin/busybox")) if path.exists())
    (rootfs / "bin" / "busybox").write_bytes(busybox.read_bytes())
    (rootfs / "bin" / "busybox").chmod(0o755)
    (rootfs / "bin" / "sh").symlink_to("busybox")
    subprocess.run(["umoci", "repack", "--image", f"{layout}:v1", rootfs.parent], check=True)
    subprocess.run(["umoci", "config", "--image", f"{layout}:v1", "--config.cmd", "/bin/sh"], check=True)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    """As in the demo, images may be read from anywhere."""
    async with serving(tmp_path / "data", "--allow-dir", "/", "--publish-address", "127.0.0.1") as running:
        yield running


@pytest.mark.parametrize("name", ENDINGS)
async def test_endings(name: str, server: Server, client: Client) -> None:
    """How an example ends is told alike by the watch, by the API, by `rik describe`, and after it was deleted."""
    expected = ENDINGS[name]
    await client.post("workloads.create", example(name))
    async with ApiClient(server.url) as watching, watching.watch() as frames:
        await frames.until("snapshot")
        (instance,) = await client.post("instances.create", {"workload_id": name})
        with trio.fail_after(20):
            while True:
                told = (await frames.until("instance"))["instance"]
                if told["status"] in FINAL:
                    break
    judge(told, expected)
    judge(await client.get(f"instances.get/{instance}"), expected)
    logs = (await client.http.get(f"/api/v0/instances.logs/{instance}")).text
    await client.post("workloads.delete", {"name": name})
    with trio.fail_after(20):
        while await client.get("instances.list"):
            await trio.sleep(0.02)
    judge(await client.get(f"instances.get/{instance}"), expected)
    judge(await client.get(f"instances.get/{told['uid']}"), expected)
    assert (await client.http.get(f"/api/v0/instances.logs/{instance}")).text == logs, "output outlives deletion"
    described = await trio.to_thread.run_sync(rik, server, "describe", "instance", instance)
    assert expected.status in described
    assert expected.reason in described
    assert expected.sentence in described
    assert expected.last_line in described


async def test_hello(client: Client, server: Server) -> None:
    """The web server answers on its published port, and a command can be run in its pod."""
    document = example("hello")
    document["spec"]["containers"][0]["ports"][0]["port"] = 0  # any free one: the tests may run beside each other
    await client.post("workloads.create", document)
    await client.post("instances.create", {"workload_id": "hello", "name": "hi"})
    record = await client.until("hi", "Running", *FINAL)
    port = record["ports"][0]["port"]
    async with httpx.AsyncClient(trust_env=False) as plain:
        with trio.fail_after(10):
            while True:
                try:
                    answer = await plain.get(f"http://127.0.0.1:{port}/")
                    break
                except httpx.HTTPError:  # verified is that its command was executed, not yet that it listens
                    await trio.sleep(0.02)
    assert answer.text == "Hello from hi, a pod that RIK runs.\n"


async def test_pair(client: Client) -> None:
    """Two containers of one pod talk over localhost."""
    await client.post("workloads.create", example("pair"))
    await client.post("instances.create", {"workload_id": "pair", "name": "talk"})
    await client.until("talk", "Running")
    with trio.fail_after(20):
        while "was told: that was question 1" not in (await client.http.get("/api/v0/instances.logs/talk")).text:
            await trio.sleep(0.05)


async def test_a_layout_made_with_umoci(client: Client, server: Server, tmp_path: Path, require: Require) -> None:
    """An OCI layout made with umoci from busybox runs as a pod by `oci:DIR:TAG`."""
    require("umoci", reason="it makes the layout")
    require("static-busybox", reason="it is what the image holds")
    layout = tmp_path / "layout"
    make_layout(layout, tmp_path / "bundle" / "rootfs")
    script = "busybox echo from an image; busybox ls /; busybox touch /written && exit 7"
    container = {"name": "main", "image": f"oci:{layout}:v1", "command": ["/bin/sh", "-c", script]}
    document = {"apiVersion": "v1", "kind": "Pod", "name": "box", "spec": {"containers": [container]}}
    await client.post("workloads.create", document)
    await client.post("instances.create", {"workload_id": "box", "name": "box"})
    record = await client.until("box", *FINAL)
    assert (record["reason"], record["containers"][0]["exit_code"]) == ("ContainerExited", 7), record
    assert record["log_tail"][0]["line"] == "from an image"
    assert not (tmp_path / "bundle" / "rootfs" / "written").exists()

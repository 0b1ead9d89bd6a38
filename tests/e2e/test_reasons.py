"""One test per reason code: brought about for real, seen through the API, and still explained after deletion.

ImageUnauthorized, RootfsDownloadFailed, RootfsInvalid, BootFailed and GuestPanicked belong to registries and microVMs.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
from pathlib import Path
from typing import Any

import psutil
import pytest
import trio

from tests.conftest import Require
from tests.e2e.server import Client, Server, pod, serving, shell

needs_namespaces = pytest.mark.require("user-namespaces", reason="pods are made of them")
FINAL = ("Failed", "Terminated")


async def start(client: Client, document: dict[str, Any], name: str = "it") -> str:
    """Creates the workload and one instance of it; returns the instance's name."""
    await client.post("workloads.create", document)
    names: list[str] = await client.post("instances.create", {"workload_id": document["name"], "name": name})
    return names[0]


async def fails(client: Client, document: dict[str, Any], reason: str, *, name: str = "it") -> dict[str, Any]:
    """Runs it to its end, which must be Failed for that reason; returns the record."""
    await start(client, document, name)
    record = await client.until(name, *FINAL)
    return await explained(client, record, reason)


async def explained(client: Client, record: dict[str, Any], reason: str) -> dict[str, Any]:
    """Checks what every failure owes its reader, now and after deletion."""
    assert (record["status"], record["reason"]) == ("Failed", reason), record
    assert len(record["message"].split()) >= 4, "a sentence, not a word"
    assert record["history"][-1]["status"] == "Failed"
    await client.post("instances.delete", {"id": record["name"]})
    with trio.fail_after(10):
        while any(entry["id"] == record["name"] for entry in await client.get("instances.list")):
            await trio.sleep(0.02)
    kept = await client.get(f"instances.get/{record['uid']}")
    for field in ("status", "reason", "message", "containers", "log_tail", "history"):
        assert kept[field] == record[field], f"{field} did not outlive the deletion"
    assert (await client.get(f"instances.get/{record['name']}"))["uid"] == record["uid"]
    return record


async def test_unschedulable(tmp_path: Path) -> None:
    """With no node at all an instance waits for its deadline, and then says what it waited for."""
    async with serving(tmp_path / "data", "--roles", "api,scheduler") as server, Client(server.url) as client:
        document = pod("w", shell("true"), deadlines={"pendingSeconds": 1})
        await start(client, document)
        waiting = await client.get("instances.get/it")
        assert waiting["status"] == "Pending"
        assert "node" in waiting["message"]
        record = await client.until("it", "Failed")
        assert "no node" in (await explained(client, record, "Unschedulable"))["message"].lower()


async def test_no_capable_node(fake: Client) -> None:
    """What no node could ever hold is refused at once, with the numbers."""
    record = await fails(fake, pod("w", shell("true"), resources={"memory": "900Ti"}), "NoCapableNode")
    assert "900 TiB" in record["message"]


@needs_namespaces
async def test_no_capable_node_for_functions(client: Client) -> None:
    """A Function on a host without microVMs says so at once."""
    function = {"execution": {"rootfs": "https://example.org/rootfs.ext4"}}
    document = {"apiVersion": "v1", "kind": "Function", "name": "f", "spec": {"function": function}}
    assert "Function" in (await fails(client, document, "NoCapableNode"))["message"]


@needs_namespaces
async def test_node_restarted(tmp_path: Path) -> None:
    """What ran when the host went down is explained after it came up again."""
    data = tmp_path / "data"
    server = Server(data)
    try:
        async with Client(await server.start()) as client:
            await start(client, pod("w", shell("exec sleep 1000"), stopGraceSeconds=1))
            await client.until("it", "Running")
        await server.stop()
        with sqlite3.connect(data / "worker.db") as journal:  # as if the kernel had booted since
            for (table,) in journal.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
                columns = [row[1] for row in journal.execute(f"PRAGMA table_info({table})")]
                if {"key", "value"} <= set(columns):
                    journal.execute(f"UPDATE {table} SET value = 'another-boot' WHERE key = 'boot_id'")
        async with Client(await server.start()) as client:
            record = await client.until("it", "Failed")
            await explained(client, record, "NodeRestarted")
    finally:
        await server.close()


@needs_namespaces
async def test_image_not_found(client: Client, tmp_path: Path) -> None:
    """A layout that is not there is named."""
    image = f"oci:{tmp_path}/nowhere:latest"
    record = await fails(client, pod("w", {"name": "main", "image": image, "command": ["x"]}), "ImageNotFound")
    assert f"{tmp_path}/nowhere" in record["message"]


@needs_namespaces
async def test_image_invalid(client: Client, tmp_path: Path) -> None:
    """A layout that is garbage is told from one that is not there."""
    layout = tmp_path / "garbage"
    layout.mkdir()
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (layout / "index.json").write_text("{not json")
    await fails(client, pod("w", {"name": "main", "image": f"oci:{layout}", "command": ["x"]}), "ImageInvalid")


@needs_namespaces
async def test_image_pull_failed(client: Client) -> None:
    """A registry's image cannot be had yet, and the message says what can."""
    record = await fails(client, pod("w", {"name": "main", "image": "alpine:latest"}), "ImagePullFailed")
    assert "alpine" in record["message"]


@needs_namespaces
async def test_port_conflict_with_a_listener(client: Client) -> None:
    """A fixed port that a foreign program listens on is named, with its holder."""
    with socket.create_server(("127.0.0.1", 0)) as foreign:
        port = foreign.getsockname()[1]
        container = shell("exec sleep 1000", ports=[{"port": port, "targetPort": 80}])
        record = await fails(client, pod("w", container), "PortConflict")
    assert str(port) in record["message"]
    assert str(os.getpid()) in record["message"], "the holder is this very process"


@needs_namespaces
async def test_port_conflict_with_an_instance(client: Client) -> None:
    """A fixed port that another instance has is refused at once, naming it."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    container = shell("exec sleep 1000", ports=[{"port": port, "targetPort": 80}])
    await start(client, pod("w", container, stopGraceSeconds=1), "first")
    await client.until("first", "Running")
    record = await fails(client, pod("w2", container), "PortConflict", name="second")
    assert "first" in record["message"]


@needs_namespaces
async def test_create_failed(client: Client) -> None:
    """A working directory that is not there is named."""
    record = await fails(client, pod("w", shell("true", workingDir="/no/such/place")), "CreateFailed")
    assert "/no/such/place" in record["message"]


@needs_namespaces
@pytest.mark.parametrize("command", ["no-such-command", "/etc/passwd", "/no/such/file", "/etc"])
async def test_command_not_found(client: Client, command: str) -> None:
    """A command that does not exist, or may not be executed, is named with its container."""
    record = await fails(client, pod("w", {"name": "web", "image": "host", "command": [command]}), "CommandNotFound")
    assert command in record["message"]
    assert "web" in record["message"]
    assert "Running" not in [entry["status"] for entry in record["history"]], "Running is verified"


@needs_namespaces
async def test_container_exited(client: Client) -> None:
    """A non-zero exit is told with its code and its last lines."""
    record = await fails(client, pod("w", shell("echo one; echo two >&2; exit 7")), "ContainerExited")
    assert record["containers"][0]["exit_code"] == 7
    assert "7" in record["message"]
    assert {line["line"] for line in record["log_tail"]} == {"one", "two"}


@needs_namespaces
async def test_killed(client: Client) -> None:
    """A container killed by a signal is told with the signal."""
    record = await fails(client, pod("w", shell("echo bye; kill -9 $$")), "Killed")
    assert record["containers"][0]["signal"] == "SIGKILL"
    assert "SIGKILL" in record["message"]


async def test_out_of_memory(client: Client, require: Require) -> None:
    """The container that broke the memory limit is named, with the limit."""
    require("user-namespaces", reason="pods are made of them")
    require("root", reason="a writable cgroup")
    hog = shell("exec tail /dev/zero", name="hog")
    calm = shell("exec sleep 1000", name="calm")
    record = await fails(client, pod("w", calm, hog, resources={"memory": "64Mi"}, stopGraceSeconds=1), "OutOfMemory")
    assert "hog" in record["message"]
    assert "64 MiB" in record["message"]
    killed = {container["name"]: container["oom_killed"] for container in record["containers"]}
    assert killed == {"hog": True, "calm": False}


@needs_namespaces
async def test_supervisor_lost(client: Client, server: Server) -> None:
    """When a pod's supervisor is killed the pod ends, and RIK says that it cannot know how."""
    await start(client, pod("w", shell("exec sleep 1234"), stopGraceSeconds=1))
    uid = (await client.until("it", "Running"))["uid"]
    for resource in (await client.get(f"nodes.audit/{(await client.get('nodes.list'))[0]['name']}"))["resources"]:
        if resource["kind"] == "process" and resource["owner"] == uid and "init" in resource["detail"]:
            os.kill(int(resource["name"].split()[-1]), signal.SIGKILL)
            break
    else:
        pytest.fail("the audit names no init of this pod")
    await explained(client, await client.until("it", *FINAL), "SupervisorLost")
    assert not [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", "1234"]]


@needs_namespaces
async def test_stopped_without_status(tmp_path: Path) -> None:
    """What vanished while RIK was down, without leaving an exit code, is said to have done so."""
    data = tmp_path / "data"
    server = Server(data)
    try:
        async with Client(await server.start()) as client:
            await start(client, pod("w", shell("exec sleep 1000"), stopGraceSeconds=1))
            record = await client.until("it", "Running")
            node = (await client.get("nodes.list"))[0]["name"]
            processes = [r for r in (await client.get(f"nodes.audit/{node}"))["resources"] if r["kind"] == "process"]
            assert [r for r in processes if r["owner"] == record["uid"]]
        server.kill()
        await server.wait_dead()
        for resource in processes:
            if resource["owner"] == record["uid"]:
                try:
                    os.kill(int(resource["name"].split()[-1]), signal.SIGKILL)
                except ProcessLookupError:
                    pass  # it died with the one before
        for path in sorted((data / "pods" / record["uid"]).rglob("*.json")):
            path.unlink()  # nothing that could tell how it went
        async with Client(await server.start()) as client:
            record = await client.until("it", *FINAL)
            assert record["reason"] in ("StoppedWithoutStatus", "SupervisorLost")
            await explained(client, record, "StoppedWithoutStatus")
    finally:
        await server.close()


async def test_deadline_exceeded(fake: Client) -> None:
    """A creation that takes too long ends, naming the step that took the time."""
    slow: dict[str, Any] = {"name": "main", "image": "host", "command": ["x"]}
    slow["env"] = [{"name": "FAKE_PREPARE_SECONDS", "value": "60"}]
    record = await fails(fake, pod("w", slow, deadlines={"creatingSeconds": 1}), "DeadlineExceeded")
    assert any(step in record["message"] for step in ("queued", "pull", "unpack", "disk", "network", "start"))


@pytest.mark.slow
async def test_internal_error(fake: Client) -> None:
    """A fault of RIK's own ends the one instance, not the host."""
    broken: dict[str, Any] = {"name": "main", "image": "host", "command": ["x"]}
    broken["env"] = [{"name": "FAKE_BUG", "value": "start"}]
    await fails(fake, pod("w", broken), "InternalError")
    assert (await fake.http.get("/healthz")).status_code == 200


def test_every_reason_is_tested() -> None:
    """The codes that can occur without registries, microVMs and lost nodes are all brought about in this folder."""
    from rik.model.instance import Reason

    text = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    elsewhere = {"ImageUnauthorized", "RootfsDownloadFailed", "RootfsInvalid", "BootFailed", "GuestPanicked"}
    assert {reason.value for reason in Reason if json.dumps(reason.value) not in text} - elsewhere == set()

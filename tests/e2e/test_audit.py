"""`rik audit` looks at the host by itself: a planted orphan of any kind is found, and swept at the next start."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from rik.data_directory import read_host_id
from rik.linux.cgroups import Cgroups
from rik.runtime.process.layout import Layout
from rik.runtime.process.spec import INSTANCE_VARIABLE, instance_mark
from tests.conftest import Require
from tests.e2e.server import Client, Server, pod, shell

pytestmark = pytest.mark.require("user-namespaces", reason="pods are made of them")

UID = "0rphan00000000000000"
Plant = Callable[[Layout], AbstractContextManager[None]]


@contextmanager
def a_file(layout: Layout) -> Iterator[None]:
    (layout.pods / UID).mkdir()
    yield


@contextmanager
def a_socket(layout: Layout) -> Iterator[None]:
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(layout.socket(UID)))
        yield


@contextmanager
def a_process(layout: Layout) -> Iterator[None]:
    """One that says of which host and pod it is, in a user namespace and a network of its own."""
    process = subprocess.Popen(
        ["unshare", "--user", "--map-root-user", "--net", "sleep", "1000"],
        env={**os.environ, INSTANCE_VARIABLE: instance_mark(layout.host_id, UID)},
        start_new_session=True,
    )
    try:
        yield
    finally:
        process.kill()
        process.wait()


@contextmanager
def a_mount(layout: Layout) -> Iterator[None]:
    (layout.pods / UID).mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(layout.pods / UID)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(layout.pods / UID)], capture_output=True)


@contextmanager
def a_cgroup(layout: Layout) -> Iterator[None]:
    directories = [Path(place.directory) / UID for place in Cgroups.find(layout.host_id).places.values()]
    for directory in directories:
        directory.mkdir(parents=True, exist_ok=True)
    yield


PLANTS: dict[str, tuple[Plant, str]] = {
    "file": (a_file, ""),
    "socket": (a_socket, ""),
    "process": (a_process, ""),
    "namespace": (a_process, ""),
    "mount": (a_mount, "root"),
    "cgroup": (a_cgroup, "root"),
}


def audit(server: Server) -> tuple[int, dict[str, Any]]:
    """The exit code of `rik audit`, and what it found."""
    command = [sys.executable, "-m", "rik", "--server", server.url, "audit", "-o", "json"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.returncode, json.loads(done.stdout)


@pytest.mark.parametrize("kind", PLANTS)
async def test_a_planted_orphan_is_found(kind: str, tmp_path: Path, require: Require) -> None:
    """What carries this host's mark and belongs to no instance is an orphan; the next start removes it."""
    plant, need = PLANTS[kind]
    if need:
        require(need, reason=f"a {kind} is made for it")
    data = tmp_path / "data"
    server = Server(data)
    try:
        async with Client(await server.start()) as client:
            await client.post("workloads.create", pod("w", shell("exec sleep 1000"), stopGraceSeconds=1))
            await client.post("instances.create", {"workload_id": "w", "name": "it"})
            await client.until("it", "Running")
        code, before = audit(server)
        assert (code, before["orphans"]) == (0, [])
        with plant(Layout(data, read_host_id(data))):
            code, found = audit(server)
            assert code == 1
            assert kind in {orphan["kind"] for orphan in found["orphans"]}
            strangers = [orphan for orphan in found["orphans"] if UID not in orphan["name"] + orphan["detail"]]
            assert not strangers, strangers
            await server.stop()
            await server.start()
            code, after = audit(server)
            assert (code, after["orphans"]) == (0, [])
            async with Client(server.url) as client:
                assert (await client.get("instances.get/it"))["status"] == "Running"
                await client.post("instances.delete", {"id": "it"})
                await client.until("it", "Terminated")
    finally:
        await server.close()

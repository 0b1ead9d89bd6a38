"""What nobody owns is found by looking at the host, and removed; nothing else is."""

from __future__ import annotations

import socket
import sys
from functools import partial

import pytest
import trio

from rik.linux.cgroups import Cgroups
from rik.runtime.process.inventory import NAMED_NAMESPACES
from tests.conftest import Require

from .conftest import Bench, container, make_pod

pytestmark = pytest.mark.require("user-namespaces", reason="pods are made of them")

ORPHAN = "0rphan0rphan0rphan00"


async def _found(bench: Bench, kind: str) -> bool:
    """It is in the inventory with its owner, and after the sweep it is not."""
    items = [item for item in await bench.runtime.inventory() if item.kind == kind]
    assert items, f"no {kind} found"
    assert {item.owner for item in items} == {ORPHAN}
    swept = await bench.runtime.sweep(frozenset())
    assert {(item.kind, item.name) for item in items} <= {(item.kind, item.name) for item in swept}
    assert await bench.runtime.inventory() == []
    return True


async def test_directory(bench: Bench) -> None:
    """A directory of a pod that nobody owns is found and removed with all that is in it."""
    (bench.runtime.layout.pod(ORPHAN) / "box" / "a" / "upper").mkdir(parents=True)
    assert await _found(bench, "file")


async def test_socket(bench: Bench) -> None:
    """A control socket that nobody owns is found and removed."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(bench.runtime.layout.socket(ORPHAN)))
        assert await _found(bench, "socket")


async def test_cgroup(bench: Bench, require: Require) -> None:
    """A cgroup that nobody owns is found and removed."""
    capability = await bench.runtime.probe()
    require("cgroup", reason="there is none to plant", present=capability.limits["pids"] is True, expected_in_ci=False)
    cgroups = Cgroups.find(bench.host_id)
    assert not cgroups.create(ORPHAN, ["a"], 0, 0, 0)
    assert await _found(bench, "cgroup")


async def test_process(bench: Bench) -> None:
    """A supervisor that nobody owns is found and ended, with whatever it has started."""
    program = "import subprocess; subprocess.run(['sleep', '600'])"
    arguments = ["rik.runtime.process.podinit.main", str(bench.runtime.layout.pod(ORPHAN))]
    async with trio.open_nursery() as nursery:
        command = [sys.executable, "-I", "-S", "-c", program, *arguments]
        process = await nursery.start(partial(trio.run_process, command, check=False))
        with trio.fail_after(10):
            while len([i for i in await bench.runtime.inventory() if i.kind == "process"]) < 2:
                await trio.sleep(0.02)
        assert await _found(bench, "process")
        assert (await process.wait()) < 0


async def test_a_supervisor_without_its_directory(bench: Bench) -> None:
    """A pod whose directory somebody has removed is still found by its processes, and ended."""
    pod, _ = await bench.start(container("a", "sleep", "600"))
    directory = bench.runtime.layout.pod(pod.uid)
    directory.rename(directory.parent.parent / "moved")
    kinds = {item.kind for item in await bench.runtime.inventory()}
    assert "process" in kinds
    await bench.runtime.sweep(frozenset())
    assert await bench.runtime.inventory() == []


@pytest.mark.require("root", reason="only root can mount on the host")
async def test_mount(bench: Bench) -> None:
    """A mount in the directory of a pod that nobody owns is found, unmounted, and its directory removed."""
    place = bench.runtime.layout.pod(ORPHAN) / "box" / "a"
    place.mkdir(parents=True)
    await trio.run_process(["mount", "-t", "tmpfs", "tmpfs", str(place)])
    (place / "file").touch()
    assert await _found(bench, "mount")


@pytest.mark.require("root", reason="only root can keep a namespace by its name")
async def test_namespace(bench: Bench, require: Require) -> None:
    """A named network namespace that carries the host id and belongs to nobody is found and removed."""
    require("ip", reason="it makes the namespace")
    name = f"rik-{bench.host_id}-{ORPHAN}"
    await trio.run_process(["ip", "netns", "add", name])
    assert (NAMED_NAMESPACES[0] / name).exists()
    assert await _found(bench, "namespace")
    assert not (NAMED_NAMESPACES[0] / name).exists()


async def test_everything_of_a_pod_is_listed(bench: Bench, require: Require) -> None:
    """The inventory of a running pod names its processes, namespaces, files, socket and cgroups, all with its uid."""
    pod, _ = await bench.start(container("a", "sleep", "600"), container("b", "sleep", "600"), resources={"pids": 50})
    items = await bench.runtime.inventory()
    assert {item.owner for item in items} == {pod.uid}
    kinds = {item.kind for item in items}
    assert {"process", "namespace", "file", "socket"} <= kinds
    assert len([item for item in items if item.kind == "process"]) == 5, "a supervisor, and two a container"


async def test_others_are_left_alone(bench: Bench) -> None:
    """A process, directory or socket that only looks a little like a pod's is not touched."""
    other = make_pod().uid
    neighbour = bench.data_dir.parent / "pods" / other
    neighbour.mkdir(parents=True)
    process = await trio.lowlevel.open_process(["sh", "-c", "sleep 600; :", str(bench.runtime.layout.pod(other))])
    try:
        assert await bench.runtime.sweep(frozenset()) == []
        assert process.poll() is None
        assert neighbour.exists()
    finally:
        process.kill()
        await process.wait()

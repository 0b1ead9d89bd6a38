"""Without namespaces: only where asked for, recorded as such, and still nothing gets away."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from rik.errors import InstanceFailure
from rik.linux.idmap import Unavailable
from rik.messages import Exec
from rik.runtime.process.states import supervisor

from .conftest import THOUSAND_CHILDREN, Bench, Frames, container, make_pod, script

FORBIDDEN = Unavailable("user namespaces are forbidden: /proc/sys/user/max_user_namespaces is 0", "as root: echo 15000")


@pytest.fixture
async def plain(data_dir: Path) -> AsyncIterator[Bench]:
    async with Bench(data_dir, FORBIDDEN, unsafe_plain=True).open() as opened:
        yield opened


async def test_forbidden_is_said(data_dir: Path) -> None:
    """Where user namespaces are forbidden the probe and the instance's failure say so, and what to do."""
    async with Bench(data_dir, FORBIDDEN).open() as bench:
        capability = await bench.runtime.probe()
        assert not capability.ok
        assert "max_user_namespaces is 0" in capability.reason
        with pytest.raises(InstanceFailure, match="max_user_namespaces is 0") as caught:
            await bench.runtime.prepare(make_pod(container("a", "true")), lambda progress: None)
        assert caught.value.reason == "CreateFailed"
        assert "15000" in caught.value.next_step
        assert await bench.runtime.inventory() == []


async def test_runs_and_is_recorded(plain: Bench) -> None:
    """With --unsafe-plain a pod runs, and its record says that nothing isolates it."""
    assert (await plain.runtime.probe()).ok
    pod, ended = await plain.run(script("a", "echo out; exit 3"))
    assert await plain.text(pod) == "out"
    assert ended.containers[0].exit_code == 3
    assert "without namespaces" in str(ended.enforced["isolation"])


async def test_missing_command(plain: Bench) -> None:
    """A missing command is told as well as with namespaces."""
    with pytest.raises(InstanceFailure, match="command `nosuch` not found in PATH") as caught:
        await plain.start(container("a", "nosuch"))
    assert caught.value.reason == "CommandNotFound"


async def test_images_need_namespaces(plain: Bench) -> None:
    """Only the image `host` runs plainly."""
    with pytest.raises(InstanceFailure, match="only the image `host`"):
        await plain.start({"name": "a", "image": "oci:/nowhere:latest"})


async def test_nothing_gets_away(plain: Bench) -> None:
    """What leaves its session and its parent is killed all the same, whether by a stop or by the end of the command."""
    text = "(setsid sh -c 'sleep 1001 & sleep 1002' &); sleep 0.2; echo up; sleep 1003"
    pod, _ = await plain.start(script("a", text))
    await plain.until_said(pod, "up")
    await plain.runtime.stop(pod.uid, 0)
    assert not [item for item in await plain.runtime.inventory() if item.kind == "process"]
    await plain.run(script("a", "(setsid sleep 1004 &); sleep 0.2"))
    assert not [item for item in await plain.runtime.inventory() if item.kind == "process"]


async def test_supervisor_killed(plain: Bench) -> None:
    """When the supervisor is killed, its containers end with it."""
    pod, _ = await plain.start(script("a", "(setsid sleep 1005 &); echo up; sleep 1006"))
    await plain.until_said(pod, "up")
    identity = supervisor(plain.runtime.layout.pod(pod.uid))
    assert identity is not None
    identity.kill()
    ended = await plain.runtime.wait(pod.uid, lambda observed: None)
    assert ended.failure is not None
    assert ended.failure.reason == "SupervisorLost"
    assert not [item for item in await plain.runtime.inventory() if item.kind == "process"]


async def test_exec(plain: Bench) -> None:
    """Exec works, with its exit code, and dies with its client."""
    pod, _ = await plain.start(container("a", "sleep", "600"))
    frames = Frames()
    await plain.runtime.exec(Exec(pod.uid, ("sh", "-c", "echo hello; exit 4")), frames)
    assert frames.text(1) == "hello\n"
    assert json.loads(frames.sent[-1][1:]) == {"exit": 4}
    frames = Frames()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(plain.runtime.exec, Exec(pod.uid, ("sh", "-c", "echo up; sleep 1007")), frames)
        await frames.until(lambda: "up" in frames.text(1))
        frames.hang_up()
    with trio.fail_after(10):
        while any("1007" in item.detail for item in await plain.runtime.inventory()):
            await trio.sleep(0.05)


async def test_a_thousand_children(plain: Bench) -> None:
    """Even a thousand children are all killed."""
    pod, _ = await plain.start(container("bomb", "python3", "-c", THOUSAND_CHILDREN))
    await plain.until_said(pod, "up")
    await plain.runtime.stop(pod.uid, 0)
    assert not [item for item in await plain.runtime.inventory() if item.kind == "process"]


_PROBING = """
import sys, trio
from pathlib import Path
from rik.environment import SystemEnvironment
from rik.images.store import ImageStore
from rik.linux.idmap import detect
from rik.runtime.process.layout import Layout
from rik.runtime.process.runtime import ProcessRuntime

async def main(data_dir, plain):
    idmap = detect()
    images = ImageStore(Path(data_dir) / "images", "00c0ffee", idmap)
    layout = Layout(Path(data_dir), "00c0ffee")
    runtime = ProcessRuntime(SystemEnvironment(), layout, images, idmap, unsafe_plain=plain == "plain")
    async with runtime.open():
        found = await runtime.probe()
        print(found.ok, found.reason)

trio.run(main, *sys.argv[1:])
"""


@pytest.mark.require("root", reason="a part of /proc is covered, in a mount namespace of its own")
@pytest.mark.parametrize("plain", ["", "plain"])
async def test_masked_proc(data_dir: Path, plain: str) -> None:
    """Where parts of /proc are masked, as in a container, pods cannot be made, which is said; plain ones can."""
    shell = 'mount -t tmpfs tmpfs /proc/irq && exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", shell, "sh", sys.executable, "-c", _PROBING, str(data_dir), plain]
    answer = (await trio.run_process(command, capture_stdout=True)).stdout.decode()
    assert "/proc cannot be mounted in a pod" in answer
    assert answer.startswith("True plainly" if plain else "False")

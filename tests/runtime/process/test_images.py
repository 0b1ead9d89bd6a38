"""Images of layers: their files, their owners, their wishes; stacked where that is possible, else copied."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio

from rik.linux.idmap import IdMap, Unavailable, single
from rik.runtime.process.podinit import flatten
from tests.conftest import Require
from tests.images.build import Entry, config_of, file, folder, layout, symlink, tar, whiteout

from .conftest import Bench

pytestmark = [
    pytest.mark.require("user-namespaces", reason="pods are made of them"),
    pytest.mark.require("static-busybox", reason="it is all that is in the image"),
]

_APPLETS = ("sh", "cat", "id", "ls", "echo", "stat", "sleep", "readlink", "env", "chown", "touch", "mount", "find")


def _base() -> list[Entry]:
    busybox = shutil.which("busybox")
    assert busybox is not None
    return [
        *(folder(name) for name in ("bin", "etc", "tmp", "home", "data")),
        file("bin/busybox", Path(busybox).read_bytes(), mode=0o755),
        *(symlink(f"bin/{name}", "busybox") for name in _APPLETS),
        file("etc/passwd", b"root:x:0:0::/root:/bin/sh\nweb:x:33:44::/home:/bin/sh\n"),
        file("etc/group", b"root:x:0:\nwebs:x:44:\nextra:x:55:web\n"),
        file("data/removed", b"x"),
        file("data/private", b"secret\n", mode=0o600, uid=33, gid=44),
        folder("data/opaque"),
        file("data/opaque/below", b"x"),
    ]


def _top() -> list[Entry]:
    return [
        whiteout("data/removed"),
        folder("data/opaque"),
        file("data/opaque/.wh..wh..opq"),
        file("data/opaque/above", b"y"),
        symlink("etc/resolv.conf", "/run/resolvconf/resolv.conf"),
        symlink("etc/hosts", "../../../../../../data/rik-test-hosts"),
    ]


def _image(path: Path, **config: Any) -> str:
    layers = tar(*_base()), tar(*_top())
    wishes = {"Env": ["PATH=/bin", "COLOUR=red"], **config}
    return f"oci:{layout(path, *layers, config=config_of(layers, config=wishes))}:latest"


@pytest.fixture(params=["detected", "single"])
async def image_bench(
    request: pytest.FixtureRequest, data_dir: Path, idmap: IdMap | Unavailable
) -> AsyncIterator[Bench]:
    """With the map pods get here, and (as an ordinary user) with the poorest there is."""
    if request.param == "single" and os.geteuid() == 0:
        pytest.skip("real root is never mapped")
    async with Bench(data_dir, single() if request.param == "single" else idmap).open() as opened:
        yield opened


async def test_layers_make_a_root(image_bench: Bench, tmp_path: Path) -> None:
    """The layers are stacked as they should be, and nothing of the host is seen."""
    reference = _image(tmp_path / "image", Cmd=["sh", "-c", "ls /; cat /data/private; ls /data /data/opaque; env; id"])
    pod, ended = await image_bench.run({"name": "a", "image": reference})
    text = await image_bench.text(pod)
    assert ended.failure is None, await image_bench.text(pod, "stderr")
    words = text.split()
    assert {"bin", "etc", "tmp", "home", "data", "proc", "dev", "sys", "run"} >= set(words[: words.index("secret")])
    assert "removed" not in words
    assert "above" in words
    assert "below" not in words
    assert "COLOUR=red" in words
    assert "uid=0(root)" in words
    assert "layers" not in ended.enforced, "an overlay, not a copy"


async def test_writes_stay_in_the_pod(image_bench: Bench, tmp_path: Path) -> None:
    """What a container writes is its own: the next pod of the same image sees nothing of it."""
    reference = _image(tmp_path / "image")
    command = ["sh", "-c", "cat /new /data/private; echo changed > /data/private; touch /new; ls /new"]
    for _ in range(2):
        pod, ended = await image_bench.run({"name": "a", "image": reference, "command": command})
        assert ended.failure is None
        assert (await image_bench.text(pod)).split() == ["secret", "/new"]


async def test_own_files_do_not_follow_links_out(image_bench: Bench, tmp_path: Path) -> None:
    """The pod's own /etc/hosts is put where the image's links lead inside of it, and nowhere on the host."""
    reference = _image(tmp_path / "image")
    command = ["sh", "-c", "cat /etc/hosts /data/rik-test-hosts; cat /etc/resolv.conf; echo done"]
    pod, ended = await image_bench.run({"name": "a", "image": reference, "command": command})
    assert ended.failure is None, await image_bench.text(pod, "stderr")
    assert "localhost" in await image_bench.text(pod)
    assert not Path("/data/rik-test-hosts").exists()


async def test_wishes_of_the_image(image_bench: Bench, tmp_path: Path, require: Require) -> None:
    """Its entrypoint, working directory and stop signal hold unless the document says otherwise."""
    reference = _image(
        tmp_path / "image", Entrypoint=["echo", "from"], Cmd=["image"], WorkingDir="/data", StopSignal="SIGUSR1"
    )
    pod, _ = await image_bench.run(
        {"name": "a", "image": reference},
        {"name": "b", "image": reference, "args": ["document"]},
        {"name": "c", "image": reference, "command": ["readlink", "/proc/self/cwd"]},
        {"name": "d", "image": reference, "command": ["readlink"], "args": ["/proc/self/cwd"], "workingDir": "/etc"},
    )
    said = {line.container: line.line for line in await image_bench.lines(pod)}
    assert said == {"a": "from image", "b": "from document", "c": "/data", "d": "/etc"}
    trap = "trap 'echo usr1; exit 0' USR1; echo up; while :; do sleep 0.05; done"
    pod, _ = await image_bench.start({"name": "a", "image": reference, "command": ["sh", "-c", trap]})
    await image_bench.until_said(pod, "up")
    await image_bench.runtime.stop(pod.uid, 10)
    assert "usr1" in await image_bench.text(pod)


async def test_owners_and_users(bench: Bench, tmp_path: Path, require: Require) -> None:
    """Files belong to whom the image says, and users and groups are those of the image's own files."""
    require("subordinate-ids", reason="other owners need other ids")
    reference = _image(tmp_path / "image", User="web")
    command = ["sh", "-c", "id -u; id -G; cat /data/private; stat -c %u:%g /data/private /bin/busybox; env"]
    pod, ended = await bench.run({"name": "a", "image": reference, "command": command})
    words = (await bench.text(pod)).split()
    assert ended.failure is None, await bench.text(pod, "stderr")
    assert words[:6] == ["33", "44", "55", "secret", "33:44", "0:0"]
    assert "HOME=/home" in words


async def test_made_by_umoci(image_bench: Bench, tmp_path: Path, require: Require) -> None:
    """An OCI layout made with umoci from busybox runs as a pod."""
    require("umoci", reason="it makes the image")
    bundle = tmp_path / "new"
    (bundle / "rootfs" / "bin").mkdir(parents=True)
    busybox = shutil.which("busybox")
    assert busybox is not None
    shutil.copy(busybox, bundle / "rootfs/bin/busybox")
    (bundle / "rootfs/bin/sh").symlink_to("busybox")
    image = tmp_path / "umoci"
    for command in (
        ["umoci", "init", "--layout", str(image)],
        ["umoci", "new", "--image", f"{image}:v1"],
        ["umoci", "insert", "--rootless", "--image", f"{image}:v1", str(bundle / "rootfs"), "/"],
        ["umoci", "config", "--image", f"{image}:v1", "--config.cmd", "/bin/sh", "--config.cmd", "-c"],
    ):
        await trio.run_process(command, capture_stdout=True, capture_stderr=True)
    command_line = ["/bin/busybox", "echo", "made by umoci"]
    pod, ended = await image_bench.run({"name": "a", "image": f"oci:{image}:v1", "command": command_line})
    assert ended.failure is None, ended.failure
    assert await image_bench.text(pod) == "made by umoci"


async def test_many_layers(image_bench: Bench, tmp_path: Path) -> None:
    """An image of a hundred layers runs like any other."""
    layers = [tar(*_base()), *(tar(file(f"data/{number}")) for number in range(100))]
    wishes = {"Env": ["PATH=/bin"], "Cmd": ["sh", "-c", "ls /data"]}
    reference = f"oci:{layout(tmp_path / 'image', *layers, config=config_of(layers, config=wishes))}:latest"
    pod, ended = await image_bench.run({"name": "a", "image": reference})
    assert ended.failure is None, ended.failure
    assert {str(number) for number in range(100)} <= set((await image_bench.text(pod)).split())


@pytest.mark.require("root", reason="the file system that refuses must be mounted")
async def test_copied_where_owners_cannot_be_mapped(idmap: IdMap | Unavailable, data_dir: Path, tmp_path: Path) -> None:
    """Where a file system does not let owners be mapped the layers are copied, owners and all, which is recorded."""
    await trio.run_process(["mount", "-t", "ramfs", "ramfs", str(data_dir)])
    data_dir.chmod(0o700)
    try:
        async with Bench(data_dir, idmap).open() as bench:
            layers = tar(*_base()), tar(file("data/above"))
            config = config_of(layers, config={"Env": ["PATH=/bin"]})
            reference = f"oci:{layout(tmp_path / 'image', *layers, config=config)}:latest"
            command = ["sh", "-c", "ls /data; stat -c %u:%g /data/private; touch /x; ls /x; id -u"]
            pod, ended = await bench.run({"name": "a", "image": reference, "command": command})
            assert ended.failure is None, await bench.text(pod, "stderr")
            assert {"above", "33:44", "/x"} <= set((await bench.text(pod)).split())
            assert "copied, not shared" in str(ended.enforced["layers"])
    finally:
        await trio.run_process(["umount", "-l", str(data_dir)])


def test_flattening(tmp_path: Path) -> None:
    """A copy has the files of all layers, without what upper ones delete or hide; links stay links."""
    lower, upper, target = (tmp_path / name for name in ("lower", "upper", "target"))
    (lower / "dir").mkdir(parents=True)
    (lower / "dir" / "one").write_text("one")
    (lower / "dir" / "one").chmod(0o640)
    os.link(lower / "dir" / "one", lower / "dir" / "same")
    (lower / "replaced").mkdir()
    (lower / "replaced" / "inner").touch()
    (lower / "hidden").mkdir()
    (lower / "hidden" / "below").touch()
    (upper / "hidden").mkdir(parents=True)
    os.setxattr(upper / "hidden", "user.overlay.opaque", b"y")
    (upper / "hidden" / "above").touch()
    (upper / "replaced").symlink_to("/etc/passwd")
    flatten.copy([str(lower), str(upper)], str(target))
    assert sorted(str(path.relative_to(target)) for path in target.rglob("*")) == [
        *("dir", "dir/one", "dir/same", "hidden", "hidden/above", "replaced")
    ]
    assert (target / "dir/one").stat().st_ino == (target / "dir/same").stat().st_ino
    assert (target / "dir/one").stat().st_mode & 0o777 == 0o640
    assert (target / "replaced").readlink() == Path("/etc/passwd")

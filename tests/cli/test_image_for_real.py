"""image list, pull and prune, and run by reference, against a real server and a real registry."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from tests.cli.conftest import LIMIT_S, Rik
from tests.images.build import config_of, file, folder, layout, tar
from tests.registry import Registry, slow_way

pytestmark = [
    pytest.mark.require("user-namespaces", reason="the server runs pods"),
    pytest.mark.require("docker-registry", reason="images are pulled from it"),
    pytest.mark.require("skopeo", reason="images are pushed by it"),
    pytest.mark.require("static-busybox", reason="it is what the image holds"),
]

RANDOM_BYTES = 20_000_000
SLOW_BYTES_PER_S = 2e6


@pytest.fixture(scope="module")
def greeter(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The reference of an image of two layers that greets and exposes port 80."""
    busybox = next(path for path in (Path("/bin/busybox"), Path("/usr/bin/busybox")) if path.exists())
    base = tar(folder("bin"), file("bin/busybox", busybox.read_bytes(), mode=0o755))
    layers = [base, tar(folder("etc"), file("etc/greeting", b"hello from a registry\n"))]
    options = {
        "Cmd": ["/bin/busybox", "cat", "/etc/greeting"],
        "Env": ["PATH=/bin"],
        "ExposedPorts": {"80/tcp": {}},
    }
    made = layout(tmp_path_factory.mktemp("greeter"), *layers, config=config_of(layers, config=options))
    registry.push(f"oci:{made}:latest", "team/greeter:v1")
    return f"{registry.host}/team/greeter:v1"


@pytest.fixture(autouse=True)
def no_images(rik: Rik) -> Iterator[None]:
    yield
    rik.ok("image", "prune")


def test_from_pull_to_prune(rik: Rik, registry: Registry, greeter: str) -> None:
    """An image is pulled, listed, up to date the second time, and pruned."""
    assert rik.ok("images") == "no images\n"
    told = rik.ok("image", "pull", greeter).splitlines()[-1]
    came = r"2 of 2 layers, \S+ \S?B in .+, \S+ \S?B unpacked"
    assert re.fullmatch(rf"pulled {greeter}  sha256:[0-9a-f]{{12}}  from {registry.host}: {came}", told)
    digest = rik.ok("image", "pull", "-q", greeter).strip()
    assert rik.ok("image", "pull", greeter).splitlines()[-1] == f"{greeter} is up to date  {digest[:19]}"
    _, row = rik.ok("images").splitlines()
    assert row.startswith(f"{greeter}  {digest[7:19]}  ") and row.endswith(f"{registry.host}  -")
    assert rik.ok("images", "-o", "json").encode() == rik.raw("images.list")
    assert "1 image would go" in rik.ok("image", "prune", "--dry-run")
    assert "every image was used in the last 1h" in rik.ok("image", "prune", "--unused", "1h")
    pruned = rik.ok("image", "prune").splitlines()
    assert pruned[1].startswith(greeter) and pruned[2].startswith("1 image removed, ")
    assert rik.ok("images") == "no images\n"
    assert rik.ok("audit").endswith("no orphans\n")


def test_run_by_reference(rik: Rik, greeter: str) -> None:
    """`rik run REFERENCE` pulls and runs it; the description says what was pulled; what is used is not pruned."""
    done = rik("run", "--rm", greeter)
    assert (done.returncode, done.stdout) == (0, "hello from a registry\n"), done.stderr
    assert "greeter" not in rik.ok("get", "workloads"), "--rm removes the workload, which is called like the image"
    digest = rik.ok("image", "pull", "-q", greeter).strip()
    pinned = f"{greeter.rpartition(':')[0]}@{digest}"
    assert rik("run", "--rm", pinned, "--", "/bin/busybox", "echo", "by digest").stdout == "by digest\n"
    name = rik.deploy("stays", "", image=greeter, command=["/bin/busybox", "sleep", "1000"])
    described = rik.ok("describe", "instance", name)
    for part in (
        f"  {greeter}  (of main)",
        f"    digest  {digest}",
        "    cached  it was on the node already",
        "Images",
    ):
        assert part in described
    assert (
        '80/tcp, which nothing publishes; to publish it, write "ports": [{"port": 8080, "targetPort": 80}]' in described
    )
    assert rik.ok("images").splitlines()[1].endswith(f"  {name}")
    assert rik.ok("image", "prune").startswith("nothing to prune: every image is used")
    rik.ok("delete", "workload", "stays", "--wait")


def test_what_cannot_be_pulled(rik: Rik, registry: Registry) -> None:
    """An image that does not exist is told with its reason, by `image pull` and by an instance alike."""
    missing = f"{registry.host}/team/nothing:v1"
    done = rik("image", "pull", missing)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith(f"error: ImageNotFound: {missing}: ") and "\nnext: " in done.stderr
    failed = rik("run", missing)
    assert failed.returncode == 1 and f"failed: ImageNotFound: {missing}: " in failed.stderr
    (name,) = re.findall(r"next: rik describe instance (\S+)", failed.stderr)
    described = rik.ok("describe", "instance", name)
    assert "Reason:       ImageNotFound" in described and f"next: rik image pull {missing} --node " in described
    rik.remove("nothing")


async def test_interrupted_pull(rik: Rik, registry: Registry, tmp_path: Path) -> None:
    """A pull shows its bytes as they come; Ctrl-C gives it up, and the node goes no further with it."""
    layers = [tar(file("noise", os.urandom(RANDOM_BYTES)))]
    registry.push(f"oci:{layout(tmp_path / 'layout', *layers)}:latest", "team/noise:v1")
    with trio.fail_after(LIMIT_S):
        async with slow_way(registry.port, SLOW_BYTES_PER_S) as way:
            process = rik.start("image", "pull", f"{way.host}/team/noise:v1")
            assert process.stdout is not None
            line = ""
            while not re.match(r"pull [1-9]\d? % \(\d+\.?\d* of 20 MB, 0 of 1 layer", line):
                line = await trio.to_thread.run_sync(process.stdout.readline)
                assert line
            process.send_signal(signal.SIGINT)
            assert await trio.to_thread.run_sync(process.wait) == 130
            assert rik.ok("images") == "no images\n"

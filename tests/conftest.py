"""What every test may ask for.

`require` is how a test says that it needs something of this machine: a program (`umoci`), or one of the abilities
named in `ABILITIES` (`user-namespaces`). On a developer's machine a test whose need is not met is skipped with the
reason; in CI (`CI=true`, as `.ci/run` sets it) it fails instead, because there everything is installed and a skip
would hide that a runtime is no longer tested. Needs of who runs the tests (`root`, `ordinary-user`) skip everywhere:
`.ci/run` runs the suite as both. Two ways to say it, for whole tests or modules and for the middle of a test:

    pytestmark = pytest.mark.require("user-namespaces", reason="pods are made of them")

    def test_layout(require: Require) -> None:
        require("umoci", reason="it makes the image that this test runs")

For an ability that only the test can judge, give the finding: `require("cgroup", reason=…, present=is_writable)`; and
`expected_in_ci=False` where even CI cannot have it.
"""

from __future__ import annotations

import functools
import getpass
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import pytest

from tests.debian_image import Unavailable
from tests.debian_image import image as debian_image_of_this_machine
from tests.registry import Registry, running_registry

RUNS_IN_CI = os.environ.get("CI", "").lower() in ("true", "1")


class Require(Protocol):
    def __call__(self, what: str, reason: str, *, present: bool | None = None, expected_in_ci: bool = True) -> None: ...


def _makes_user_namespaces() -> bool:
    command = ["unshare", "--user", "--map-root-user", "true"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _has_static_busybox() -> bool:
    """It is copied alone into an image, so it must not ask for a dynamic linker."""
    path = _find_program("busybox")
    return path is not None and b"/ld-" not in Path(path).read_bytes()[:4096]


def _has_subordinate_ids() -> bool:
    """As root any range may be mapped; an ordinary user needs newuidmap and a line in /etc/subuid."""
    if os.geteuid() == 0:
        return True
    ranges = Path("/etc/subuid")
    names = (f"{getpass.getuser()}:", f"{os.geteuid()}:")
    has_range = ranges.exists() and any(line.startswith(names) for line in ranges.read_text().splitlines())
    return has_range and _find_program("newuidmap") is not None


ABILITIES: dict[str, Callable[[], bool]] = {
    "root": lambda: os.geteuid() == 0,
    "ordinary-user": lambda: os.geteuid() != 0,
    "user-namespaces": _makes_user_namespaces,
    "subordinate-ids": _has_subordinate_ids,
    "static-busybox": _has_static_busybox,
}
WHO_RUNS = frozenset({"root", "ordinary-user"})


def _find_program(name: str) -> str | None:
    """Debian keeps some programs outside an ordinary user's PATH."""
    return shutil.which(name, path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin")


@functools.cache
def _is_present(what: str) -> bool:
    return ABILITIES[what]() if what in ABILITIES else _find_program(what) is not None


def _require(what: str, reason: str, *, present: bool | None = None, expected_in_ci: bool = True) -> None:
    if _is_present(what) if present is None else present:
        return
    message = f"needs {what}: {reason}"
    if RUNS_IN_CI and expected_in_ci and what not in WHO_RUNS:
        pytest.fail(f"{message} (it should be there in CI)", pytrace=False)
    pytest.skip(message)


@pytest.fixture(scope="session")
def require() -> Require:
    """`require(what, reason)`: go on if this machine has it, else skip; in CI, fail."""
    return _require


@pytest.fixture
def small_disk(tmp_path: Path, require: Require) -> Iterator[Path]:
    """A tmpfs of 2 MiB: a disk that can really be full."""
    require("root", reason="only root may mount a small disk")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True, text=True
    )
    require("mount", reason=f"a small disk is mounted: {mounted.stderr}", present=mounted.returncode == 0)
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.fixture(scope="session")
def debian_image() -> Path:
    """A layout of `tests.debian_image`; as root it may have to be made first, which takes about a minute."""
    try:
        return debian_image_of_this_machine()
    except Unavailable as unavailable:
        _require("a Debian image", reason=str(unavailable), present=False)
        raise


@pytest.fixture(scope="module")  # other modules count the children of the tests
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """Debian's docker-registry on loopback, which everybody may read and write."""
    _require("docker-registry", reason="images are pulled from it")
    with running_registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


def pytest_configure() -> None:
    """A suite in the background of a shell ignores SIGINT; the commands that it runs and interrupts must not."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("require"):
        _require(*marker.args, **marker.kwargs)

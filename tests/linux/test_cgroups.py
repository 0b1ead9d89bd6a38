"""Control groups: made, limited, read and removed where they can be; a reason where not."""

from __future__ import annotations

import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from rik.linux.cgroups import CONTROLLERS, Cgroups, Place, oom_kills
from tests.conftest import Require

UID = "uid00000000000000000"


@pytest.fixture
def cgroups() -> Iterator[Cgroups]:
    found = Cgroups.find(secrets.token_hex(4))
    yield found
    assert found.remove(UID) == []
    found.close()


@pytest.fixture
def writable(cgroups: Cgroups, require: Require) -> Cgroups:
    require("cgroup", reason=str(cgroups.reasons), present=not cgroups.reasons, expected_in_ci=False)
    return cgroups


def test_each_controller_works_or_says_why(cgroups: Cgroups) -> None:
    """Every controller has either a place or a reason."""
    for name in CONTROLLERS:
        assert (name in cgroups.places) != (name in cgroups.reasons)
    wanted = cgroups.create(UID, ["a"], 500, 64 << 20, 100)
    assert set(wanted) == set(cgroups.reasons)


def test_life(writable: Cgroups) -> None:
    """A pod's cgroups are made with their limits, found with their owner, used, and removed."""
    assert writable.create(UID, ["a", "b"], 500, 64 << 20, 100) == {}
    assert writable.create(UID, ["a", "b"], 500, 64 << 20, 100) == {}, "again is fine"
    assert set(writable.owners().values()) == {UID}
    for directory in writable.directories(UID, "a"):
        (Path(directory) / "cgroup.procs").write_text("0") if False else None
    with subprocess.Popen(["sleep", "600"]) as child:
        for directory in writable.directories(UID, "a"):
            Path(directory, "cgroup.procs").write_text(str(child.pid))
        assert writable.processes(UID) == [child.pid]
        usage = writable.usage(UID, "a")
        assert usage.pids == 1
        assert usage.memory_bytes is not None
        assert usage.cpu_seconds is not None
        assert writable.remove(UID), "it is busy"
        child.kill()
    assert oom_kills(Path(writable.oom_file(UID, "a")).read_text()) == 0
    assert writable.remove(UID) == []
    assert writable.owners() == {}
    assert writable.usage(UID, "a").pids is None


def test_tidied_up_meanwhile(writable: Cgroups) -> None:
    """When somebody has removed the host's own cgroups, which are empty between pods, the next pod has its limits."""
    writable.close()
    assert not any(Path(place.directory).exists() for place in writable.places.values())
    assert writable.oom_file(UID, "a") == ""
    assert writable.create(UID, ["a"], 500, 64 << 20, 100) == {}
    assert writable.oom_file(UID, "a")
    assert set(writable.owners().values()) == {UID}


def test_limits_are_set(writable: Cgroups) -> None:
    """The limits stand in the pod's cgroup."""
    writable.create(UID, ["a"], 250, 64 << 20, 77)
    texts = {}
    for directory in writable.directories(UID):
        for name in ("pids.max", "memory.max", "memory.limit_in_bytes", "cpu.max", "cpu.cfs_quota_us"):
            path = Path(directory, name)
            if path.exists():
                texts[name] = path.read_text().strip()
    assert texts["pids.max"] == "77"
    assert str(64 << 20) in (texts.get("memory.max"), texts.get("memory.limit_in_bytes"))
    assert texts.get("cpu.cfs_quota_us", texts.get("cpu.max", "")).startswith("25000")


def test_out_of_memory_counter() -> None:
    """Both versions' files are understood."""
    assert oom_kills("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n") == 3
    assert oom_kills("low 0\nhigh 0\nmax 12\noom 1\noom_kill 2\noom_group_kill 0\n") == 2
    assert oom_kills("") == 0


def test_second_version(tmp_path: Path) -> None:
    """With version 2 all controllers are in one tree, each is switched on above where it is used, and swap is none."""
    host = tmp_path / "rik-00000000"
    names = ("cgroup.subtree_control", "cpu.max", "memory.max", "memory.swap.max", "pids.max")
    for directory in (host, host / UID):
        directory.mkdir()
        for name in names:
            (directory / name).touch()
    cgroups = Cgroups("00000000", {name: Place(str(host), 2) for name in CONTROLLERS}, {})
    assert cgroups.create(UID, ["a"], 1500, 64 << 20, 77) == {}
    pod = host / UID
    assert [(pod / name).read_text() for name in names[1:]] == ["150000 100000", str(64 << 20), "0", "77"]
    assert (pod / "cgroup.subtree_control").read_text().startswith("+")
    assert cgroups.directories(UID, "a") == [str(pod / "a")]
    assert cgroups.oom_file(UID, "a") == str(pod / "a" / "memory.events")
    for name, text in (
        ("memory.current", "5000"),
        ("memory.stat", "anon 1\ninactive_file 2000\n"),
        ("cpu.stat", "usage_usec 1500000\n"),
        ("pids.current", "3"),
    ):
        (pod / "a" / name).write_text(text)
    usage = cgroups.usage(UID, "a")
    assert (usage.memory_bytes, usage.cpu_seconds, usage.pids) == (3000, 1.5, 3)

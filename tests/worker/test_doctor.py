"""The doctor's round over this very machine."""

from __future__ import annotations

from pathlib import Path

from rik.model.node import Capability
from rik.worker.doctor import examine_now


def test_every_check_says_what_it_found(tmp_path: Path) -> None:
    """Every line has a name and a detail, and what is not well says what to do next."""
    broken = Capability("oci", False, "runc: not found")
    partial = Capability("process", True, "namespaces work", ("Pod",), {"cpu": True, "memory": "no writable cgroup"})
    checks = {check.name: check for check in examine_now([broken, partial], tmp_path / "not-there-yet", "127.0.0.1")}
    assert list(checks) == [
        "python",
        "kernel",
        "user namespaces",
        "runtime oci",
        "runtime process",
        "disk",
        "publish address",
        "ports",
        "clock",
    ]
    assert all(check.detail for check in checks.values())
    assert all(check.next for check in checks.values() if not check.ok)
    assert checks["python"].ok
    assert not checks["runtime oci"].ok
    assert "runc: not found" in checks["runtime oci"].detail
    assert "runs Pods" in checks["runtime process"].detail
    assert "memory: no writable cgroup" in checks["runtime process"].detail


def test_an_address_of_somebody_else(tmp_path: Path) -> None:
    """A publish address that is not this host's is found out by trying."""
    checks = {check.name: check for check in examine_now([], tmp_path, "192.0.2.1")}
    assert not checks["publish address"].ok
    assert "192.0.2.1" in checks["publish address"].detail
    assert not checks["ports"].ok

"""What this host can do, and for what it cannot: why not, and what to do about it."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import trio

from rik.errors import InstanceFailure
from rik.linux import cgroups
from rik.linux.syscalls import CLONE_NEWUSER
from rik.model.instance import Port
from rik.model.node import Capability, Check
from rik.model.sizes import format_bytes
from rik.network import ports
from rik.worker.images import NodeImages

OLDEST_PYTHON = (3, 11)
# Recursive read-only mounts, from which the `host` image is made.
OLDEST_KERNEL = (5, 12)
LEAST_FREE_DISK_BYTES = 2**30
# Any time before this is a clock that was never set (seconds since the epoch: 2025).
EARLIEST_NOW_S = 1_735_689_600
TRY_S = 5.0
_TRY_USER_NAMESPACE = (
    "import ctypes, os, sys; libc = ctypes.CDLL(None, use_errno=True); "
    f"sys.exit(os.strerror(ctypes.get_errno()) if libc.unshare({CLONE_NEWUSER}) else 0)"
)


async def examine(
    capabilities: Sequence[Capability],
    data_dir: Path,
    publish_address: str,
    host_id: str = "",
    *,
    images: NodeImages | None = None,
) -> list[Check]:
    """Every check, in a thread; nothing is left behind. `host_id` is for the cgroups that are tried ("" tries none)."""
    checks = await trio.to_thread.run_sync(examine_now, capabilities, data_dir, publish_address, host_id)
    return checks if images is None else [*checks, await images.check()]


def examine_now(
    capabilities: Sequence[Capability], data_dir: Path, publish_address: str, host_id: str = ""
) -> list[Check]:
    """As `examine`, blocking for as long as it takes (about 0.2 s)."""
    checks = [_python(), _kernel(), _user_namespaces()]
    if host_id:
        checks.append(_cgroups(host_id))
    checks += [_runtime(capability) for capability in capabilities]
    return [*checks, _disk(data_dir), _address(publish_address), _ports(publish_address), _clock()]


def _python() -> Check:
    version = platform.python_version()
    wanted = ".".join(map(str, OLDEST_PYTHON))
    ok = sys.version_info[:2] >= OLDEST_PYTHON
    return Check("python", ok, version, "" if ok else f"install Python {wanted} or newer")


def _kernel() -> Check:
    release = platform.release()
    numbers = tuple(int(part) for part in release.split("-")[0].split(".")[:2] if part.isdigit())
    ok = sys.platform == "linux" and numbers >= OLDEST_KERNEL
    wanted = ".".join(map(str, OLDEST_KERNEL))
    return Check("kernel", ok, f"{platform.system()} {release}", "" if ok else f"use Linux {wanted} or newer")


def _user_namespaces() -> Check:
    name = "user namespaces"
    try:
        tried = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _TRY_USER_NAMESPACE], capture_output=True, text=True, timeout=TRY_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Check(name, False, f"they could not be tried: {error}", "look at the message, and try again")
    if tried.returncode == 0:
        return Check(name, True, "one was made")
    return Check(name, False, f"one could not be made: {tried.stderr.strip()}", _allow_user_namespaces())


def _allow_user_namespaces() -> str:
    for path, forbidding, advice in (
        ("/proc/sys/user/max_user_namespaces", "0", "sysctl -w user.max_user_namespaces=65536"),
        ("/proc/sys/kernel/unprivileged_userns_clone", "0", "sysctl -w kernel.unprivileged_userns_clone=1"),
        (
            "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
            "1",
            "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
        ),
    ):
        try:
            if Path(path).read_text(encoding="ascii").strip() == forbidding:
                return f"as root: {advice}"
        except OSError:
            continue
    return "in a container, start it with a seccomp profile that allows unshare, or use --unsafe-plain"


def _cgroups(host_id: str) -> Check:
    found = cgroups.Cgroups.find(host_id)
    try:
        if not found.reasons:
            return Check("cgroups", True, "limits of " + ", ".join(sorted(found.places)) + " are enforced")
        missing = "; ".join(f"{controller}: {reason}" for controller, reason in sorted(found.reasons.items()))
        advice = "run as root, or let systemd delegate a cgroup; without it limits are recorded as not enforced"
        return Check("cgroups", False, missing, advice)
    finally:
        found.close()


def _runtime(capability: Capability) -> Check:
    name = f"runtime {capability.runtime}"
    missing = [f"{limit}: {why}" for limit, why in sorted(capability.limits.items()) if why is not True]
    kinds = f"runs {' and '.join(f'{kind}s' for kind in capability.kinds)}" if capability.kinds else ""
    not_enforced = f"not enforced: {'; '.join(missing)}" if missing and capability.ok else ""
    detail = ", ".join(part for part in (kinds, capability.reason, not_enforced) if part)
    advice = "" if capability.ok else "mend what the reason names, then restart RIK"
    return Check(name, capability.ok, detail, advice)


def _disk(data_dir: Path) -> Check:
    place = next((path for path in (data_dir, *data_dir.parents) if path.exists()), Path("/"))
    try:
        free = shutil.disk_usage(place).free
    except OSError as error:
        return Check("disk", False, f"{place}: {error.strerror}", "choose another --data-dir")
    if not os.access(place, os.W_OK):
        return Check("disk", False, f"{place} cannot be written", "choose another --data-dir, or change its owner")
    ok = free >= LEAST_FREE_DISK_BYTES
    advice = "" if ok else f"free some room (at least {format_bytes(LEAST_FREE_DISK_BYTES)}), or move --data-dir"
    return Check("disk", ok, f"{format_bytes(free)} free at {place}", advice)


def _address(address: str) -> Check:
    name = "publish address"
    if not address:
        return Check(name, True, "all addresses of this host")
    try:
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM) as trial:
            trial.bind((address, 0))
    except OSError as error:
        advice = "give --publish-address an address of this host"
        return Check(name, False, f"{address} cannot be bound: {error.strerror or error}", advice)
    return Check(name, True, address)


def _ports(address: str) -> Check:
    span = f"{ports.FIRST_CHOSEN_PORT}-{ports.LAST_CHOSEN_PORT}"
    try:
        ports.bind(Port(0, 0), address, str(time.monotonic_ns())).close()
    except InstanceFailure as failure:
        return Check("ports", False, str(failure), f"free some of {span}, or give workloads fixed ports")
    return Check("ports", True, f"ports of {span} can be published")


def _clock() -> Check:
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    ok = time.time() >= EARLIEST_NOW_S
    return Check("clock", ok, now, "" if ok else "set the clock: statuses are stamped with it")

"""What is on this host of this RIK's pods: found by looking at the host, not by remembering."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from rik.linux.cgroups import Cgroups
from rik.linux.identity import command_line
from rik.model.node import HostResource
from rik.runtime.process.demolition import own_processes
from rik.runtime.process.layout import Layout

PROCESS, NAMESPACE, MOUNT, CGROUP, FILE, SOCKET = "process", "namespace", "mount", "cgroup", "file", "socket"
_NAMESPACES = ("user", "net", "ipc", "uts", "mnt", "pid")
# Where named namespaces are usually kept, as bind mounts.
NAMED_NAMESPACES = (Path("/run/netns"), Path("/run/rik/ns"))
_UID = re.compile(r"[0-9a-z]{20}|probe-[0-9a-f]{10}")


def look(layout: Layout, cgroups: Cgroups) -> list[HostResource]:
    """Everything, each with the uid its name carries. Blocks."""
    owners = own_processes(layout)
    return [
        *_files(layout),
        *(HostResource(CGROUP, path, uid) for path, uid in sorted(cgroups.owners().items())),
        *(HostResource(PROCESS, str(pid), uid, " ".join(command_line(pid))[:200]) for pid, uid in owners.items()),
        *_namespaces(owners),
        *_named_namespaces(layout.host_id),
        *mounts(layout),
    ]


def _files(layout: Layout) -> Iterator[HostResource]:
    for directory, kind in ((layout.pods, FILE), (layout.run_dir, SOCKET)):
        try:
            entries = sorted(directory.iterdir())
        except FileNotFoundError:
            continue
        for path in entries:
            yield HostResource(kind, str(path), path.name.removesuffix(".sock"))


def _namespaces(owners: dict[int, str]) -> list[HostResource]:
    """Those that the pods' processes are in and that this process is not."""
    own = {_namespace(os.getpid(), kind) for kind in _NAMESPACES}
    found: dict[str, HostResource] = {}
    for pid, uid in owners.items():
        for kind in _NAMESPACES:
            name = _namespace(pid, kind)
            if name and name not in own and name not in found:
                found[name] = HostResource(NAMESPACE, name, uid, f"of process {pid}")
    return list(found.values())


def _namespace(pid: int, kind: str) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/{kind}")
    except OSError:  # gone, or its user may not be looked at
        return ""


def _named_namespaces(host_id: str) -> Iterator[HostResource]:
    for directory in NAMED_NAMESPACES:
        try:
            names = sorted(os.listdir(directory))
        except OSError:  # nobody keeps any
            continue
        for name in names:
            if f"rik-{host_id}" in name:
                yield HostResource(NAMESPACE, str(directory / name), _uid_in(name), "named")


def mounts(layout: Layout) -> list[HostResource]:
    """Mounts in this process's mount namespace that lie in a pod's directory, or carry the host id."""
    found = []
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            before, _, after = line.partition(" - ")
            point, source = _unescape(before.split()[4]), after.split()[1]
            pods, name = f"{layout.pods}/", f"rik-{layout.host_id}"
            if point.startswith(pods):
                found.append(HostResource(MOUNT, point, point[len(pods) :].partition("/")[0]))
            elif point.startswith(f"{layout.run_dir}/") or (name in f"{point} {source}" and "/cgroup/" not in point):
                found.append(HostResource(MOUNT, point, _uid_in(f"{point} {source}"), source))
    return found


def _uid_in(text: str) -> str:
    """The uid that a name carries; "" when it carries none, and nobody owns it."""
    match = _UID.search(text)
    return match[0] if match else ""


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)

"""Ending and removing what is left of a pod, whatever state it was left in: by processes' marks, not by memory."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import trio

from rik.errors import InstanceFailure
from rik.images.store import ImageStore
from rik.linux import syscalls
from rik.linux.cgroups import Cgroups
from rik.linux.identity import ProcessIdentity, command_line, processes, stat_fields
from rik.model.instance import Reason
from rik.model.node import HostResource
from rik.runtime.process.layout import Layout, is_supervised, is_uid
from rik.runtime.process.spec import INSTANCE_VARIABLE, instance_mark
from rik.runtime.process.states import supervisor

PAUSE_S = 0.01
DEATH_DEADLINE_S = 10.0


def own_processes(layout: Layout, uid: str = "") -> dict[int, str]:
    """Every living process of a pod of this host (or of one): its pid and uid. Blocks for a walk over /proc.

    A supervisor and the first process of each container carry the pod's directory in their arguments; the rest are
    their descendants, or (of a plain pod) carry a mark in their environment. A container can give its processes any
    arguments and any environment: so the mark of the outermost ancestor is the one that counts, and only if it can be
    a uid at all.
    """
    prefix = f"{layout.pods}/"
    parents: dict[int, int] = {}
    marks: dict[int, str] = {}
    for pid in processes():
        fields = stat_fields(pid)
        if fields is None or fields[0] in ("Z", "X"):
            continue
        parents[pid] = int(fields[1])
        mark = _owner_by_arguments(pid, prefix) or _owner_by_environment(pid, layout.host_id)
        if is_uid(mark):
            marks[pid] = mark
    owners: dict[int, str] = {}
    for pid in parents:
        ancestor, owner = pid, ""
        while ancestor in parents:
            owner = marks.get(ancestor, owner)
            ancestor = parents[ancestor]
        if owner:
            owners[pid] = owner
    return {pid: owner for pid, owner in owners.items() if not uid or owner == uid}


def _owner_by_arguments(pid: int, prefix: str) -> str:
    arguments = command_line(pid)
    if "rik.runtime.process.podinit.main" not in " ".join(arguments[:8]):
        return ""
    return next((word[len(prefix) :] for word in arguments if word.startswith(prefix)), "")


def _owner_by_environment(pid: int, host_id: str) -> str:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            text = file.read()
    except OSError:  # gone, or somebody else's
        return ""
    mark = f"{INSTANCE_VARIABLE}={instance_mark(host_id, '')}".encode()
    entry = next((entry for entry in text.split(b"\0") if entry.startswith(mark)), b"")
    return entry[len(mark) :].decode("ascii", "replace")


async def kill_supervisor(layout: Layout, uid: str) -> None:
    """Ends the supervisor, if there is one, and with it all containers. Raises InstanceFailure DestroyFailed."""
    pod = layout.pod(uid)
    if not is_supervised(pod):
        return
    with trio.move_on_after(DEATH_DEADLINE_S):
        while is_supervised(pod):
            identity = supervisor(pod)
            if identity is None or not identity.alive():
                # Between its first moment and init.json, or init.json is damaged: its arguments tell who it is.
                for pid in await trio.to_thread.run_sync(own_processes, layout, uid):
                    _kill(pid)
            elif not _kill(identity):
                break
            await trio.sleep(PAUSE_S)
        return
    raise InstanceFailure(Reason.DESTROY_FAILED, f"the supervisor of pod {uid} does not die of SIGKILL")


async def kill_strays(layout: Layout, uid: str, cgroups: Cgroups) -> None:
    """Ends whatever still runs of a pod without a supervisor. Raises InstanceFailure DestroyFailed naming it."""
    left: list[int] = []
    with trio.move_on_after(DEATH_DEADLINE_S):
        while True:
            left = await trio.to_thread.run_sync(_strays, layout, uid, cgroups)
            if not left:
                return
            for pid in left:
                _kill(pid)
            await trio.sleep(PAUSE_S)
    named = ", ".join(f"{pid} ({' '.join(command_line(pid))[:60]})" for pid in left[:5])
    raise InstanceFailure(Reason.DESTROY_FAILED, f"{len(left)} process(es) do not die of SIGKILL: {named}")


def _strays(layout: Layout, uid: str, cgroups: Cgroups) -> list[int]:
    found = {*own_processes(layout, uid), *cgroups.processes(uid)}
    return sorted(pid for pid in found if (fields := stat_fields(pid)) is not None and fields[0] not in ("Z", "X"))


def _kill(who: int | ProcessIdentity) -> bool:
    identity = who if isinstance(who, ProcessIdentity) else ProcessIdentity.of(who)
    return identity is not None and identity.kill()


def unmount_all(resources: list[HostResource]) -> None:
    """Mounts and named namespaces among `resources`: what cannot be unmounted stays, and stays in the inventory."""
    for resource in resources:
        if resource.kind not in ("mount", "namespace") or not resource.name.startswith("/"):
            continue
        try:
            syscalls.umount(resource.name)
        except OSError:  # not a mount (any more), or not ours to unmount
            pass
        if resource.kind == "namespace":
            with contextlib.suppress(OSError):  # still mounted, or gone
                os.unlink(resource.name)


async def remove_cgroups(uid: str, cgroups: Cgroups) -> None:
    """Raises InstanceFailure DestroyFailed; a cgroup stays busy for a moment after its last process died."""
    busy: list[str] = []
    with trio.move_on_after(DEATH_DEADLINE_S):
        while True:
            busy = await trio.to_thread.run_sync(cgroups.remove, uid)
            if not busy:
                return
            await trio.sleep(PAUSE_S)
    raise InstanceFailure(Reason.DESTROY_FAILED, f"cgroups stay busy: {', '.join(busy)}")


async def remove_files(layout: Layout, uid: str, images: ImageStore) -> None:
    """The pod's directory and socket; not its logs. Raises InstanceFailure DestroyFailed naming what is left."""
    layout.socket(uid).unlink(missing_ok=True)
    pod = layout.pod(uid)
    try:
        await images.remove_tree(pod)
    except OSError as error:
        if os.path.lexists(pod):
            where = error.filename or pod
            message = f"{Path(str(where))} cannot be removed: {error.strerror or error}"
            raise InstanceFailure(Reason.DESTROY_FAILED, message) from error

"""The life of a pod init, from its first descriptor to its last record.

    python -I -S -c "…; main(ARGUMENTS)" POD_DIRECTORY LOCK_FD LISTENER_FD DEATH_FD

``LOCK_FD`` is an open file with a lock (flock) that RIK took before this process was made: while it is held the pod is
supervised. ``LISTENER_FD`` is the control socket, listening. ``DEATH_FD`` (-1: none) is the read end of a pipe; when it
hangs up the pod ends at once, and nothing is left of it. What the pod is, is in POD_DIRECTORY/pod.json
(`rik.runtime.process.layout` says what else is there).
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import socket

from rik.linux import syscalls
from rik.linux.identity import ProcessIdentity, boot_id
from rik.linux.idmap import IdMap
from rik.linux.trees import remove_tree
from rik.runtime.process.podinit import namespaces, rootfs
from rik.runtime.process.podinit.container import Held
from rik.runtime.process.podinit.control import Server
from rik.runtime.process.podinit.loop import READ
from rik.runtime.process.podinit.pod import Pod, own_status_record
from rik.runtime.process.podinit.records import INIT_RECORD, PROTOCOL, write_record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def main(arguments: list[str]) -> None:
    """Returns when nothing of the pod runs any more and its records are durable."""
    directory, lock_fd, listener_fd, death_fd = arguments[0], *(int(fd) for fd in arguments[1:4])
    wanted = {fd for fd in (lock_fd, listener_fd, death_fd) if fd >= 0}
    # Whoever started RIK may have left it a pipe of theirs, and waits for its end; we outlive RIK.
    syscalls.close_all_but({0, 1, 2, *wanted})
    for fd in wanted:
        os.set_inheritable(fd, False)
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    os.umask(0o077)
    os.chdir("/")  # no file system is kept busy by us
    pod_fd = os.open(directory, _DIRECTORY)
    status_fd = os.open("status", _DIRECTORY, dir_fd=pod_fd)
    try:
        _supervise(directory, pod_fd, os.dup(status_fd), listener_fd, death_fd)
    except namespaces.Refused as error:
        own_status_record(status_fd, str(error))
    except OSError as error:
        own_status_record(status_fd, f"the pod cannot be made: {error.filename or ''}: {error.strerror}")


def _supervise(directory: str, pod_fd: int, status_fd: int, listener_fd: int, death_fd: int) -> None:
    with open(os.open("pod.json", os.O_RDONLY | os.O_CLOEXEC, dir_fd=pod_fd), encoding="utf-8") as file:
        spec = json.load(file)
    syscalls.set_process_name("rik-pod")
    syscalls.set_child_subreaper()
    isolated = spec["mode"] != "plain"
    log_fd = os.open(spec["log_directory"], _DIRECTORY)
    box_fd = os.open("box", _DIRECTORY, dir_fd=pod_fd)
    held = _hold(spec, box_fd)
    if isolated:
        _give([log_fd, status_fd, box_fd, *(item.directory for item in held.values())], spec)
    listener = socket.socket(fileno=listener_fd)
    identity = ProcessIdentity.own()
    record = {"v": PROTOCOL, "pid": identity.pid, "start_ticks": identity.start_ticks, "boot_id": boot_id()}
    write_record(pod_fd, INIT_RECORD, record, durable=False)
    peer_uid = namespaces.owner_as_seen_inside(spec)
    if isolated:
        namespaces.enter(spec, held, lambda channel: _take_care(directory, spec, death_fd, channel))
    gc.collect()
    gc.freeze()
    pod = Pod(spec, status_fd, log_fd, held, dict(spec["enforced"]))
    server = Server(listener, pod, pod.loop, peer_uid)
    pod.changed = server.changed
    signal.signal(
        signal.SIGTERM, lambda number, frame: pod.loop.after(0, lambda: pod.stop(float(spec["grace_s"]))) and None
    )
    if death_fd >= 0:
        pod.loop.watch(death_fd, READ, lambda events: _hung_up(pod, death_fd, events))
    pod.begin()
    pod.loop.run()
    server.flush()
    if death_fd >= 0 and _is_hung_up(death_fd):
        _leave_nothing(directory, spec, box_fd, isolated)


def _hold(spec: dict[str, Any], box_fd: int) -> dict[str, Held]:
    """Opens what will no longer be reachable: every container's directory, its cgroups, its evidence."""
    held = {}
    for container in spec["containers"]:
        name = container["name"]
        for path in (name, *(f"{name}/{part}" for part in (rootfs.STAGE, rootfs.UPPER, rootfs.WORK))):
            try:
                os.mkdir(path, 0o755, dir_fd=box_fd)
            except FileExistsError:
                continue
        procs = [
            os.open(os.path.join(path, "cgroup.procs"), os.O_WRONLY | os.O_CLOEXEC) for path in container["cgroups"]
        ]
        oom_file = container["oom_file"]
        oom = os.open(oom_file, os.O_RDONLY | os.O_CLOEXEC) if oom_file else -1
        held[name] = Held(os.open(name, _DIRECTORY, dir_fd=box_fd), procs, oom)
    return held


def _give(descriptors: list[int], spec: dict[str, Any]) -> None:
    """Directories that the pod init writes to must be its own after it has become the pod's root."""
    idmap = IdMap.from_json(spec["idmap"])
    uid, gid = idmap.outside_uid(0), idmap.outside_gid(0)
    if uid is None or gid is None or uid == os.geteuid():
        return
    for fd in descriptors:
        os.fchown(fd, uid, gid)
    for container in spec["containers"]:
        for part in (rootfs.STAGE, rootfs.UPPER, rootfs.WORK):
            os.chown(f"{container['name']}/{part}", uid, gid, dir_fd=descriptors[2])


def _hung_up(pod: Pod, death_fd: int, events: int) -> None:
    if events & (select.EPOLLHUP | select.EPOLLERR):
        pod.loop.forget(death_fd)
        pod.kill_now()


def _is_hung_up(death_fd: int) -> bool:
    poll = select.poll()
    poll.register(death_fd, select.POLLIN)
    return any(events & select.POLLHUP for _, events in poll.poll(0))


def _leave_nothing(directory: str, spec: dict[str, Any], box_fd: int, isolated: bool) -> None:
    """What belongs to the pod's ids can only be removed from inside; the rest by the caretaker, or here without one."""
    for container in spec["containers"]:
        remove_tree(container["name"], box_fd)
    if not isolated:
        _sweep(directory, spec)


def _take_care(directory: str, spec: dict[str, Any], death_fd: int, channel: socket.socket) -> None:
    """The porter as caretaker: with the privileges of whoever runs RIK it waits for the end, and removes what is
    left.
    """
    if death_fd < 0:
        return
    syscalls.close_all_but({0, 1, 2, death_fd, channel.fileno()})
    syscalls.set_process_name("rik-caretaker")
    try:
        channel.recv(1)
    except OSError:
        pass
    if _is_hung_up(death_fd):
        _sweep(directory, spec)


def _sweep(directory: str, spec: dict[str, Any]) -> None:
    for path in (directory, str(spec["socket"])):
        remove_tree(path)
    groups = [path for container in spec["containers"] for path in container["cgroups"]]
    pods = [os.path.dirname(path) for path in groups]
    hosts = [os.path.dirname(path) for path in pods]
    for path in dict.fromkeys((*groups, *pods, *hosts, os.path.dirname(spec["socket"]))):
        try:
            os.rmdir(path)
        except OSError:  # another pod's is in it: the last one takes it along
            continue

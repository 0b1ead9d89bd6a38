"""How the pod init becomes nobody: its own user, network, ipc and uts namespaces, and the least user there.

What needs the privileges it is about to lose is done by the *porter*, a child forked before: it writes the id map
(which a process cannot do for itself) and, as root, prepares the layers of images for the pod's ids: mounted with
mapped owners (Linux 5.12; 5.19 for an overlay over them), or else copied with shifted owners.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import struct

from rik.linux import syscalls
from rik.linux.idmap import ROOT_RANGE, SINGLE, IdMap
from rik.runtime.process.podinit import flatten, rootfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from rik.runtime.process.podinit.container import Held

_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 0x1
_FDS_AT_ONCE = 200  # the kernel passes at most 253
_MESSAGE_BYTES = 65_536


class Refused(Exception):
    """The host does not let a pod be made; a sentence with the cause verbatim."""


def enter(spec: dict[str, Any], held: dict[str, Held], afterwards: Callable[[socket.socket], None]) -> None:
    """Moves this process into the pod's namespaces and drops its privileges. Raises Refused.

    ``held[name].layers`` is filled with detached mounts where layers could be prepared as such. ``afterwards`` is
    run by the porter in the end, with a socket whose end of file is the death of this process.
    """
    idmap = IdMap.from_json(spec["idmap"])
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.getpid()
    porter = os.fork()
    if porter == 0:
        try:
            ours.close()
            _carry(pid, idmap, spec, held, theirs, afterwards)
        finally:
            os._exit(0)
    theirs.close()
    flags = syscalls.CLONE_NEWUSER | syscalls.CLONE_NEWIPC | syscalls.CLONE_NEWUTS
    try:
        syscalls.unshare(flags if spec["host_network"] else flags | syscalls.CLONE_NEWNET)
        ours.send(b"unshared")
        _receive(ours, spec, held)
        _become_root_inside(idmap)
        syscalls.sethostname(str(spec["hostname"]))
        if not spec["host_network"]:
            _raise_loopback()
    except OSError as error:
        raise Refused(f"namespaces cannot be made: {error.filename or ''}: {error.strerror}") from None
    finally:
        # The porter may stay as caretaker: then its end of this pair tells it when we are gone.
        ours.set_inheritable(False)
        ours.detach()


def owner_as_seen_inside(spec: dict[str, Any]) -> int:
    """The user id that SO_PEERCRED shows for whoever runs RIK, read in the pod's user namespace."""
    if spec["mode"] == "plain":
        return int(spec["owner_uid"])
    for first, outside, count in IdMap.from_json(spec["idmap"]).uid_ranges:
        if outside <= int(spec["owner_uid"]) < outside + count:
            return first + int(spec["owner_uid"]) - outside
    with open("/proc/sys/kernel/overflowuid", encoding="ascii") as file:
        return int(file.read())


def _become_root_inside(idmap: IdMap) -> None:
    if idmap.mode != SINGLE:
        os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    syscalls.set_dumpable(False)


def _raise_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = fcntl.ioctl(sock, _SIOCGIFFLAGS, struct.pack("16sh14x", b"lo", 0))
        flags = struct.unpack("16sh14x", request)[1] | _IFF_UP
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags))
    try:  # as container engines do: a container's user need not be root to listen on port 80
        with open("/proc/sys/net/ipv4/ip_unprivileged_port_start", "w", encoding="ascii") as file:
            file.write("0")
    except OSError:  # a masked or read-only /proc/sys
        return


def _receive(channel: socket.socket, spec: dict[str, Any], held: dict[str, Held]) -> None:
    while True:
        data, fds, _, _ = socket.recv_fds(channel, _MESSAGE_BYTES, _FDS_AT_ONCE)
        message = json.loads(data) if data else {"error": "the porter died"}
        if "error" in message:
            raise Refused(str(message["error"]))
        if message.get("done"):
            return
        for fd in fds:
            os.set_inheritable(fd, False)
        held[message["container"]].layers += fds
        if "copied" in message:
            container = next(c for c in spec["containers"] if c["name"] == message["container"])
            container["copied"] = message["copied"]


def _carry(
    pid: int,
    idmap: IdMap,
    spec: dict[str, Any],
    held: dict[str, Held],
    channel: socket.socket,
    afterwards: Callable[[socket.socket], None],
) -> None:
    """The porter's life; everything it cannot do is told, nothing is raised."""
    try:
        if channel.recv(16) != b"unshared":
            return
        idmap.write(pid)
        if idmap.mode == ROOT_RANGE:
            with open(f"/proc/{pid}/ns/user", "rb") as user_namespace:
                for container in spec["containers"]:
                    if container["image"] != "host":
                        _prepare(container, held[container["name"]], idmap, user_namespace.fileno(), channel)
        channel.send(json.dumps({"done": True}).encode())
    except OSError as error:
        _tell(channel, f"{error.filename or 'namespaces'}: {error.strerror or error}")
        return
    except Exception as error:  # noqa: BLE001 - a forked child has nobody above it: the channel is where it is told
        _tell(channel, f"{type(error).__name__}: {error}")
        return
    afterwards(channel)


def _tell(channel: socket.socket, text: str) -> None:
    try:
        channel.send(json.dumps({"error": text}).encode())
    except OSError:  # the pod init is gone
        return


def _prepare(container: dict[str, Any], held: Held, idmap: IdMap, userns: int, channel: socket.socket) -> None:
    trees: list[int] = []
    try:
        for path in container["layers"]:
            tree = syscalls.open_tree(path)
            trees.append(tree)
            attributes = syscalls.MOUNT_ATTR_IDMAP | syscalls.MOUNT_ATTR_RDONLY
            syscalls.mount_setattr(tree, attributes, userns_fd=userns)
    except OSError as error:
        why = f"copied, not shared: owners cannot be mapped on this file system ({error.strerror})"
        _copy_shifted(container, held, idmap)
        channel.send(json.dumps({"container": container["name"], "copied": why}).encode())
    else:
        for start in range(0, len(trees), _FDS_AT_ONCE):
            message = json.dumps({"container": container["name"]}).encode()
            socket.send_fds(channel, [message], trees[start : start + _FDS_AT_ONCE])
    finally:
        for tree in trees:
            os.close(tree)


def _copy_shifted(container: dict[str, Any], held: Held, idmap: IdMap) -> None:
    """Owners without an id in the pod become its nobody's, as the kernel would show them."""

    def shift(uid: int, gid: int) -> tuple[int, int]:
        outside_uid, outside_gid = idmap.outside_uid(uid), idmap.outside_gid(gid)
        nobody = 65_534
        return (
            outside_uid if outside_uid is not None else idmap.outside_uid(nobody) or 0,
            outside_gid if outside_gid is not None else idmap.outside_gid(nobody) or 0,
        )

    flatten.copy(list(container["layers"]), f"/proc/self/fd/{held.directory}/{rootfs.COPY}", shift)

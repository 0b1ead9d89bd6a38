"""The system calls Python 3.11 does not offer, by ctypes.

Every function raises ``OSError`` with errno and, as its file name, a short description of what was attempted ("mount
overlay on /x"), so that the message can be shown to a user as it is. Descriptors belong to the caller.
"""

from __future__ import annotations

import ctypes
import os
import struct
import time

# clone(2) flags, for unshare and setns.
CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

# mount(2) flags.
MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_REMOUNT = 0x20
MS_NOATIME = 0x400
MS_NODIRATIME = 0x800
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000
MS_RELATIME = 0x200000
MNT_DETACH = 0x2

# mount_setattr(2) attributes.
MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_IDMAP = 0x100000

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000
_OPEN_TREE_CLONE = 0x1
_MOVE_MOUNT_F_EMPTY_PATH = 0x4
_MOVE_MOUNT_T_EMPTY_PATH = 0x40

_RESOLVE_IN_ROOT = 0x10
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_TRIES = 1000
_RESOLVE_PAUSE_S = 0.0005

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_NAME = 15
_PR_CAPBSET_READ = 23
_PR_CAPBSET_DROP = 24
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4

# Calls added since Linux 5.1 have one number on every architecture; pivot_root is older and has not.
_SYS_PIVOT_ROOT = {"x86_64": 155, "i686": 217, "armv7l": 218, "ppc64le": 203, "s390x": 217}.get(os.uname().machine, 41)
_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_SYS_CLOSE_RANGE = 436
_SYS_OPENAT2 = 437
_SYS_MOUNT_SETATTR = 442

_CAPABILITY_VERSION_3 = 0x20080522
_MAX_FD = 0xFFFFFFFF

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result


def _call(number: int, what: str, *arguments: object) -> int:
    return _check(_libc.syscall(ctypes.c_long(number), *arguments), what)


def _bytes(path: str | None) -> bytes | None:
    return None if path is None else os.fsencode(path)


def unshare(flags: int) -> None:
    """Leaves the namespaces named by ``flags`` for new ones (CLONE_NEWPID: the next child does)."""
    _check(_libc.unshare(flags), "unshare")


def setns(fd: int, flags: int) -> None:
    """Enters the namespaces ``flags`` of what ``fd`` stands for (a pidfd, or one namespace file)."""
    _check(_libc.setns(fd, flags), "setns")


def sethostname(name: str) -> None:
    encoded = name.encode()
    _check(_libc.sethostname(encoded, ctypes.c_size_t(len(encoded))), f"sethostname {name}")


def mount(source: str | None, target: str, kind: str | None, flags: int = 0, options: str | None = None) -> None:
    result = _libc.mount(_bytes(source), _bytes(target), _bytes(kind), ctypes.c_ulong(flags), _bytes(options))
    _check(result, f"mount {kind or source or ''} on {target}")


def umount(target: str, flags: int = MNT_DETACH) -> None:
    _check(_libc.umount2(_bytes(target), flags), f"umount {target}")


def pivot_root(new_root: str, put_old: str) -> None:
    _call(_SYS_PIVOT_ROOT, f"pivot_root {new_root}", _bytes(new_root), _bytes(put_old))


def open_tree(path: str, *, dir_fd: int = AT_FDCWD, recursive: bool = False) -> int:
    """A detached clone of the directory, file or (recursive) mount tree at ``path``, for `move_mount`. Linux 5.2.

    An empty ``path`` clones what ``dir_fd`` itself stands for. Closing the descriptor unmounts a clone that was not
    moved.
    """
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC
    flags |= AT_RECURSIVE if recursive else 0
    flags |= 0 if path else AT_EMPTY_PATH
    return _call(_SYS_OPEN_TREE, f"open_tree {path}", ctypes.c_int(dir_fd), _bytes(path), ctypes.c_uint(flags))


def move_mount(tree_fd: int, target: str | int) -> None:
    """Attaches a detached mount over ``target``: a path, or a descriptor (O_PATH) of the place."""
    flags = _MOVE_MOUNT_F_EMPTY_PATH
    if isinstance(target, int):
        flags |= _MOVE_MOUNT_T_EMPTY_PATH
        to_fd, to_path = target, b""
    else:
        to_fd, to_path = AT_FDCWD, os.fsencode(target)
    what = f"move_mount to {target}"
    _call(_SYS_MOVE_MOUNT, what, ctypes.c_int(tree_fd), b"", ctypes.c_int(to_fd), to_path, ctypes.c_uint(flags))


def mount_setattr(tree_fd: int, attributes: int, *, recursive: bool = False, userns_fd: int = 0) -> None:
    """Sets ``attributes`` on the mount ``tree_fd`` stands for (Linux 5.12).

    With MOUNT_ATTR_IDMAP the owners of its files are mapped as in the user namespace ``userns_fd``.
    """
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    request = struct.pack("QQQQ", attributes, 0, 0, userns_fd)
    size = ctypes.c_size_t(len(request))
    _call(_SYS_MOUNT_SETATTR, "mount_setattr", ctypes.c_int(tree_fd), b"", ctypes.c_uint(flags), request, size)


def open_in_root(root_fd: int, path: str, flags: int, mode: int = 0) -> int:
    """Opens ``path`` as if ``root_fd`` were the root directory, whatever symbolic links say (openat2, Linux 5.6)."""
    how = struct.pack("QQQ", flags | os.O_CLOEXEC, mode, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)
    arguments = ctypes.c_int(root_fd), os.fsencode(path), how, ctypes.c_size_t(len(how))
    for _ in range(_RESOLVE_TRIES):
        try:
            return _call(_SYS_OPENAT2, path, *arguments)
        except BlockingIOError:  # somebody on this host renamed or mounted something just while `..` was looked up
            time.sleep(_RESOLVE_PAUSE_S)
    return _call(_SYS_OPENAT2, path, *arguments)


def close_all_but(keep: frozenset[int] | set[int]) -> None:
    """Closes every descriptor that is not in ``keep``: a forked child must not hold its parent's pipes open."""
    first = 0
    for fd in (*sorted(keep), _MAX_FD + 1):
        if fd > first and _libc.syscall(_SYS_CLOSE_RANGE, ctypes.c_uint(first), ctypes.c_uint(fd - 1), 0) < 0:
            _close_listed(keep)  # before Linux 5.9
            return
        first = fd + 1


def _close_listed(keep: frozenset[int] | set[int]) -> None:
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in keep:
            try:
                os.close(int(name))
            except OSError:  # the listing's own descriptor
                continue


def _prctl(option: int, argument: int, what: str, second: int = 0) -> int:
    arguments = (ctypes.c_ulong(argument), ctypes.c_ulong(second), ctypes.c_ulong(0), ctypes.c_ulong(0))
    return _check(_libc.prctl(option, *arguments), what)


def set_child_subreaper() -> None:
    """Orphaned descendants become children of this process."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1, "prctl PR_SET_CHILD_SUBREAPER")


def set_parent_death_signal(number: int) -> None:
    """The kernel sends ``number`` to this process when the *thread* that is its parent ends."""
    _prctl(_PR_SET_PDEATHSIG, number, "prctl PR_SET_PDEATHSIG")


def set_dumpable(dumpable: bool) -> None:
    """Not dumpable: no other process of the same user reads this one's memory or environment."""
    _prctl(_PR_SET_DUMPABLE, int(dumpable), "prctl PR_SET_DUMPABLE")


def set_no_new_privileges() -> None:
    """From now on execve gives nothing through set-uid bits or file capabilities; inherited for ever."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1, "prctl PR_SET_NO_NEW_PRIVS")


def set_process_name(name: str) -> None:
    """What ``ps`` shows as the command's name: at most 15 bytes."""
    buffer = ctypes.create_string_buffer(name.encode()[:15])
    _check(_libc.prctl(_PR_SET_NAME, ctypes.byref(buffer), 0, 0, 0), "prctl PR_SET_NAME")


def limit_capabilities(allowed: frozenset[int]) -> None:
    """Drops all but ``allowed`` from the bounding set, and empties the ambient and inheritable sets.

    What is permitted now stays permitted until the next execve, which takes it from the bounding set.
    """
    capability = 0
    while (present := _libc.prctl(_PR_CAPBSET_READ, ctypes.c_ulong(capability), 0, 0, 0)) >= 0:
        if present and capability not in allowed:
            _prctl(_PR_CAPBSET_DROP, capability, f"prctl PR_CAPBSET_DROP {capability}")
        capability += 1
    _libc.prctl(_PR_CAP_AMBIENT, ctypes.c_ulong(_PR_CAP_AMBIENT_CLEAR_ALL), *(ctypes.c_ulong(0),) * 3)
    effective, permitted, _ = _capabilities()
    set_capabilities(effective & _mask(allowed), permitted & _mask(allowed), 0)


def _mask(capabilities: frozenset[int]) -> int:
    return sum(1 << capability for capability in capabilities)


def _capabilities() -> tuple[int, int, int]:
    header = struct.pack("Ii", _CAPABILITY_VERSION_3, 0)
    data = ctypes.create_string_buffer(24)
    _check(_libc.capget(header, data), "capget")
    low_e, low_p, low_i, high_e, high_p, high_i = struct.unpack("6I", data.raw)
    return low_e | high_e << 32, low_p | high_p << 32, low_i | high_i << 32


def set_capabilities(effective: int, permitted: int, inheritable: int) -> None:
    """Sets this thread's capability sets, each a bit mask."""
    header = struct.pack("Ii", _CAPABILITY_VERSION_3, 0)
    low = (value & 0xFFFFFFFF for value in (effective, permitted, inheritable))
    high = (value >> 32 for value in (effective, permitted, inheritable))
    _check(_libc.capset(header, struct.pack("6I", *low, *high)), "capset")

"""The file system of one container, made by its PID 1 in its own mount namespace, where nobody else sees it.

Two kinds of root: the image ``host`` is the node's own tree, read-only; any other image is its layers under an
overlay (or copied where an overlay is refused). Both are furnished alike (`furnish`) and entered by pivot_root,
after which nothing of the host's tree is left.
"""

from __future__ import annotations

import errno
import os
import stat

from rik.linux import syscalls
from rik.runtime.process.podinit import flatten, furnish
from rik.runtime.process.podinit.furnish import Unusable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["Unusable", "build"]

STAGE = "stage"
STAGE_OPTIONS = "mode=0700,size=16m"  # it holds mount points, and files of /etc that a container may write to
UPPER = "upper"
WORK = "work"
COPY = "rootfs"
_READ_ONLY = syscalls.MOUNT_ATTR_RDONLY | syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV
_KEPT_OPTIONS = {
    "ro": syscalls.MS_RDONLY,
    "nosuid": syscalls.MS_NOSUID,
    "nodev": syscalls.MS_NODEV,
    "noexec": syscalls.MS_NOEXEC,
    "noatime": syscalls.MS_NOATIME,
    "nodiratime": syscalls.MS_NODIRATIME,
    "relatime": syscalls.MS_RELATIME,
}


def build(container: dict[str, Any], pod: dict[str, Any], layers: list[int]) -> dict[str, str]:
    """Makes the root and enters it; the present directory is the container's in the pod's box, where ``stage`` and, for
    an image with layers, ``upper`` and ``work`` (or the finished copy ``rootfs``) are.

    ``layers`` are detached mounts of the image's layers, lowest first; when empty, ``container["layers"]`` are paths.
    Returns what could not be done as it should, by name. Raises Unusable or OSError.
    """
    findings: dict[str, str] = {}
    syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
    syscalls.mount("rik", STAGE, "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV, STAGE_OPTIONS)
    os.mkdir(f"{STAGE}/root", 0o755)
    if container["image"] == "host":
        _host(f"{STAGE}/root")
    elif container.get("copied"):
        syscalls.mount(COPY, f"{STAGE}/root", None, syscalls.MS_BIND)
        findings["layers"] = str(container["copied"])
    else:
        _layered(container, layers, findings)
    os.chdir(STAGE)
    furnish.furnish(container, pod, findings)
    _enter("root")
    return findings


def _host(target: str) -> None:
    """The node's own tree, with everything mounted in it, read-only."""
    try:
        tree = syscalls.open_tree("/", recursive=True)
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
        syscalls.mount("/", target, None, syscalls.MS_BIND | syscalls.MS_REC)
        _remount_read_only(target)
        return
    try:
        syscalls.mount_setattr(tree, _READ_ONLY, recursive=True)
        syscalls.move_mount(tree, target)
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
        syscalls.move_mount(tree, target)
        _remount_read_only(target)
    finally:
        os.close(tree)


def _remount_read_only(target: str) -> None:
    """Before Linux 5.12 each mount of a tree must be made read-only by itself, keeping the flags it has."""
    prefix = os.path.realpath(target)
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        mounts = [(line.split()[4], line.split()[5].split(",")) for line in file]
    for point, options in mounts:
        path = point.encode("utf-8", "surrogateescape").decode("unicode_escape") if "\\" in point else point
        if path != prefix and not path.startswith(prefix + "/"):
            continue
        flags = sum(_KEPT_OPTIONS.get(option, 0) for option in options)
        flags |= syscalls.MS_BIND | syscalls.MS_REMOUNT | syscalls.MS_RDONLY
        syscalls.mount(None, path, None, flags)


def _layered(container: dict[str, Any], layers: list[int], findings: dict[str, str]) -> None:
    paths = [str(path) for path in container["layers"]]
    # Short relative names: the options of an overlay of many layers must fit into one page.
    for number, path in enumerate(paths):
        os.mkdir(f"{STAGE}/{number}")
        if layers:
            syscalls.move_mount(layers[number], f"{STAGE}/{number}")
            os.close(layers[number])
        else:
            syscalls.mount(path, f"{STAGE}/{number}", None, syscalls.MS_BIND)
    os.mkdir(f"{STAGE}/rw")
    syscalls.mount(".", f"{STAGE}/rw", None, syscalls.MS_BIND)
    home = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    os.chdir(STAGE)
    try:
        # The root directory of an overlay is the upper one: it must be as the image's.
        os.chmod(f"rw/{UPPER}", stat.S_IMODE(os.stat(str(len(paths) - 1)).st_mode) if paths else 0o755)
        _overlay(len(paths))
    except OSError as error:
        findings["layers"] = f"copied, not shared: an overlay is refused here ({error.strerror})"
        flatten.copy([str(number) for number in range(len(paths))], f"rw/{COPY}")
        syscalls.mount(f"rw/{COPY}", "root", None, syscalls.MS_BIND)
    os.fchdir(home)
    os.close(home)


def _overlay(count: int) -> None:
    lowers = ":".join(str(number) for number in reversed(range(count)))
    writable = f"upperdir=rw/{UPPER},workdir=rw/{WORK}"
    if not lowers:
        raise Unusable("its image has no layers")
    try:
        syscalls.mount("overlay", "root", "overlay", 0, f"lowerdir={lowers},{writable},userxattr")
    except OSError as error:
        raise OSError(error.errno, error.strerror, "mount overlay") from None


def _enter(path: str) -> None:
    """The new root lies over the old one at the same place for a moment: no directory for the old one is needed."""
    os.chdir(path)
    try:
        syscalls.pivot_root(".", ".")
    except OSError as error:
        raise Unusable(f"pivot_root is refused ({error.strerror}): is the host's root an initramfs?") from None
    syscalls.umount(".", syscalls.MNT_DETACH)
    os.chdir("/")

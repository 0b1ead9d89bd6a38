"""What every container finds in its root, whatever the image: /proc, /sys, /dev, its own /etc/hosts, and no secrets.

Targets are looked up by `_place` as if the new root were the root directory: a symbolic link in an image leads nowhere
else. The present directory is the stage, a private tmpfs; the new root is ``root`` in it.
"""

from __future__ import annotations

import errno
import os

from rik.linux import syscalls
from rik.linux.syscalls import MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_RDONLY, MS_REMOUNT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_LINKS = (
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
)
# Of the `host` image: what a pod may write to, private to each container, and gone with it. It is memory, which no end
# of a process gives back while the container lives: so all of it together has a bound, also where the pod has none.
_PRIVATE = (("tmp", 0o1777), ("var/tmp", 0o1777), ("run", 0o755), ("home", 0o755), ("root", 0o700))
_PRIVATE_SIZE = "25%"  # of the host's memory
SECRET_DIRECTORIES = (
    "/etc/kubernetes",
    "/etc/ssl/private",
    "/var/lib/containers",
    "/var/lib/docker",
    "/var/lib/kubelet",
    "/var/lib/rik",
    "/var/spool",
)
SECRET_FILES = ("/etc/shadow", "/etc/shadow-", "/etc/gshadow", "/etc/gshadow-", "/etc/sudoers", "/etc/krb5.keytab")
_NONE_SAFER = MS_NOSUID | MS_NODEV | MS_NOEXEC
_UNREACHABLE = (errno.ENOENT, errno.EACCES, errno.ENOTDIR, errno.ELOOP)


class Unusable(Exception):
    """The container's file system cannot be made here; a sentence for the user."""


def furnish(container: dict[str, Any], pod: dict[str, Any], findings: dict[str, str]) -> None:
    """Mounts everything; adds to ``findings`` what could not be done as it should."""
    root = os.open("root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        host = container["image"] == "host"
        if host:
            _private(root)
        _proc(root)
        _sys(root, host, findings)
        _dev(root)
        if host:
            _hide(root, [str(path) for path in pod.get("hidden", ())], [str(path) for path in pod.get("sockets", ())])
        _own_files(root, pod)
    finally:
        os.close(root)


def _private(root: int) -> None:
    os.mkdir("private")
    syscalls.mount("tmpfs", "private", "tmpfs", MS_NOSUID | MS_NODEV, f"mode=0755,size={_PRIVATE_SIZE}")
    for path, mode in _PRIVATE:
        target = _place(root, path, directory=True)
        if target is not None:
            source = f"private/{path.replace('/', '-')}"
            os.mkdir(source)
            os.chmod(source, mode)
            syscalls.mount(source, f"/proc/self/fd/{target}", None, syscalls.MS_BIND)
            os.close(target)


def _proc(root: int) -> None:
    target = _place(root, "proc", directory=True)
    if target is None:
        raise Unusable("its root has no /proc, and none can be made")
    try:
        syscalls.mount("proc", f"/proc/self/fd/{target}", "proc", _NONE_SAFER)
    except OSError as error:
        reason = f"/proc cannot be mounted in a pod ({error.strerror}): parts of this host's /proc are masked"
        raise Unusable(f"{reason}, as in a container; run RIK outside of it, or with --unsafe-plain") from None
    os.close(target)


def _sys(root: int, host: bool, findings: dict[str, str]) -> None:
    target = _place(root, "sys", directory=True)
    if target is None:
        return
    place = f"/proc/self/fd/{target}"
    try:
        syscalls.mount("sysfs", place, "sysfs", MS_RDONLY | _NONE_SAFER)
    except OSError as error:  # the pod shares the host's network, or the host's /sys is masked
        if not host:
            try:
                tree = syscalls.open_tree("/sys", recursive=True)
                syscalls.mount_setattr(tree, syscalls.MOUNT_ATTR_RDONLY, recursive=True)
                syscalls.move_mount(tree, place)
                os.close(tree)
            except OSError:
                findings["sys"] = f"/sys is empty: {error.strerror}"
    os.close(target)


def _dev(root: int) -> None:
    target = _place(root, "dev", directory=True)
    if target is None:
        raise Unusable("its root has no /dev, and none can be made")
    # Built aside and moved in whole: the host's own /dev lies below, and must not be written to.
    os.mkdir("dev")
    syscalls.mount("dev", "dev", "tmpfs", MS_NOSUID | MS_NOEXEC, "mode=0755,size=1m")
    for name in DEVICES:
        if os.path.exists(f"/dev/{name}"):
            os.close(os.open(f"dev/{name}", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))
            syscalls.mount(f"/dev/{name}", f"dev/{name}", None, syscalls.MS_BIND)
    for name, to in _LINKS:
        os.symlink(to, f"dev/{name}")
    os.mkdir("dev/pts")
    options = "newinstance,ptmxmode=0666,mode=0620"
    try:
        syscalls.mount("devpts", "dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, f"{options},gid=5")
    except OSError:  # the group tty has no id in a pod of a single id
        syscalls.mount("devpts", "dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, options)
    os.mkdir("dev/shm")
    syscalls.mount("shm", "dev/shm", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=1777,size=64m")
    syscalls.mount("dev", f"/proc/self/fd/{target}", None, syscalls.MS_BIND | syscalls.MS_REC)
    os.close(target)


def _hide(root: int, more: list[str], sockets: list[str]) -> None:
    """Empty directories and files that cannot be opened lie over what a pod must not read, or connect to: a socket on a
    read-only file system is reached all the same."""
    os.close(os.open("nothing", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o000))
    keys = "/etc/ssh"
    try:
        files = [
            f"{keys}/{name}" for name in os.listdir(keys) if name.startswith("ssh_host_") and name.endswith("_key")
        ]
    except OSError:
        files = []
    private = [f"/{path}" for path, _ in _PRIVATE]  # empty already, and to be written to
    for path in (*SECRET_DIRECTORIES, *(path for path in more if path not in private)):
        target = _place(root, path, directory=True, create=False)
        if target is not None:
            place = f"/proc/self/fd/{target}"
            syscalls.mount("hidden", place, "tmpfs", MS_RDONLY | MS_NOSUID | MS_NODEV, "mode=0555,size=4k")
            os.close(target)
    for path in (*SECRET_FILES, *files, *sockets):
        target = _place(root, path, directory=False, create=False)
        if target is not None:
            syscalls.mount("nothing", f"/proc/self/fd/{target}", None, syscalls.MS_BIND)
            _read_only_again(f"/proc/self/fd/{target}")
            os.close(target)


def _read_only_again(place: str) -> None:
    """Only a courtesy: the file below has mode 000 and nobody's content."""
    try:
        syscalls.mount(None, place, None, syscalls.MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV)
    except OSError:
        return


def _own_files(root: int, pod: dict[str, Any]) -> None:
    os.mkdir("etc")
    hostname = str(pod["hostname"])
    hosts = f"127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\t{hostname}\n"
    for name, text in (("hosts", hosts), ("hostname", hostname + "\n"), ("resolv.conf", str(pod["resolv_conf"]))):
        with open(f"etc/{name}", "w", encoding="utf-8") as file:
            file.write(text)
        target = _place(root, f"etc/{name}", directory=False)
        if target is not None:
            syscalls.mount(f"etc/{name}", f"/proc/self/fd/{target}", None, syscalls.MS_BIND)
            os.close(target)


def _place(root: int, path: str, *, directory: bool, create: bool = True, depth: int = 0) -> int | None:
    """A descriptor of ``path`` in the new root, to mount on; made if missing. None where that cannot be."""
    try:
        return syscalls.open_in_root(root, path, os.O_PATH | (os.O_DIRECTORY if directory else 0))
    except OSError as error:
        if error.errno not in _UNREACHABLE:
            raise
        if error.errno != errno.ENOENT or not create or depth > 8:
            return None
    parent_path, name = os.path.split(path)
    parent = _place(root, parent_path or ".", directory=True, create=create, depth=depth + 1)
    if parent is None:
        return None
    try:
        try:
            link = os.readlink(name, dir_fd=parent)
        except OSError:
            link = ""
        if link:  # it leads to what does not exist (yet)
            inside = link if link.startswith("/") else os.path.join(parent_path, link)
            return _place(root, inside, directory=directory, create=create, depth=depth + 1)
        if directory:
            os.mkdir(name, 0o755, dir_fd=parent)
        else:
            os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644, dir_fd=parent))
    except OSError as error:
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            return None
        raise
    finally:
        os.close(parent)
    return _place(root, path, directory=directory, create=False)

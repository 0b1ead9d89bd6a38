"""Copying the layers of an image into one directory, where no overlay can be had.

Layers are as the image store leaves them: a deleted file is a character device 0:0 (as overlayfs makes it), a directory
that hides what is below it carries ``trusted.overlay.opaque`` or ``user.overlay.opaque`` = ``y``.
"""

from __future__ import annotations

import errno
import os
import stat

from rik.linux.trees import remove_tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_OPAQUE = ("trusted.overlay.opaque", "user.overlay.opaque")
_NOT_KEPT = ("trusted.overlay.", "user.overlay.")


def copy(layers: list[str], target: str, shift: Callable[[int, int], tuple[int, int]] | None = None) -> None:
    """Makes ``target`` from ``layers``, lowest first; starts afresh when it is there already.

    ``shift`` gives the owner (uid, gid) a file is to have from the one it has. Raises OSError.
    """
    if os.path.lexists(target):
        _delete(target)
    os.mkdir(target, 0o755)
    links: dict[tuple[int, int], str] = {}
    for layer in layers:
        links.clear()  # inode numbers say nothing across file systems
        _copy_directory(layer, target, links, shift)


def _copy_directory(
    source: str, target: str, links: dict[tuple[int, int], str], shift: Callable[[int, int], tuple[int, int]] | None
) -> None:
    for entry in os.scandir(source):
        path = os.path.join(target, entry.name)
        info = entry.stat(follow_symlinks=False)
        kind = stat.S_IFMT(info.st_mode)
        if kind == stat.S_IFCHR and info.st_rdev == 0:
            _delete(path)
            continue
        if kind == stat.S_IFDIR:
            if _is_opaque(entry.path) or not _is_directory(path):
                _delete(path)
                os.mkdir(path, 0o700)
            _copy_directory(entry.path, path, links, shift)
        else:
            _delete(path)
            first = links.get((info.st_dev, info.st_ino))
            if first is not None:
                os.link(first, path, follow_symlinks=False)
                continue
            if info.st_nlink > 1:
                links[info.st_dev, info.st_ino] = path
            _copy_file(entry.path, path, info)
        _dress(entry.path, path, info, shift)
    _dress(source, target, os.lstat(source), shift)


def _copy_file(source: str, target: str, info: os.stat_result) -> None:
    kind = stat.S_IFMT(info.st_mode)
    if kind == stat.S_IFREG:
        _copy_content(source, target, info.st_size)
    elif kind == stat.S_IFLNK:
        os.symlink(os.readlink(source), target)
    elif kind == stat.S_IFIFO:
        os.mkfifo(target, 0o600)
    else:
        try:
            os.mknod(target, info.st_mode, info.st_rdev)
        except PermissionError:  # devices need real root, and /dev is furnished anyway
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))


def _copy_content(source: str, target: str, size: int) -> None:
    read = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        write = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            while size > 0 and (sent := os.sendfile(write, read, None, size)):
                size -= sent
        finally:
            os.close(write)
    finally:
        os.close(read)


def _dress(source: str, target: str, info: os.stat_result, shift: Callable[[int, int], tuple[int, int]] | None) -> None:
    """Owner, attributes, mode and times, in the order in which none undoes another."""
    owner = shift(info.st_uid, info.st_gid) if shift is not None else (info.st_uid, info.st_gid)
    try:
        os.chown(target, *owner, follow_symlinks=False)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EINVAL):  # a single id: all files are its own
            raise
    if stat.S_ISLNK(info.st_mode):
        return
    for name in os.listxattr(source, follow_symlinks=False):
        if not name.startswith(_NOT_KEPT):
            try:
                os.setxattr(target, name, os.getxattr(source, name, follow_symlinks=False), follow_symlinks=False)
            except OSError:  # attributes are a courtesy: file capabilities give nothing under no_new_privs
                continue
    os.chmod(target, stat.S_IMODE(info.st_mode))
    os.utime(target, ns=(info.st_atime_ns, info.st_mtime_ns))


def _is_opaque(path: str) -> bool:
    for name in _OPAQUE:
        try:
            if os.getxattr(path, name, follow_symlinks=False) == b"y":
                return True
        except OSError:
            continue
    return False


def _is_directory(path: str) -> bool:
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except FileNotFoundError:
        return False


def _delete(path: str) -> None:
    if _is_directory(path):
        left = remove_tree(path)
        if left:
            raise OSError(errno.EBUSY, left[0], path)
        return
    try:
        os.unlink(path)
    except FileNotFoundError:
        return

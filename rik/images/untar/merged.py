"""What the layers below show: the answer to "what is at this path?" when they lie on top of each other.

Reads overlayfs's own representation (whiteouts are character devices 0:0, opaque directories carry an extended
attribute). Only descriptors of the layers' root directories are used, and no symbolic link is ever followed. Standard
library only.
"""

from __future__ import annotations

import os
import stat

OPAQUE_NAMES = ("trusted.overlay.opaque", "user.overlay.opaque")


def is_whiteout(status: os.stat_result) -> bool:
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


class LowerLayers:
    """Lower layers by the descriptors of their roots, topmost first. Paths are tuples of names."""

    def __init__(self, roots: list[int]) -> None:
        self._roots = roots
        self._contributing: dict[tuple[str, ...], tuple[int, ...]] = {(): tuple(roots)}

    def lookup(self, path: tuple[str, ...]) -> tuple[os.stat_result, int] | None:
        """What is visible at `path`, and the root of the layer it comes from; None when there is nothing."""
        if not self._roots:
            return None
        if not path:
            return (os.fstat(self._roots[0]), self._roots[0])
        for root in self._directories(path[:-1]):
            status = _lstat(root, path)
            if status is not None:
                return None if is_whiteout(status) else (status, root)
        return None

    def readlink(self, root: int, path: tuple[str, ...]) -> str:
        return os.readlink("/".join(path), dir_fd=root)

    def open(self, root: int, path: tuple[str, ...], flags: int) -> int:
        """Opens what `lookup` found."""
        return os.open("/".join(path) or ".", flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=root)

    def _directories(self, path: tuple[str, ...]) -> tuple[int, ...]:
        """The layers whose directory `path` is seen, topmost first. Its own parents are real directories in each of
        them."""
        known = len(path)
        while path[:known] not in self._contributing:
            known -= 1
        found = self._contributing[path[:known]]
        for length in range(known + 1, len(path) + 1):
            found = self._narrowed(found, path[:length])
            self._contributing[path[:length]] = found
        return found

    def _narrowed(self, roots: tuple[int, ...], path: tuple[str, ...]) -> tuple[int, ...]:
        """Those of `roots`, the layers that show the parent of `path`, which show `path` as a directory."""
        found: list[int] = []
        for root in roots:
            status = _lstat(root, path)
            if status is None:
                continue
            if not stat.S_ISDIR(status.st_mode):
                break  # a whiteout or a file hides what lies below
            found.append(root)
            if self._is_opaque(root, path):
                break
        return tuple(found)

    def _is_opaque(self, root: int, path: tuple[str, ...]) -> bool:
        fd = self.open(root, path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            names = os.listxattr(fd)
        except OSError:  # a file system without extended attributes holds no opaque directory either
            return False
        finally:
            os.close(fd)
        return any(name in OPAQUE_NAMES for name in names)


def _lstat(root: int, path: tuple[str, ...]) -> os.stat_result | None:
    try:
        return os.stat("/".join(path), dir_fd=root, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return None

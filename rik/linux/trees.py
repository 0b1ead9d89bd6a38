"""Directory trees whose content is somebody else's: removed without following what lies in them."""

from __future__ import annotations

import os
import stat

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove_tree(path: str, dir_fd: int | None = None) -> list[str]:
    """Removes ``path`` and all in it; returns what would not go, each with the reason (empty: nothing is left).

    Symbolic links are removed, never followed; nothing else is entered by its path, so that a tree which is changed
    meanwhile leads nowhere else. Blocks: call it in a thread.
    """
    return _remove(path, dir_fd, path)


def _remove(name: str, parent: int | None, shown: str) -> list[str]:
    try:
        mode = os.lstat(name, dir_fd=parent).st_mode
        if not stat.S_ISDIR(mode):
            os.unlink(name, dir_fd=parent)
            return []
        left = _empty(name, parent, shown, mode)
        if not left:
            os.rmdir(name, dir_fd=parent)
        return left
    except FileNotFoundError:
        return []
    except OSError as error:
        return [f"{shown}: {error.strerror}"]


def _empty(name: str, parent: int | None, shown: str, mode: int) -> list[str]:
    if mode & 0o700 != 0o700:
        try:
            os.chmod(name, 0o700, dir_fd=parent)
        except OSError:  # the owner is another one; opening it tells
            pass
    fd = os.open(name, _DIRECTORY, dir_fd=parent)
    try:
        return [line for child in os.listdir(fd) for line in _remove(child, fd, f"{shown}/{child}")]
    finally:
        os.close(fd)

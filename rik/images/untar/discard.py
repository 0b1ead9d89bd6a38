"""Removing trees that a stranger laid out: as deep as they like, with whatever owners and modes. Standard library
only."""

from __future__ import annotations

import os
import stat


def discard(path: str) -> None:
    """Removes `path`, whatever it is; nothing there is no error. Raises OSError, leaving what it could not remove.

    Directories are moved up and emptied one by one: neither the depth of the tree nor the length of its paths matters.
    Symbolic links are removed, never followed.
    """
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(status.st_mode):
        os.unlink(path)
        return
    top = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        _empty(top)
    finally:
        os.close(top)
    os.rmdir(path)


def _empty(top: int) -> None:
    mark = os.urandom(4).hex()  # an earlier attempt that was cut off has left numbers of its own
    moved = _clear(top, top, mark, 0)
    # Directories found in the top one were renamed to numbers and lie flat in it now; each may bring more.
    done = 0
    while done < moved:
        name = _name(mark, done)
        _open_up(top, name)
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=top)
        try:
            moved = _clear(fd, top, mark, moved)
        finally:
            os.close(fd)
        os.rmdir(name, dir_fd=top)
        done += 1


def _clear(folder: int, top: int, mark: str, moved: int) -> int:
    """Unlinks the files in `folder` and moves its directories into `top`; returns how many were moved in all."""
    for entry in list(os.scandir(folder)):
        if entry.is_dir(follow_symlinks=False):
            _open_up(folder, entry.name)  # renaming a directory writes its `..`
            os.rename(entry.name, _name(mark, moved), src_dir_fd=folder, dst_dir_fd=top)
            moved += 1
        else:
            os.unlink(entry.name, dir_fd=folder)
    return moved


def _open_up(folder: int, name: str) -> None:
    mode = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
    if mode & 0o700 != 0o700:
        os.chmod(name, 0o700, dir_fd=folder)


def _name(mark: str, number: int) -> str:
    return f".rik-discard-{mark}-{number}"

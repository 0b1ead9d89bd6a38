"""Where the names of a layer lead: which directories it has got, and which ones below it hides.

Symbolic links in the parents of a name are resolved as the merged layers show them, and never out of the root; a
directory that a layer only passes through keeps mode, owner and times it has below. Standard library only.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable

from rik.images.untar.attributes import UNSUPPORTED, Attributes
from rik.images.untar.discard import discard
from rik.images.untar.merged import OPAQUE_NAMES, LowerLayers, is_whiteout
from rik.images.untar.tarstream import BadTar, shown

_MAX_LINK_HOPS = 40  # as the kernel's

Path = tuple[str, ...]


class Absent(Exception):
    """There is no such directory, here or below."""


class Directories:
    """Those of one layer, which is being made in the current root directory. `count(0)` is told of every one that is
    made on the way to a name."""

    def __init__(self, lower: LowerLayers, attributes: Attributes, count: Callable[[int], None]) -> None:
        self._lower = lower
        self._attributes = attributes
        self._count = count
        self._real: dict[Path, Path] = {(): ()}  # parents as written -> where they are
        self._texts: dict[str, Path] = {}  # the same for parents as a tar spells them
        self._own: set[Path] = {()}  # directories that are in this layer
        self._opaque: set[Path] = set()  # of them, those that hide what lies below
        self._links: set[Path] = set()  # symbolic links, here or below, that parents were resolved through
        self._times: dict[Path, int] = {}  # set at the end: every change inside would touch them
        self._adopt((), None)

    def keep_time(self, path: Path, time_ns: int) -> None:
        self._times[path] = time_ns

    def set_times(self) -> None:
        """Once nothing inside of them will change any more."""
        for path, time_ns in self._times.items():
            os.utime(text_of(path), ns=(time_ns, time_ns), follow_symlinks=False)

    def known(self, text: str) -> Path | None:
        """Where the parent `text` really is, when that was `remember`ed and nothing has changed it since."""
        return self._texts.get(text)

    def remember(self, text: str, path: Path) -> None:
        """`path` is what `text`, as it stands in a tar, was resolved to."""
        self._texts[text] = path

    def resolve(self, written: Path, make: bool = True) -> Path:
        """Where the directory `written` really is. When this layer has not got it yet, it gets it; without `make` only
        if a lower layer shows one there, else `Absent` is raised."""
        known = self._real.get(written)
        if known is not None:
            return known
        path = self._real.get(written[:-1])
        todo = [written[-1]]
        if path is None:
            path, todo = (), list(reversed(written))
        hops = 0
        while todo:
            part = todo.pop()
            if part == "..":
                path = path[:-1]
                continue
            here = (*path, part)
            if here in self._own:
                path = here
                continue
            link = self._enter(here, written, make)
            if link is None:
                path = here
                continue
            self._links.add(here)
            hops += 1
            if hops > _MAX_LINK_HOPS:
                raise BadTar(f"{shown('/'.join(written))} leads through too many symbolic links")
            if link.startswith("/"):
                path = ()
            todo.extend(reversed([p for p in link.split("/") if p not in ("", ".")]))
        self._real[written] = path
        return path

    def _enter(self, path: Path, written: Path, make: bool) -> str | None:
        """Makes sure that `path` is a directory of this layer; returns a symbolic link's target when it is one
        instead."""
        text = text_of(path)
        try:
            status = os.lstat(text)
        except FileNotFoundError:
            below = self.below(path)
            if below is not None and stat.S_ISLNK(below[0].st_mode):
                return self._lower.readlink(below[1], path)
            if not make and (below is None or not stat.S_ISDIR(below[0].st_mode)):
                raise Absent from None
            self._count(0)
            os.mkdir(text, 0o755)
            self._own.add(path)
            self._adopt(path, below)
            return None
        if stat.S_ISLNK(status.st_mode):
            return os.readlink(text)
        if not make and not stat.S_ISDIR(status.st_mode):
            raise Absent
        if is_whiteout(status):
            os.unlink(text)
            self.make(path, hid_lower=True)
            os.chmod(text, 0o755)
        elif not stat.S_ISDIR(status.st_mode):
            raise BadTar(f"{shown('/'.join(written))} leads through {shown(text)}, which is no directory")
        self._own.add(path)
        return None

    def below(self, path: Path) -> tuple[os.stat_result, int] | None:
        """What the layers below show at `path`, unless this layer hides it."""
        if self._opaque and any(path[:length] in self._opaque for length in range(len(path))):
            return None
        return self._lower.lookup(path)

    def _adopt(self, path: Path, below: tuple[os.stat_result, int] | None) -> None:
        """A directory that is only passed through is as it was below: mode, owner, time, extended attributes."""
        below = below or (self._lower.lookup(()) if not path else None)
        if below is None or not stat.S_ISDIR(below[0].st_mode):
            os.chmod(text_of(path), 0o755)
            return
        status, root = below
        self._attributes.own(text_of(path), status.st_uid, status.st_gid)
        os.chmod(text_of(path), stat.S_IMODE(status.st_mode))
        self._times[path] = status.st_mtime_ns
        fd = self._lower.open(root, path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self._attributes.copy_xattrs(fd, text_of(path))
        finally:
            os.close(fd)

    def make_room(self, path: Path, keep_directory: bool) -> bool:
        """Removes what this layer already has at `path`; True when that was a whiteout, which a new directory must go
        on hiding."""
        text = text_of(path)
        self.replaced(path)
        try:
            status = os.lstat(text)
        except FileNotFoundError:
            return False
        if keep_directory and stat.S_ISDIR(status.st_mode):
            self._own.add(path)
            return False
        if stat.S_ISDIR(status.st_mode):
            discard(text)
            self._forget(path)
        else:
            os.unlink(text)
        return is_whiteout(status)

    def replaced(self, path: Path) -> None:
        """What was resolved through a symbolic link at `path` may lie elsewhere from now on."""
        if path in self._links:
            self._links.clear()
            self._real = {(): ()}
            self._texts.clear()

    def _forget(self, path: Path) -> None:
        size = len(path)
        self._real = {(): ()}
        self._texts.clear()
        self._own = {own for own in self._own if own[:size] != path}
        self._opaque = {own for own in self._opaque if own[:size] != path}
        self._times = {own: when for own, when in self._times.items() if own[:size] != path}

    def make(self, path: Path, hid_lower: bool) -> None:
        """With `hid_lower` it goes on hiding what lies below, as the whiteout in its place did."""
        if path not in self._own:
            os.mkdir(text_of(path), 0o700)
            self._own.add(path)
            self._real[path] = path
        if hid_lower:
            self.make_opaque(path)

    def make_opaque(self, path: Path) -> None:
        """From now on it hides what lies below."""
        below = self.below(path)
        self._opaque.add(path)
        if below is None or not stat.S_ISDIR(below[0].st_mode):
            return
        done = False
        for name in OPAQUE_NAMES:
            try:
                os.setxattr(text_of(path), name, b"y", follow_symlinks=False)
                done = True
            except OSError as error:
                if error.errno not in UNSUPPORTED:
                    raise
                last = error
        if not done:
            raise last


def text_of(path: Path) -> str:
    return "/" + "/".join(path)

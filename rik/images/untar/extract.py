"""One layer's tar stream becomes a directory in overlayfs's representation. Runs in the child, whose root is that
directory.

Semantics: OCI image-spec 1.1 "Image Layer Filesystem Changeset"; where it is silent, those of unpacking all layers
one over the other into one directory: symbolic links in the parents of a name are resolved as the merged layers show
them (and never out of the root), and a directory that a layer only passes through keeps mode, owner and times it has
below. Standard library only.
"""

from __future__ import annotations

import errno
import os
import stat
import tarfile

from rik.images.untar.attributes import UNSUPPORTED, Attributes, time_of
from rik.images.untar.discard import discard
from rik.images.untar.merged import OPAQUE_NAMES, LowerLayers, is_whiteout
from rik.images.untar.tarstream import BadTar, TarStream, next_member, open_tar, shown

_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"
_AUFS = ".wh..wh."  # aufs's own bookkeeping, which old Docker images carry
_MAX_LINK_HOPS = 40  # as the kernel's
_COPY_BYTES = 1 << 20

Path = tuple[str, ...]


class OverLimit(Exception):
    """The layer is larger than allowed; the message says in what."""


class _Absent(Exception):
    """There is no such directory, here or below."""


class Extraction:
    """Unpacks into the current root directory. `used` and `spent` are compared with the limits after every member.

    `spent()` is how many compressed bytes were read so far. `dropped` counts what could not be kept, by kind.
    """

    def __init__(self, lower: LowerLayers, limits: dict[str, int], spent: Counter) -> None:
        self._lower = lower
        self._limits = limits
        self._spent = spent
        self.entries = 0
        self.bytes = 0
        self.dropped: dict[str, int] = {}
        self._attributes = Attributes(self._drop)
        self._real: dict[Path, Path] = {(): ()}  # parents as written -> where they are
        self._own: set[Path] = {()}  # directories that are in this layer
        self._opaque: set[Path] = set()  # of them, those that hide what lies below
        self._links: set[Path] = set()  # symbolic links, here or below, that parents were resolved through
        self._times: dict[Path, int] = {}  # set at the end: every change inside would touch them
        self._adopt((), None)

    def run(self, stream: TarStream) -> None:
        """Unpacks all of the stream and reads it to its end. Raises BadTar, OverLimit, OSError."""
        tar = open_tar(stream)
        while (member := next_member(tar)) is not None:
            self._count(member.size if member.isreg() else 0)
            try:
                self._member(member, stream)
            except OSError as error:
                raise _named(error, member.name) from error
            except (ValueError, OverflowError) as error:  # what system calls cannot even be given
                raise BadTar(f"{shown(member.name)}: {error}") from error
        for path, time_ns in self._times.items():
            os.utime(_text(path), ns=(time_ns, time_ns), follow_symlinks=False)
        stream.finish()

    def check_ratio(self, produced: int) -> None:
        """Raises OverLimit when `produced` bytes came of too few compressed ones."""
        free = self._limits["ratio_free_bytes"]
        if produced > free and produced > self._limits["max_ratio"] * max(self._spent(), 1):
            ratio, megabytes = self._limits["max_ratio"], free // 1_000_000
            raise OverLimit(f"it grows to more than {ratio} times its size (after the first {megabytes:,} MB)")

    def _count(self, size: int) -> None:
        self.entries += 1
        self.bytes += size
        if self.entries > self._limits["max_entries"]:
            raise OverLimit(f"it has more than {self._limits['max_entries']:,} files")
        if self.bytes > self._limits["max_bytes"]:
            raise OverLimit(f"it is larger than {self._limits['max_bytes']:,} bytes when unpacked")
        self.check_ratio(self.bytes)

    def _member(self, member: tarfile.TarInfo, stream: TarStream) -> None:
        name = _parts(member.name)
        if not name:
            if member.isdir():
                self._apply((), member)
            return
        if any(part.startswith(_WHITEOUT) for part in name[:-1]) or (
            name[-1].startswith(_AUFS) and name[-1] != _OPAQUE
        ):
            self._drop("other")
            return
        if name[-1].startswith(_WHITEOUT):
            self._whiteout(name)
            return
        path = (*self._directory(name[:-1]), name[-1])
        if member.islnk():
            self._hardlink(member, path)
            return
        hid_lower = self._make_room(path, keep_directory=member.isdir())
        if member.isdir():
            self._make_directory(path, hid_lower)
        elif member.issym():
            if not member.linkname:
                raise BadTar(f"the symbolic link {shown(member.name)} leads nowhere")
            os.symlink(member.linkname, _text(path))
        elif member.isfifo():
            os.mkfifo(_text(path), 0o600)
        elif member.ischr() or member.isblk():
            if not self._make_device(member, path):
                return
        elif member.isreg():
            self._make_file(member, path, stream)
        else:
            self._drop("other")
            return
        self._apply(path, member)

    def _apply(self, path: Path, member: tarfile.TarInfo) -> None:
        self._attributes.apply(_text(path), member)
        time_ns = time_of(member)
        if member.isdir():
            self._times[path] = time_ns
        else:
            os.utime(_text(path), ns=(time_ns, time_ns), follow_symlinks=False)

    def _drop(self, kind: str) -> None:
        self.dropped[kind] = self.dropped.get(kind, 0) + 1

    # -- directories on the way to a name ------------------------------------------------------------------------------

    def _directory(self, written: Path, make: bool = True) -> Path:
        """Where the directory `written` really is. When this layer has not got it yet, it gets it; without `make` only
        if a lower layer shows one there, else `_Absent` is raised."""
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
        text = _text(path)
        try:
            status = os.lstat(text)
        except FileNotFoundError:
            below = self._below(path)
            if below is not None and stat.S_ISLNK(below[0].st_mode):
                return self._lower.readlink(below[1], path)
            if not make and (below is None or not stat.S_ISDIR(below[0].st_mode)):
                raise _Absent from None
            self._count(0)
            os.mkdir(text, 0o755)
            self._own.add(path)
            self._adopt(path, below)
            return None
        if stat.S_ISLNK(status.st_mode):
            return os.readlink(text)
        if not make and not stat.S_ISDIR(status.st_mode):
            raise _Absent
        if is_whiteout(status):
            os.unlink(text)
            self._make_directory(path, hid_lower=True)
            os.chmod(text, 0o755)
        elif not stat.S_ISDIR(status.st_mode):
            raise BadTar(f"{shown('/'.join(written))} leads through {shown(text)}, which is no directory")
        self._own.add(path)
        return None

    def _below(self, path: Path) -> tuple[os.stat_result, int] | None:
        """What the layers below show at `path`, unless this layer hides it."""
        if self._opaque and any(path[:length] in self._opaque for length in range(len(path))):
            return None
        return self._lower.lookup(path)

    def _adopt(self, path: Path, below: tuple[os.stat_result, int] | None) -> None:
        """A directory that is only passed through is as it was below: mode, owner, time, extended attributes."""
        below = below or (self._lower.lookup(()) if not path else None)
        if below is None or not stat.S_ISDIR(below[0].st_mode):
            os.chmod(_text(path), 0o755)
            return
        status, root = below
        self._attributes.own(_text(path), status.st_uid, status.st_gid)
        os.chmod(_text(path), stat.S_IMODE(status.st_mode))
        self._times[path] = status.st_mtime_ns
        fd = self._lower.open(root, path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self._attributes.copy_xattrs(fd, _text(path))
        finally:
            os.close(fd)

    # -- what a member becomes -----------------------------------------------------------------------------------------

    def _make_room(self, path: Path, keep_directory: bool) -> bool:
        """Removes what this layer already has at `path`; True when that was a whiteout, which a new directory must go
        on hiding."""
        text = _text(path)
        self._replaced(path)
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

    def _replaced(self, path: Path) -> None:
        """What was resolved through a symbolic link at `path` may lie elsewhere from now on."""
        if path in self._links:
            self._links.clear()
            self._real = {(): ()}

    def _forget(self, path: Path) -> None:
        size = len(path)
        self._real = {(): ()}
        self._own = {own for own in self._own if own[:size] != path}
        self._opaque = {own for own in self._opaque if own[:size] != path}
        self._times = {own: when for own, when in self._times.items() if own[:size] != path}

    def _make_directory(self, path: Path, hid_lower: bool) -> None:
        if path not in self._own:
            os.mkdir(_text(path), 0o700)
            self._own.add(path)
            self._real[path] = path
        if hid_lower:
            self._make_opaque(path)

    def _make_opaque(self, path: Path) -> None:
        below = self._below(path)
        self._opaque.add(path)
        if below is None or not stat.S_ISDIR(below[0].st_mode):
            return
        done = False
        for name in OPAQUE_NAMES:
            try:
                os.setxattr(_text(path), name, b"y", follow_symlinks=False)
                done = True
            except OSError as error:
                if error.errno not in UNSUPPORTED:
                    raise
                last = error
        if not done:
            raise last

    def _make_file(self, member: tarfile.TarInfo, path: Path, stream: TarStream) -> None:
        fd = os.open(_text(path), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            stream.seek(member.offset_data)
            pieces = [(0, member.size)]
            if member.issparse():
                pieces = [(int(start), int(size)) for start, size in getattr(member, "sparse", ())]
            for start, size in pieces:
                if start < 0 or size < 0 or start + size > member.size:
                    raise BadTar(f"the map of the sparse file {shown(member.name)} points out of it")
                os.lseek(fd, start, os.SEEK_SET)
                self._copy(stream, fd, size, member.name)
            if member.issparse():
                os.ftruncate(fd, member.size)
        finally:
            os.close(fd)

    @staticmethod
    def _copy(stream: TarStream, fd: int, size: int, name: str) -> None:
        while size > 0:
            data = stream.read_data(min(size, _COPY_BYTES))
            if not data:
                raise BadTar(f"it ends in the middle of {shown(name)}")
            size -= len(data)
            _write_all(fd, data)

    def _make_device(self, member: tarfile.TarInfo, path: Path) -> bool:
        kind = stat.S_IFCHR if member.ischr() else stat.S_IFBLK
        try:
            os.mknod(_text(path), kind | 0o600, os.makedev(member.devmajor, member.devminor))
        except PermissionError:
            self._drop("devices")
            return False
        except (OverflowError, ValueError):
            raise BadTar(f"the device {shown(member.name)} has impossible numbers") from None
        return True

    def _hardlink(self, member: tarfile.TarInfo, path: Path) -> None:
        written = _parts(member.linkname)
        if not written:
            raise BadTar(f"the hard link {shown(member.name)} leads nowhere")
        target = (*self._directory(written[:-1]), written[-1])
        self._bring_up(target, member)
        if target == path:
            return
        if target[: len(path)] == path:
            raise BadTar(f"the hard link {shown(member.name)} replaces the directory that it leads into")
        self._make_room(path, keep_directory=False)
        os.link(_text(target), _text(path), follow_symlinks=False)

    def _bring_up(self, target: Path, member: tarfile.TarInfo) -> None:
        """A hard link may lead to a file of a lower layer: then this layer gets a copy, as overlayfs would make one."""
        text = _text(target)
        try:
            status = os.lstat(text)
        except FileNotFoundError:
            pass
        else:
            if stat.S_ISDIR(status.st_mode) or is_whiteout(status):
                raise BadTar(f"the hard link {shown(member.name)} leads to {shown(text)}, which is no file")
            return
        below = self._below(target)
        if below is None or stat.S_ISDIR(below[0].st_mode):
            raise BadTar(f"the hard link {shown(member.name)} leads to {shown(text)}, which is not there")
        status, root = below
        self._count(status.st_size if stat.S_ISREG(status.st_mode) else 0)
        if stat.S_ISLNK(status.st_mode):
            os.symlink(self._lower.readlink(root, target), text)
        elif stat.S_ISREG(status.st_mode):
            self._copy_file(root, target)
        else:
            os.mknod(text, status.st_mode, status.st_rdev)
        self._attributes.own(text, status.st_uid, status.st_gid)
        if not stat.S_ISLNK(status.st_mode):
            os.chmod(text, stat.S_IMODE(status.st_mode))
        os.utime(text, ns=(status.st_mtime_ns, status.st_mtime_ns), follow_symlinks=False)

    def _copy_file(self, root: int, path: Path) -> None:
        source = self._lower.open(root, path, os.O_RDONLY)
        try:
            fd = os.open(_text(path), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                while data := os.read(source, _COPY_BYTES):
                    _write_all(fd, data)
                status = os.fstat(source)
                self._attributes.own(_text(path), status.st_uid, status.st_gid)  # it would clear capabilities later
                self._attributes.copy_xattrs(source, _text(path))
            finally:
                os.close(fd)
        finally:
            os.close(source)

    def _whiteout(self, name: Path) -> None:
        hidden = name[-1][len(_WHITEOUT) :]
        if hidden in ("", ".", ".."):
            raise BadTar(f"the whiteout {shown('/'.join(name))} names nothing")
        try:
            parent = self._directory(name[:-1], make=False)
        except _Absent:
            return  # there is nothing to hide
        if name[-1] == _OPAQUE:
            self._make_opaque(parent)
            return
        path = (*parent, hidden)
        text = _text(path)
        try:
            status = os.lstat(text)
        except FileNotFoundError:
            if self._below(path) is not None:
                self._replaced(path)
                os.mknod(text, stat.S_IFCHR, os.makedev(0, 0))
            return
        # The same layer also has something new there, which stays; a directory must not show what it had below.
        if stat.S_ISDIR(status.st_mode):
            self._make_opaque(path)


class Counter:
    """Bytes read so far."""

    def __init__(self) -> None:
        self.value = 0

    def __call__(self) -> int:
        return self.value


def _parts(name: str) -> Path:
    """A name as it lies inside the root: `..` never leads out of it."""
    if "\0" in name:
        raise BadTar(f"the name {shown(name)} holds a zero byte")
    parts: list[str] = []
    for part in name.split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in ("", "."):
            parts.append(part)
    return tuple(parts)


def _text(path: Path) -> str:
    return "/" + "/".join(path)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _named(error: OSError, name: str) -> Exception:
    """What the image's names make impossible is its fault; the rest is the host's."""
    if error.errno in (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ):
        return BadTar(
            f"the name {shown(name)} ({len(name):,} characters) cannot be a file's: {os.strerror(error.errno)}"
        )
    if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.EMLINK):
        return BadTar(f"{shown(name)} does not fit with what came before it: {os.strerror(error.errno)}")
    if error.errno == errno.EFBIG:
        return OverLimit(f"{shown(name)} is larger than a file may be here")
    return error

"""One layer's tar stream becomes a directory in overlayfs's representation. Runs in the child, whose root is that
directory.

Semantics: OCI image-spec 1.1 "Image Layer Filesystem Changeset"; where it is silent, those of unpacking all layers
one over the other into one directory (`directories.py` says where names lead then). Standard library only.
"""

from __future__ import annotations

import errno
import os
import stat
import tarfile

from rik.images.untar.attributes import Attributes, time_of
from rik.images.untar.directories import Absent, Directories, Path, text_of
from rik.images.untar.merged import LowerLayers, is_whiteout
from rik.images.untar.tarstream import BadTar, TarStream, next_member, open_tar, shown

_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"
_AUFS = ".wh..wh."  # aufs's own bookkeeping, which old Docker images carry
_COPY_BYTES = 1 << 20


class OverLimit(Exception):
    """The layer is larger than allowed; the message says in what."""


class Extraction:
    """Unpacks into the current root directory. `entries`, `bytes` and `spent` are compared with the limits at every
    member; `spent()` is how many compressed bytes were read so far. `dropped` counts what could not be kept, by kind.
    """

    def __init__(self, lower: LowerLayers, limits: dict[str, int], spent: Counter) -> None:
        self._lower = lower
        self._limits = limits
        self._spent = spent
        self.entries = 0
        self.bytes = 0
        self.dropped: dict[str, int] = {}
        self._attributes = Attributes(self._drop)
        self._directories = Directories(lower, self._attributes, self._count)

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
        self._directories.set_times()
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
        path = (*self._directories.resolve(name[:-1]), name[-1])
        if member.islnk():
            self._hardlink(member, path)
            return
        hid_lower = self._directories.make_room(path, keep_directory=member.isdir())
        if member.isdir():
            self._directories.make(path, hid_lower)
        elif member.issym():
            if not member.linkname:
                raise BadTar(f"the symbolic link {shown(member.name)} leads nowhere")
            os.symlink(member.linkname, text_of(path))
        elif member.isfifo():
            os.mkfifo(text_of(path), 0o600)
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
        self._attributes.apply(text_of(path), member)
        time_ns = time_of(member)
        if member.isdir():
            self._directories.keep_time(path, time_ns)
        else:
            os.utime(text_of(path), ns=(time_ns, time_ns), follow_symlinks=False)

    def _drop(self, kind: str) -> None:
        self.dropped[kind] = self.dropped.get(kind, 0) + 1

    # -- what a member becomes -----------------------------------------------------------------------------------------

    def _make_file(self, member: tarfile.TarInfo, path: Path, stream: TarStream) -> None:
        fd = os.open(text_of(path), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
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
            os.mknod(text_of(path), kind | 0o600, os.makedev(member.devmajor, member.devminor))
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
        target = (*self._directories.resolve(written[:-1]), written[-1])
        self._bring_up(target, member)
        if target == path:
            return
        if target[: len(path)] == path:
            raise BadTar(f"the hard link {shown(member.name)} replaces the directory that it leads into")
        self._directories.make_room(path, keep_directory=False)
        os.link(text_of(target), text_of(path), follow_symlinks=False)

    def _bring_up(self, target: Path, member: tarfile.TarInfo) -> None:
        """A hard link may lead to a file of a lower layer: then this layer gets a copy, as overlayfs would make one."""
        text = text_of(target)
        try:
            status = os.lstat(text)
        except FileNotFoundError:
            pass
        else:
            if stat.S_ISDIR(status.st_mode) or is_whiteout(status):
                raise BadTar(f"the hard link {shown(member.name)} leads to {shown(text)}, which is no file")
            return
        below = self._directories.below(target)
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
            fd = os.open(text_of(path), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                while data := os.read(source, _COPY_BYTES):
                    _write_all(fd, data)
                status = os.fstat(source)
                self._attributes.own(text_of(path), status.st_uid, status.st_gid)  # it would clear capabilities later
                self._attributes.copy_xattrs(source, text_of(path))
            finally:
                os.close(fd)
        finally:
            os.close(source)

    def _whiteout(self, name: Path) -> None:
        hidden = name[-1][len(_WHITEOUT) :]
        if hidden in ("", ".", ".."):
            raise BadTar(f"the whiteout {shown('/'.join(name))} names nothing")
        try:
            parent = self._directories.resolve(name[:-1], make=False)
        except Absent:
            return  # there is nothing to hide
        if name[-1] == _OPAQUE:
            self._directories.make_opaque(parent)
            return
        path = (*parent, hidden)
        text = text_of(path)
        try:
            status = os.lstat(text)
        except FileNotFoundError:
            if self._directories.below(path) is not None:
                self._directories.replaced(path)
                os.mknod(text, stat.S_IFCHR, os.makedev(0, 0))
            return
        # The same layer also has something new there, which stays; a directory must not show what it had below.
        if stat.S_ISDIR(status.st_mode):
            self._directories.make_opaque(path)


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

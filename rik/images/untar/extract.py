"""One layer's tar stream becomes a directory in overlayfs's representation. Runs in the child, whose root is that
directory.

Semantics: OCI image-spec 1.1 "Image Layer Filesystem Changeset"; where it is silent, those of unpacking all layers
one over the other into one directory (`directories.py` says where names lead then). Standard library only.
"""

from __future__ import annotations

import errno
import os
import stat

from rik.images.untar import members
from rik.images.untar.attributes import Attributes
from rik.images.untar.directories import Absent, Directories, Path, text_of
from rik.images.untar.members import Member, Members
from rik.images.untar.merged import LowerLayers, is_whiteout
from rik.images.untar.tarstream import BadTar, TarStream, shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"
_AUFS = ".wh..wh."  # aufs's own bookkeeping, which old Docker images carry
_COPY_BYTES = 1 << 20
_MAX_LINK_CHARACTERS = 4095  # as the kernel's
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class OverLimit(Exception):
    """More than allowed: of `limit` (bytes, entries or ratio), or, when that is "", of what the message says."""

    def __init__(self, limit: str = "", message: str = "") -> None:
        super().__init__(message)
        self.limit = limit


class Extraction:
    """Unpacks into the current root directory. `entries`, `bytes` and `spent` are compared with the limits at every
    member, with `below_entries` and `below_bytes` of the layers below added; `spent()` is how many compressed bytes
    were read so far. `dropped` counts what could not be kept, by kind.
    """

    def __init__(self, lower: LowerLayers, limits: dict[str, int], spent: Counter) -> None:
        self._lower = lower
        self._limits = limits
        self._most_entries = limits["max_entries"] - limits["below_entries"]
        self._most_bytes = limits["max_bytes"] - limits["below_bytes"]
        self._spent = spent
        self.entries = 0
        self.bytes = 0
        self.dropped: dict[str, int] = {}
        self._attributes = Attributes(self._drop)
        self._directories = Directories(lower, self._attributes, self._count)

    def run(self, stream: TarStream) -> None:
        """Unpacks all of the stream and reads it to its end. Raises BadTar, OverLimit, OSError."""
        found = Members(stream)
        while (member := found.next()) is not None:
            self._count(member.size)
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
            raise OverLimit("ratio")

    def _count(self, size: int) -> None:
        self.entries += 1
        self.bytes += size
        if self.entries > self._most_entries:
            raise OverLimit("entries")
        if self.bytes > self._most_bytes:
            raise OverLimit("bytes")
        self.check_ratio(self.bytes)

    def _member(self, member: Member, stream: TarStream) -> None:
        parent, _, base = member.name.rpartition("/")
        place = self._directories.known(parent)
        if place is None or base in ("", ".", "..") or base.startswith(_WHITEOUT) or "\0" in base:
            name = _parts(member.name)
            if not name:
                if member.kind == members.DIRECTORY:
                    self._attributes.apply("/", member)
                    self._directories.keep_time((), member.mtime_ns)
                return
            if any(part.startswith(_WHITEOUT) for part in name[:-1]) or (
                name[-1].startswith(_AUFS) and name[-1] != _OPAQUE
            ):
                self._drop("other")
                return
            if name[-1].startswith(_WHITEOUT):
                self._whiteout(name)
                return
            place = self._directories.resolve(name[:-1])
            if name[-1] == base:
                self._directories.remember(parent, place)
            base = name[-1]
        self._make(member, (*place, base), stream)

    def _make(self, member: Member, path: Path, stream: TarStream) -> None:
        text = text_of(path)
        if member.kind == members.REGULAR:
            self._make_file(member, path, stream)
        elif member.kind == members.DIRECTORY:
            self._directories.make(path, self._directories.make_room(path, keep_directory=True))
            self._attributes.apply(text, member)
            self._directories.keep_time(path, member.mtime_ns)
        elif member.kind == members.SYMBOLIC_LINK:
            if not member.linkname:
                raise BadTar(f"the symbolic link {shown(member.name)} leads nowhere")
            if len(member.linkname) > _MAX_LINK_CHARACTERS:
                raise BadTar(f"{shown(member.name)} leads to a name of {len(member.linkname):,} characters")
            self._place(path, lambda: os.symlink(member.linkname, text))
            self._finish(text, member)
        elif member.kind == members.HARD_LINK:
            self._hardlink(member, path)
        elif member.kind == members.FIFO:
            self._place(path, lambda: os.mkfifo(text, 0o600))
            self._finish(text, member)
        elif member.kind in (members.CHARACTER_DEVICE, members.BLOCK_DEVICE):
            if self._make_device(member, path):
                self._finish(text, member)
        else:
            self._directories.make_room(path, keep_directory=False)
            self._drop("other")

    def _place(self, path: Path, make: Callable[[], int | None]) -> int | None:
        """Has `make` make something new at `path`, in place of whatever this layer already has there."""
        self._directories.replaced(path)
        try:
            return make()
        except FileExistsError:  # seldom: looking first would cost a call for every file
            self._directories.make_room(path, keep_directory=False)
            return make()

    def _finish(self, file: int | str, member: Member) -> None:
        """Once its contents are written: they would take set-uid bits and the time with them."""
        self._attributes.apply(file, member)
        times = (member.mtime_ns, member.mtime_ns)
        if isinstance(file, int):
            os.utime(file, ns=times)
        else:
            os.utime(file, ns=times, follow_symlinks=False)

    def _drop(self, kind: str) -> None:
        self.dropped[kind] = self.dropped.get(kind, 0) + 1

    # -- what a member becomes -----------------------------------------------------------------------------------------

    def _make_file(self, member: Member, path: Path, stream: TarStream) -> None:
        text = text_of(path)
        fd = self._place(path, lambda: os.open(text, _NEW_FILE, member.mode & 0o777))
        assert fd is not None
        try:
            if member.pieces is None:
                self._copy(stream, fd, member.size, member.name)
            else:
                for start, size in member.pieces:
                    os.lseek(fd, start, os.SEEK_SET)
                    self._copy(stream, fd, size, member.name)
                os.ftruncate(fd, member.size)
            self._finish(fd, member)
        finally:
            os.close(fd)

    @staticmethod
    def _copy(stream: TarStream, fd: int, size: int, name: str) -> None:
        while size > 0:
            data = stream.piece(size)
            if not data:
                raise BadTar(f"it ends in the middle of {shown(name)}")
            size -= len(data)
            _write_all(fd, data)

    def _make_device(self, member: Member, path: Path) -> bool:
        kind = stat.S_IFCHR if member.kind == members.CHARACTER_DEVICE else stat.S_IFBLK
        try:
            device = os.makedev(member.major, member.minor)
            self._place(path, lambda: os.mknod(text_of(path), kind | 0o600, device))
        except PermissionError:
            self._drop("devices")
            return False
        except (OverflowError, ValueError):
            raise BadTar(f"the device {shown(member.name)} has impossible numbers") from None
        return True

    def _hardlink(self, member: Member, path: Path) -> None:
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

    def _bring_up(self, target: Path, member: Member) -> None:
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
            fd = os.open(text_of(path), _NEW_FILE, 0o600)
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
    """A name as it lies inside the root; an absolute one, too (some builders write them). Raises BadTar when it climbs
    above the root, which no builder means."""
    if "\0" in name:
        raise BadTar(f"the name {shown(name)} holds a zero byte")
    parts: list[str] = []
    for part in name.split("/"):
        if part == "..":
            if not parts:
                raise BadTar(f"the name {shown(name)} climbs out of the image's root")
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return tuple(parts)


def _write_all(fd: int, data: bytes | memoryview) -> None:
    while (written := os.write(fd, data)) < len(data):
        data = memoryview(data)[written:]


def _named(error: OSError, name: str) -> Exception:
    """What the image's names make impossible is its fault; the rest is the host's."""
    if error.errno in (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ):
        return BadTar(
            f"the name {shown(name)} ({len(name):,} characters) cannot be a file's: {os.strerror(error.errno)}"
        )
    if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.EMLINK):
        return BadTar(f"{shown(name)} does not fit with what came before it: {os.strerror(error.errno)}")
    if error.errno == errno.EFBIG:
        return OverLimit(message=f"{shown(name)} is larger than a file may be here")
    return error

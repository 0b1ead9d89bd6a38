"""The files an image on this host consists of: in a directory, or in a tar file. Blocking; called from threads.

Both are read as something a stranger wrote: nothing outside of them is opened, and nothing but plain files.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

from rik.images.errors import ImageInvalid, ImageNotFound, ImagePullFailed, ImageUnauthorized
from rik.images.reference import ArchiveReference, LayoutReference
from rik.images.untar.members import HARD_LINK, REGULAR, SYMBOLIC_LINK, Members
from rik.images.untar.tarstream import BadTar, TarStream

# What `docker save` of the largest images has is a few hundred; each costs time to read over.
MAX_ARCHIVE_MEMBERS = 20_000
_MAX_EXTENDED_BYTES = 4096  # names in an image archive are short
_TABLE_READ_BYTES = 2048  # a header, and that of the next file when this one is small
_MAX_LINK_HOPS = 8
_COMPRESSIONS = ((b"\x1f\x8b", "gzip"), (b"\x28\xb5\x2f\xfd", "zstd"), (b"\xfd7zXZ", "xz"), (b"BZh", "bzip2"))


class Part:
    """One open file of an image: `read(n)` goes through its `size` bytes once. Close it."""

    def __init__(self, fd: int, size: int) -> None:
        self._fd = fd
        self._left = size
        self.size = size

    def read(self, count: int) -> bytes:
        """Up to `count` bytes, b"" at the end; fewer in all than `size` when the file is cut short."""
        data = os.read(self._fd, min(count, self._left))
        self._left -= len(data)
        return data

    def close(self) -> None:
        os.close(self._fd)


class Files(Protocol):
    """Files by their names relative to the image, with `/` between the parts."""

    def open(self, name: str) -> Part:
        """Raises FileNotFoundError when there is none of that name, ImageInvalid when it is no plain file inside the
        image."""
        ...


def locate(reference: LayoutReference | ArchiveReference, allow_dirs: Sequence[Path] | None) -> str:
    """The real path of what `reference` names. Raises ImageUnauthorized when it lies outside of all `allow_dirs`
    (None: no limit)."""
    named = reference.directory if isinstance(reference, LayoutReference) else reference.file
    real = os.path.realpath(named)
    if allow_dirs is not None and not any(is_within(real, os.path.realpath(folder)) for folder in allow_dirs):
        folders = ", ".join(str(folder) for folder in allow_dirs)
        if folders:
            raise ImageUnauthorized(
                f"{reference} may not be read: {named} is not inside {folders}",
                next_step="see `--allow-dir` of `rik serve`",
            )
        raise ImageUnauthorized(
            f"{reference} may not be read: this node reads images from no directory",
            next_step="start it with `rik serve --allow-dir DIR`",
        )
    return real


def is_within(path: str, folder: str) -> bool:
    """Whether the real path `path` is the real path `folder` or lies below it."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")


class DirectoryFiles:
    """Files below a directory; symbolic links are followed as long as they stay inside."""

    def __init__(self, reference: LayoutReference, folder: str) -> None:
        if not os.path.isdir(folder):
            kind = "is no directory" if os.path.lexists(folder) else "does not exist"
            raise ImageNotFound(f"{reference}: the directory {reference.directory} {kind}")
        self._reference = reference
        self._folder = folder

    def open(self, name: str) -> Part:
        fd, real = _open_plain(os.path.join(self._folder, name), f"{self._reference}: {name}")
        if not is_within(real, self._folder):
            os.close(fd)
            raise ImageInvalid(f"{self._reference}: {name} is a symbolic link out of the image, to {real[:200]}")
        return Part(fd, os.fstat(fd).st_size)


class ArchiveFiles:
    """Files in a tar file that is not compressed as a whole. Its table is read once, when this is made."""

    def __init__(self, reference: ArchiveReference, path: str) -> None:
        self._reference = reference
        self._path = path
        self._places: dict[str, tuple[int, int]] = {}
        self._links: dict[str, str] = {}
        with os.fdopen(self._open_file(), "rb", buffering=0) as file:
            self._read_table(file)

    def open(self, name: str) -> Part:
        for _ in range(_MAX_LINK_HOPS):
            if name not in self._links:
                break
            name = self._links[name]
        if name not in self._places:
            raise FileNotFoundError(2, "not in the archive", name)
        start, size = self._places[name]
        fd = self._open_file()
        os.lseek(fd, start, os.SEEK_SET)
        return Part(fd, size)

    def _open_file(self) -> int:
        what = f"{self._reference}: {self._reference.file}"
        try:
            fd, real = _open_plain(self._path, what)
        except FileNotFoundError:
            raise ImageNotFound(f"{self._reference}: the file {self._reference.file} does not exist") from None
        if real != self._path:
            os.close(fd)
            raise ImageInvalid(f"{what} was replaced by a symbolic link to {real[:200]} while it was read")
        return fd

    def _read_table(self, file: BinaryIO) -> None:
        magic = file.read(8)
        for start, name in _COMPRESSIONS:
            if magic.startswith(start):
                raise ImageInvalid(
                    f"{self._reference}: the archive is compressed by {name}",
                    next_step="decompress it; its layers may be compressed",
                )
        file.seek(0)
        size = os.fstat(file.fileno()).st_size
        try:
            stream = TarStream(lambda: file.read(_TABLE_READ_BYTES), lambda count: file.seek(count, os.SEEK_CUR))
            members = Members(stream, _MAX_EXTENDED_BYTES)
            count = 0
            while (member := members.next()) is not None:
                count += 1
                if count > MAX_ARCHIVE_MEMBERS:
                    raise BadTar(f"more than {MAX_ARCHIVE_MEMBERS:,} files, which no image has")
                name = os.path.normpath("/" + member.name).lstrip("/")
                if member.pieces is not None:
                    raise BadTar(f"{name!r} is stored as a sparse file")
                if member.kind == REGULAR:
                    if member.offset + member.size > size:
                        raise BadTar(f"it ends in the middle of {name!r}: it was cut short")
                    self._places[name] = (member.offset, member.size)
                elif member.kind == SYMBOLIC_LINK:
                    self._links[name] = os.path.normpath(
                        os.path.join("/", os.path.dirname(name), member.linkname)
                    ).lstrip("/")
                elif member.kind == HARD_LINK:
                    self._links[name] = os.path.normpath("/" + member.linkname).lstrip("/")
        except BadTar as error:
            raise ImageInvalid(f"{self._reference}: {self._reference.file} is no usable tar archive: {error}") from None


def _open_plain(path: str, what: str) -> tuple[int, str]:
    """A descriptor of the plain file at `path`, and the real path of what was opened."""
    # O_PATH touches nothing: a FIFO would block, and a device might act. What was found is checked, and only it opened.
    found = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        mode = os.fstat(found).st_mode
        if not stat.S_ISREG(mode):
            raise ImageInvalid(f"{what} is no plain file, but {_kind(mode)}")
        link = f"/proc/self/fd/{found}"
        return os.open(link, os.O_RDONLY | os.O_CLOEXEC), os.readlink(link)
    finally:
        os.close(found)


def read_small(files: Files, name: str, limit: int, where: str) -> bytes:
    """All of a file that is read into memory. Raises FileNotFoundError, ImageInvalid when it is larger than `limit`
    bytes."""
    part = files.open(name)
    try:
        if part.size > limit:
            raise ImageInvalid(f"{where} has {part.size:,} bytes; at most {limit:,} are read")
        data = b""
        while piece := part.read(limit + 1 - len(data)):
            data += piece
    except OSError as error:
        raise ImagePullFailed(f"{where} cannot be read: {error.strerror}") from error
    finally:
        part.close()
    return data


def _kind(mode: int) -> str:
    names = (
        (stat.S_ISDIR, "a directory"),
        (stat.S_ISFIFO, "a FIFO"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISCHR, "a character device"),
        (stat.S_ISBLK, "a block device"),
    )
    return next((name for test, name in names if test(mode)), "something else")

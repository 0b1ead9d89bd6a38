"""Layers are compressed by gzip, by zstd, or not at all; what they begin with tells, whatever their media type says.

Standard library only, but for two optional packages, which are imported only for a layer that needs them: zstandard,
and isal (Intel's igzip), which takes less than half of zlib's time and checks what zlib checks.
"""

from __future__ import annotations

import importlib
import sys
import zlib

from rik.images.untar.tarstream import BadTar

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Protocol

    class Readable(Protocol):
        """`read(n)`: up to n bytes, b"" at the end only."""

        def read(self, size: int, /) -> bytes: ...


MAGIC_BYTES = 4
OPTIONAL_PACKAGES = ("isal", "zstandard")
_RESERVED_FLAGS = 0xE0
_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_WITH_GZIP_HEADER = 31  # and the largest window
_READ_BYTES = 1 << 18  # of compressed data
_MAX_ZSTD_WINDOW_BYTES = 128 << 20  # the most that `zstd --long` needs without being asked for more


def decompressed(source: Readable, magic: bytes, packages: Mapping[str, str]) -> Readable:
    """The plain stream of one that begins with `magic`. Raises BadTar, also later when it turns out to be damaged.

    `packages` are the directories that hold the optional packages, by their names; "" or none when not installed.
    """
    if magic.startswith(_GZIP):
        # igzip takes no notice of the flags that RFC 1952 reserves.
        if magic[3:] and magic[3] & _RESERVED_FLAGS:
            raise BadTar("the compressed data is damaged: unknown header flags set")
        return Gunzip(source, _fastest(packages.get("isal", "")))
    if magic != _ZSTD:
        return source
    if not packages.get("zstandard"):
        raise BadTar("it is compressed by zstd, and the Python package zstandard is not installed")
    sys.path.append(packages["zstandard"])
    return Unzstd(source)


def _fastest(isal_path: str) -> Any:
    """A module with zlib's interface."""
    if isal_path:
        sys.path.append(isal_path)
        try:
            return importlib.import_module("isal.isal_zlib")
        except ImportError:  # built for another interpreter than this one
            pass
    return zlib


class Gunzip:
    """Decompresses gzip members one after the other; zeros after the last are padding."""

    def __init__(self, source: Readable, codec: Any = zlib) -> None:
        self._source = source
        self._codec = codec
        self._decoder = codec.decompressobj(_WITH_GZIP_HEADER)
        self._pending = b""
        self._more = False  # the decoder may still hold output of input it has already taken

    def read(self, size: int) -> bytes:
        while True:
            if self._decoder.eof and not self._next_member():
                return b""
            if not self._pending and not self._more:
                self._pending = self._source.read(_READ_BYTES)
                if not self._pending:
                    raise BadTar("the compressed data ends too early")
            try:
                data: bytes = self._decoder.decompress(self._pending, size)
            except self._codec.error as error:
                raise BadTar(f"the compressed data is damaged: {error}") from None
            self._pending = self._decoder.unconsumed_tail
            self._more = len(data) == size
            if data:
                return data

    def _next_member(self) -> bool:
        rest = self._decoder.unused_data.lstrip(b"\0")
        while not rest:
            data = self._source.read(_READ_BYTES)
            if not data:
                return False
            rest = data.lstrip(b"\0")
        if not rest.startswith(_GZIP[: len(rest)]):
            raise BadTar("the compressed data is damaged: something else follows it")
        self._decoder = self._codec.decompressobj(_WITH_GZIP_HEADER)
        self._pending, self._more = rest, False
        return True


class Unzstd:
    """Decompresses zstd frames one after the other."""

    def __init__(self, source: Readable) -> None:
        # By its name in a string: this package is of the standard library but for this, which is optional.
        zstandard = importlib.import_module("zstandard")
        decoder = zstandard.ZstdDecompressor(max_window_size=_MAX_ZSTD_WINDOW_BYTES)
        self._reader: Readable = decoder.stream_reader(source, read_size=_READ_BYTES, read_across_frames=True)
        self._error: type[Exception] = zstandard.ZstdError

    def read(self, size: int) -> bytes:
        try:
            return self._reader.read(size)
        except self._error as error:
            raise BadTar(f"the compressed data is damaged: {error}") from None

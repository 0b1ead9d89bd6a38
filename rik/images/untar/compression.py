"""Layers are compressed by gzip, by zstd, or not at all; what they begin with tells, whatever their media type says."""

from __future__ import annotations

import importlib
import sys
import zlib

from rik.images.untar.tarstream import BadTar

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rik.images.untar.tarstream import Readable

MAGIC_BYTES = 4
_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_READ_BYTES = 1 << 18
_MAX_ZSTD_WINDOW_BYTES = 128 << 20  # the most that `zstd --long` needs without being asked for more


def decompressed(source: Readable, magic: bytes, zstandard_path: str) -> Readable:
    """The plain stream of one that begins with `magic`. Raises BadTar, also later when it turns out to be damaged.

    `zstandard_path` is the directory that holds the package zstandard, "" when it is not installed: the one thing here
    that is not in the standard library, and imported only for a layer that needs it.
    """
    if magic.startswith(_GZIP):
        return Gunzip(source)
    if magic != _ZSTD:
        return source
    if not zstandard_path:
        raise BadTar("it is compressed by zstd, and the Python package zstandard is not installed")
    sys.path.append(zstandard_path)
    return Unzstd(source)


class Gunzip:
    """Decompresses gzip members one after the other; zeros after the last are padding."""

    def __init__(self, source: Readable) -> None:
        self._source = source
        self._decoder = zlib.decompressobj(31)
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
                data = self._decoder.decompress(self._pending, size)
            except zlib.error as error:
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
        self._decoder = zlib.decompressobj(31)
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

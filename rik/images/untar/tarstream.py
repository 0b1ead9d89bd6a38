"""Reading tar streams that nobody vouches for.

Strict where Python's tarfile is lenient: it ends silently at a damaged header in the middle, reads an extended header
into memory whatever its size, and loops for ever over negative sizes; here these are errors. Lenient where writers
are sloppy: the padding at the very end may be missing. Standard library only.
"""

from __future__ import annotations

import tarfile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    class Readable(Protocol):
        """`read(n)`: up to n bytes, b"" at the end only."""

        def read(self, size: int, /) -> bytes: ...


BLOCK = 512
MAX_SIZE = 1 << 62

# Undocumented, but the only way to tell a damaged header from the end of the archive.
_DAMAGED: tuple[type[Exception], ...] = tuple(
    getattr(tarfile, name) for name in ("InvalidHeaderError", "TruncatedHeaderError", "SubsequentHeaderError")
)


class BadTar(Exception):
    """The stream is no tar that can be unpacked; the message says why, without naming the layer."""


class StrictTarInfo(tarfile.TarInfo):
    """A header that was checked. `max_extended_bytes` bounds what precedes a member to extend its header."""

    max_extended_bytes = 1 << 20

    def _proc_member(self, tar: tarfile.TarFile) -> Any:
        """Between reading a header and following it. Undocumented, but every header passes here, also the ones behind
        an extended header, which Pythons with the fixes of 2026 no longer read by `frombuf` or `fromtarfile`.
        """
        self._check_size()
        extended = self.type in (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
        extended = extended or self.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
        if extended and self.size > self.max_extended_bytes:
            raise BadTar(f"an extended header of {self.size:,} bytes; at most {self.max_extended_bytes:,} are read")
        return super()._proc_member(tar)  # type: ignore[misc]

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> StrictTarInfo:
        try:
            info = super().fromtarfile(tar)
        except _DAMAGED as error:
            raise BadTar(f"{error} at byte {tar.offset:,}") from None
        except RecursionError:
            raise BadTar("extended headers follow each other without end") from None
        info._check_size()  # an extended header may have given it another one
        return info

    def _check_size(self) -> None:
        if not 0 <= self.size <= MAX_SIZE:
            raise BadTar(f"a header gives the size {self.size}")


class TarStream:
    """What tarfile wants of a file, over a stream that only goes forward. `finish` reads the rest.

    `read` pads the end of the stream with zeros to a whole block, so that a missing last padding does no harm;
    `read_data` does not.
    """

    def __init__(self, source: Readable) -> None:
        self._source = source
        self._position = 0
        self._ended = False

    def tell(self) -> int:
        return self._position

    def read_data(self, size: int) -> bytes:
        """Up to `size` bytes of the stream, fewer only at its end."""
        parts: list[bytes] = []
        left = size
        while left > 0 and not self._ended:
            part = self._source.read(left)
            if not part:
                self._ended = True
            parts.append(part)
            left -= len(part)
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        self._position += len(data)
        return data

    def read(self, size: int) -> bytes:
        data = self.read_data(size)
        if len(data) < size and self._ended:
            padding = min(-self._position % BLOCK, size - len(data))
            self._position += padding
            data += bytes(padding)
        return data

    def seek(self, position: int) -> int:
        while self._position < position:
            if not self.read(min(position - self._position, 1 << 20)):
                break
        if self._position > position:
            raise BadTar(f"a header points back from byte {self._position:,} to {position:,}")
        return self._position

    def finish(self) -> None:
        """Reads what follows the end of the archive, so that all of the stream has been seen."""
        while self.read_data(1 << 20):
            pass


def open_tar(stream: Any, info: type[StrictTarInfo] = StrictTarInfo) -> tarfile.TarFile:
    """A TarFile over a plain (uncompressed) stream or file. Raises BadTar."""
    try:
        return tarfile.TarFile(fileobj=stream, mode="r", tarinfo=info, encoding="utf-8", errors="surrogateescape")
    except tarfile.TarError as error:
        raise BadTar(f"{error}: there is no tar header in it") from None
    except (ValueError, OverflowError) as error:  # the first member is read already
        raise BadTar(f"a header cannot be read: {error}") from None


def next_member(tar: tarfile.TarFile) -> tarfile.TarInfo | None:
    """The next member, or None after the last. Nothing is remembered of it. Raises BadTar."""
    try:
        member = tar.next()
    except tarfile.TarError as error:
        raise BadTar(str(error)) from None
    except (ValueError, OverflowError) as error:  # numbers in extended headers
        raise BadTar(f"a header cannot be read: {error}") from None
    tar.members.clear()  # type: ignore[attr-defined]  # a list of a million members is of no use here
    return member


def shown(name: str) -> str:
    """A name from the archive for a message: short, printable, in quotes."""
    return ascii(name if len(name) <= 100 else name[:97] + "...")

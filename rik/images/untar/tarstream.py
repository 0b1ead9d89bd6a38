"""The bytes of a tar, in blocks and pieces, from a stream that only goes forward. Standard library only."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

BLOCK = 512


class BadTar(Exception):
    """The stream is no tar that can be unpacked; the message says why, without naming the layer."""


class TarStream:
    """`pull()` gives the next bytes of the stream, as many as it likes, and b"" at the end only.

    `leap(n)` moves the source n bytes forward without reading, for sources that can; it may move beyond the end.
    """

    def __init__(self, pull: Callable[[], bytes], leap: Callable[[int], object] | None = None) -> None:
        self._pull = pull
        self._leap = leap
        self._bytes = b""
        self._view = memoryview(b"")
        self._used = 0  # of these
        self._passed = 0  # before these
        self._ended = False

    @property
    def position(self) -> int:
        return self._passed + self._used

    def block(self) -> bytes:
        """The next 512 bytes, b"" at the end; what is missing of the last block is taken for zeros."""
        start = self._used
        if len(self._bytes) - start >= BLOCK:
            self._used = start + BLOCK
            return self._bytes[start : start + BLOCK]
        data = self.read(BLOCK)
        return data + bytes(-len(data) % BLOCK)

    def piece(self, size: int) -> memoryview:
        """The next bytes, at least one and at most `size` of them, without a copy; nothing at the end only."""
        if self._used == len(self._bytes) and not self._fill():
            return self._view
        found = self._view[self._used : self._used + size]
        self._used += len(found)
        return found

    def read(self, size: int) -> bytes:
        """The next `size` bytes, fewer only at the end."""
        parts = []
        while size > 0 and (part := self.piece(size)):
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def skip(self, size: int) -> bool:
        """Passes over `size` bytes; False when the stream ends before (which a leap does not notice)."""
        while size > 0:
            if self._used == len(self._bytes) and self._leap is not None:
                self._leap(size)
                self._passed += size
                return True
            part = self.piece(size)
            if not part:
                return False
            size -= len(part)
        return True

    def finish(self) -> None:
        """Reads what follows the end of the archive, so that all of the stream has been seen."""
        while self._fill():
            pass

    def _fill(self) -> bool:
        if self._ended:
            return False
        self._passed += len(self._bytes)
        self._bytes, self._used = self._pull(), 0
        self._view = memoryview(self._bytes)
        self._ended = not self._bytes
        return not self._ended


def shown(name: str) -> str:
    """A name from the archive for a message: short, printable, in quotes."""
    return ascii(name if len(name) <= 100 else name[:97] + "...")

"""The headers of a tar that nobody vouches for: V7, ustar, pax (POSIX.1-2001), GNU and star.

Own code, because layers have tens of thousands of members, of which Python's tarfile reads about 10,000 a second, and
because tarfile is too lenient: it ends silently at a damaged header in the middle, reads an extended header into memory
whatever its size, and loops for ever over negative sizes. Here these are errors. What sloppy writers do is accepted:
the padding at the very end may be missing, and one block of zeros ends the archive. Formats: pax(1) "pax Interchange
Format"; GNU tar's manual, "Basic Tar Format" and "Storing Sparse Files". Standard library only.
"""

from __future__ import annotations

import zlib

from rik.images.untar.fields import bounded_time, decimal_of, number_of, octal_of, size_of, text_of, time_of
from rik.images.untar.sparse import old_gnu_map, sparse_map
from rik.images.untar.tarstream import BLOCK, BadTar, TarStream, shown

REGULAR, HARD_LINK, SYMBOLIC_LINK = b"0", b"1", b"2"
CHARACTER_DEVICE, BLOCK_DEVICE, DIRECTORY, FIFO = b"3", b"4", b"5", b"6"
GNU_SPARSE = b"S"

MAX_EXTENDED_BYTES = 1 << 20  # of all that precedes one member to extend its header
_MAX_LENGTH_DIGITS = 8  # of a record in an extended header

_LOCAL, _SOLARIS, _GLOBAL = b"x", b"X", b"g"
_LONG_NAME, _LONG_LINK = b"L", b"K"
_EXTENSIONS = frozenset((_LOCAL, _SOLARIS, _GLOBAL, _LONG_NAME, _LONG_LINK))
_ALSO_REGULAR = frozenset((b"\0", b"7"))  # V7's, and contiguous files
_WITHOUT_DATA = frozenset((HARD_LINK, SYMBOLIC_LINK, CHARACTER_DEVICE, BLOCK_DEVICE, DIRECTORY, FIFO))
_XATTR = b"SCHILY.xattr."  # how pax headers carry extended attributes (star, GNU tar, Go)
_KEPT_OF_GLOBAL = frozenset((b"path", b"linkpath", b"size", b"uid", b"gid", b"mtime"))
_ZEROS = bytes(BLOCK)

Records = dict[bytes, bytes]


class Member:
    """One member. `size` is that of the file, `stored` how many bytes of it are in the archive, from `offset` on;
    `pieces` where they belong in a sparse file, as (start, size), else None. Names that are no UTF-8 hold surrogates.
    """

    __slots__ = (
        "gid", "kind", "linkname", "major", "minor", "mode", "mtime_ns", "name", "offset", "pieces", "size", "stored",
        "uid", "xattrs",
    )  # fmt: skip

    def __init__(self, kind: bytes, name: str, linkname: str) -> None:
        self.kind = kind
        self.name = name
        self.linkname = linkname
        self.mode = self.uid = self.gid = self.mtime_ns = self.major = self.minor = 0
        self.size = self.stored = self.offset = 0
        self.pieces: list[tuple[int, int]] | None = None
        self.xattrs: list[tuple[str, bytes]] = []


class Members:
    """Reads one member after the other; of its data, what the caller has not read is passed over."""

    def __init__(self, stream: TarStream, max_extended_bytes: int = MAX_EXTENDED_BYTES) -> None:
        self._stream = stream
        self._max_extended_bytes = max_extended_bytes
        self._globals: Records = {}
        self._last: Member | None = None
        self._numbers: dict[bytes, int] = {}

    def next(self) -> Member | None:
        """The next member, or None after the last. Raises BadTar."""
        if self._last is not None:
            self._pass(self._last)
        records: Records = {}
        offsets: list[bytes] = []
        long: dict[bytes, str] = {}
        budget = self._max_extended_bytes
        extended = False
        while True:
            at = self._stream.position
            header = self._stream.block()
            if not header or header == _ZEROS:
                if extended:
                    raise BadTar(f"an extended header is followed by nothing at byte {at:,}")
                if not header and not at:
                    raise BadTar("it is empty: there is no tar header in it")
                return None
            try:
                kind, size = self._checked(header)
                if kind not in _EXTENSIONS:
                    self._last = self._member(header, kind, size, {**self._globals, **records}, offsets, long)
                    return self._last
                extended = True
            except ValueError as error:
                raise BadTar(f"{error} at byte {at:,}" if at else f"{error}: there is no tar header in it") from None
            if size > self._max_extended_bytes:
                raise BadTar(f"an extended header of {size:,} bytes; at most {self._max_extended_bytes:,} are read")
            budget -= BLOCK + size
            if budget < -BLOCK:
                raise BadTar("extended headers follow each other without end")
            data = self._stream.read(size)
            if len(data) < size:
                raise BadTar(f"it ends in the middle of an extended header at byte {self._stream.position:,}")
            self._stream.skip(-size % BLOCK)
            if kind in (_LONG_NAME, _LONG_LINK):
                long[kind] = text_of(data)
            elif kind == _GLOBAL:
                found, _ = _records(data, at)
                self._globals |= {key: value for key, value in found.items() if key in _KEPT_OF_GLOBAL}
            else:
                records, offsets = _records(data, at)

    def _pass(self, last: Member) -> None:
        """To the next header."""
        left = last.offset + last.stored - self._stream.position
        if left < 0:
            raise BadTar(f"a header points back from byte {self._stream.position:,}")
        if left and not self._stream.skip(left):
            raise BadTar(f"it ends in the middle of {shown(last.name)}")
        if padding := -last.stored % BLOCK:
            self._stream.skip(padding)

    def _checked(self, header: bytes) -> tuple[bytes, int]:
        """Kind and size of a header whose checksum is right. Raises ValueError."""
        stated = octal_of(header[148:156])
        # Adler-32's lower half is one and the sum of the bytes, modulo 65521: of 256 bytes it is the sum itself.
        both = (zlib.adler32(header[:256]) & 0xFFFF) + (zlib.adler32(header[256:]) & 0xFFFF) - 2
        own = sum(header[148:156])
        found = both - own + 8 * ord(" ")
        if found != stated:
            # Old writers have added up signed bytes.
            negative = sum(byte >= 128 for byte in header[:148] + header[156:])
            if found - 256 * negative != stated:
                raise ValueError("bad checksum")
        return header[156:157], size_of(number_of(header[124:136]))

    def _member(
        self, header: bytes, kind: bytes, size: int, records: Records, offsets: list[bytes], long: dict[bytes, str]
    ) -> Member:
        name = long.get(_LONG_NAME)
        if name is None:
            name = text_of(header[:100])
            # GNU's headers have other things where ustar's have the first part of a long name, star's its end.
            if header[257:263] == b"ustar\0" and header[345]:
                prefix = header[345:476] if header[508:512] == b"tar\0" else header[345:500]
                name = f"{text_of(prefix)}/{name}"
        linkname = long.get(_LONG_LINK)
        if linkname is None:
            linkname = text_of(header[157:257]) if header[157] else ""
        member = Member(kind, name, linkname)
        member.mode = self._repeated(header[100:108])
        member.uid = self._repeated(header[108:116])
        member.gid = self._repeated(header[116:124])
        member.mtime_ns = bounded_time(number_of(header[136:148]) * 1_000_000_000)
        if records:
            size = _extend(member, size, records)
        if kind in _ALSO_REGULAR or kind == GNU_SPARSE:
            member.kind = REGULAR
        if kind == b"\0" and member.name.endswith("/"):  # V7 has no directories
            member.kind = DIRECTORY
        if kind in (CHARACTER_DEVICE, BLOCK_DEVICE):
            member.major, member.minor = number_of(header[329:337]), number_of(header[337:345])
        if member.kind not in _WITHOUT_DATA:
            member.size = member.stored = size
        if kind == GNU_SPARSE:
            old_gnu_map(member, header, self._stream)
        member.offset = self._stream.position
        if member.kind == REGULAR and any(key.startswith(b"GNU.sparse.") for key in records):
            sparse_map(member, records, offsets, self._stream)
        return member

    def _repeated(self, field: bytes) -> int:
        """A number of which there are few different ones."""
        value = self._numbers.get(field)
        if value is None:
            if len(self._numbers) > 1000:
                self._numbers.clear()
            value = self._numbers[field] = number_of(field)
        return value


def _extend(member: Member, size: int, records: Records) -> int:
    """What an extended header says instead of the header; returns the size. Raises ValueError."""
    for key, value in records.items():
        if key == b"mtime":
            member.mtime_ns = time_of(value)
        elif key == b"path":
            member.name = value.decode("utf-8", "surrogateescape")
        elif key == b"linkpath":
            member.linkname = value.decode("utf-8", "surrogateescape")
        elif key == b"size":
            size = size_of(decimal_of(value))
        elif key == b"uid":
            member.uid = decimal_of(value)
        elif key == b"gid":
            member.gid = decimal_of(value)
        elif key.startswith(_XATTR):
            member.xattrs.append((key[len(_XATTR) :].decode("utf-8", "surrogateescape"), value))
    return size


def _records(data: bytes, at: int) -> tuple[Records, list[bytes]]:
    """The records of an extended header ("%d %s=%s\\n": the record's length, keyword, value), and those which may come
    several times: the places in a sparse file of GNU's version 0.0. Raises BadTar."""
    found: Records = {}
    places: list[bytes] = []
    start, end = 0, len(data)
    while start < end:
        space = data.find(b" ", start, start + _MAX_LENGTH_DIGITS + 1)
        digits = data[start:space]
        stop = start + int(digits) if space > 0 and digits.isdigit() else 0
        equals = data.find(b"=", space + 1, stop - 1)
        if not space + 1 < equals < stop <= end or data[stop - 1] != 0x0A:
            raise BadTar(f"the extended header at byte {at:,} is damaged")
        key, value = data[space + 1 : equals], data[equals + 1 : stop - 1]
        if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
            places.append(value)
        elif value or key.startswith(_XATTR):
            found[key] = value
        start = stop
    return found, places

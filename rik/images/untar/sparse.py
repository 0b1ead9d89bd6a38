"""Where the stored bytes of a sparse file belong: GNU tar's four ways to say it. All raises BadTar, or
ValueError for numbers that are none. Standard library only."""

from __future__ import annotations

from rik.images.untar.fields import decimal_of, number_of, size_of
from rik.images.untar.tarstream import BLOCK, BadTar, TarStream, shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from rik.images.untar.members import Member

_MAX_MAP_BYTES = 8 << 20  # about 300,000 pieces
_FIRST_PLACES = range(386, 482, 24)  # in a header of the oldest way
_MORE_PLACES = range(0, 504, 24)  # in a block that follows it


def old_gnu_map(member: Member, header: bytes, stream: TarStream) -> None:
    """The oldest: four places in the header itself, more in blocks before the data."""
    places = _places(header, _FIRST_PLACES)
    more, seen = header[482], 0
    while more:
        block = stream.block()
        seen += BLOCK
        if not block or seen > _MAX_MAP_BYTES:
            raise BadTar(f"the map of the sparse file {shown(member.name)} does not end")
        places += _places(block, _MORE_PLACES)
        more = block[504]
    _set(member, places, size_of(number_of(header[483:495])))


def sparse_map(member: Member, records: dict[bytes, bytes], repeated: Sequence[bytes], stream: TarStream) -> None:
    """Versions 0.0, 0.1 and 1.0, in extended headers. The last has its map before the data, from which `stored` is
    reduced."""
    size = records.get(b"GNU.sparse.realsize", records.get(b"GNU.sparse.size"))
    if name := records.get(b"GNU.sparse.name"):
        member.name = name.decode("utf-8", "surrogateescape")
    if b"GNU.sparse.map" in records:
        numbers: Sequence[bytes] = records[b"GNU.sparse.map"].split(b",")
    elif records.get(b"GNU.sparse.major") == b"1":
        numbers = _leading_numbers(member, stream)
    elif repeated or b"GNU.sparse.numblocks" in records:
        numbers = repeated
    else:
        return
    values = [decimal_of(number) for number in numbers]
    if size is None or len(values) % 2:
        raise BadTar(f"the map of the sparse file {shown(member.name)} is incomplete")
    _set(member, list(zip(values[::2], values[1::2], strict=True)), size_of(decimal_of(size)))


def _leading_numbers(member: Member, stream: TarStream) -> list[bytes]:
    """How many pieces there are, then their starts and sizes, a number a line, to the end of a block."""
    found: list[bytes] = []
    rest, wanted = b"", 1
    while len(found) < wanted:
        block = stream.block()
        member.stored -= BLOCK
        member.offset += BLOCK
        if not block or member.stored < 0 or member.offset > stream.position:
            raise BadTar(f"the map of the sparse file {shown(member.name)} does not end")
        *lines, rest = (rest + block).split(b"\n")
        found += lines
        if wanted == 1 and found:
            wanted += 2 * decimal_of(found[0])
        if len(rest) > BLOCK or wanted * 2 > _MAX_MAP_BYTES:
            raise BadTar(f"the map of the sparse file {shown(member.name)} is too long")
    return found[1:wanted]


def _set(member: Member, places: list[tuple[int, int]], size: int) -> None:
    end = stored = 0
    for start, length in places:
        if start < end or length < 0 or start + length > size:
            raise BadTar(f"the map of the sparse file {shown(member.name)} points out of it, or back")
        end = start + length
        stored += length
    if stored > member.stored:
        raise BadTar(f"the map of the sparse file {shown(member.name)} has more bytes than are stored")
    member.pieces, member.size = places, size


def _places(block: bytes, starts: range) -> list[tuple[int, int]]:
    found = []
    for start in starts:
        if not block[start]:
            break
        found.append((number_of(block[start : start + 12]), number_of(block[start + 12 : start + 24])))
    return found

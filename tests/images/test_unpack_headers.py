"""Tar headers: what other programs write is read as they meant it, and as Python's tarfile reads it."""

from __future__ import annotations

import io
import os
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from rik.images.untar.members import HARD_LINK, REGULAR, SYMBOLIC_LINK, Member, Members
from rik.images.untar.tarstream import BadTar, TarStream
from tests.conftest import Require
from tests.images.build import Entry, entry, file, folder, hardlink, symlink, tar

KINDS = {b"\0": REGULAR, b"7": REGULAR, b"S": REGULAR}
NAMES = ("a", "d/e/f", "n" * 100, "n" * 99 + "/x", "p" * 150 + "/" + "q" * 90, "é" * 60 + "/☃", "x" * 255 + "/y" * 90)


def read(data: bytes, step: int = 1 << 20) -> list[tuple[Member, bytes]]:
    """All members with their stored bytes, from a stream that comes in pieces of `step` bytes."""
    pieces = iter([*(data[start : start + step] for start in range(0, len(data), step)), b""])
    stream = TarStream(lambda: next(pieces))
    members = Members(stream)
    found = []
    while (member := members.next()) is not None:
        found.append((member, stream.read(member.stored)))
    stream.finish()
    return found


def compare(data: bytes, step: int = 1 << 20) -> int:
    """Compares every field with tarfile's; returns how many members there were."""
    found = read(data, step)
    with tarfile.open(fileobj=io.BytesIO(data), encoding="utf-8", errors="surrogateescape") as archive:
        expected = archive.getmembers()
        assert len(found) == len(expected)
        for (member, content), other in zip(found, expected, strict=True):
            assert member.name.rstrip("/") == other.name
            assert member.kind == KINDS.get(other.type, other.type)
            assert (member.mode, member.uid, member.gid) == (other.mode, other.uid, other.gid)
            assert abs(member.mtime_ns / 1e9 - other.mtime) < 0.001
            if member.kind in (HARD_LINK, SYMBOLIC_LINK):
                assert member.linkname == other.linkname
            if other.isreg():
                assert member.size == other.size
                inside = archive.extractfile(other)
                assert inside is not None and (other.issparse() or content == inside.read())
            if other.isdev() and not other.isfifo():
                assert (member.major, member.minor) == (other.devmajor, other.devminor)
    return len(found)


def some_entries() -> list[Entry]:
    made = [
        folder("d", mode=0o1777),
        entry("null", tarfile.CHRTYPE, devmajor=1, devminor=3),
        entry("sda", tarfile.BLKTYPE, devmajor=8, devminor=255),
        entry("pipe", tarfile.FIFOTYPE),
        entry("contiguous", tarfile.CONTTYPE, b"c"),
        file("owned", uid=1000, gid=65534),
    ]
    for name in NAMES:
        made += [file(name, name.encode() * 7), symlink(f"{name}.s", name), hardlink(f"{name}.h", name)]
    return made


@pytest.mark.parametrize("step", [1, 511, 512, 1000, 1 << 20])
@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_as_tarfile_reads_it(form: int, step: int) -> None:
    """Every kind of member in every format of Python's, however the stream is cut into pieces."""
    made = some_entries()
    if form == tarfile.USTAR_FORMAT:  # which has no long names
        made = [(info, data) for info, data in made if len(os.fsencode(info.name)) < 100 and len(info.linkname) < 100]
    else:
        made += [
            file("large ids", uid=2**32 - 2, gid=3_000_000),
            file("before 1970", mtime=-5),
            file("2106", mtime=1 << 32),
        ]
    assert compare(tar(*made, form=form), step) == len(made)


def write_sparse(path: Path) -> None:
    with path.open("wb") as sparse:
        for number in range(60):  # more pieces than one header has room for
            sparse.seek(number * 100_000)
            sparse.write(b"%08d" % number * 1000)
        sparse.truncate(9_000_000)


@pytest.mark.parametrize("form", ["v7", "oldgnu", "gnu", "ustar", "posix"])
async def test_as_gnu_tar_writes_it(form: str, tmp_path: Path, require: Require) -> None:
    """GNU tar's formats, with files of this host: names, links, times, and sparse files where there are any."""
    require("tar", reason="it makes the archives")
    root = tmp_path / "tree"
    for number in range(20):
        (root / f"d{number}").mkdir(parents=True)
        (root / f"d{number}" / ("n" * number * 4 + "f")).write_bytes(random.Random(number).randbytes(number * 200))
        (root / f"l{number}").symlink_to("t" * number * 4 + "x")
    (root / "hard").hardlink_to(root / "d3" / ("n" * 12 + "f"))
    write_sparse(root / "sparse")
    as_sparse = [] if form in ("v7", "ustar") else ["--sparse"]
    made = tmp_path / "made.tar"
    await trio.run_process(["tar", *as_sparse, f"--format={form}", "-C", str(root), "-cf", str(made), "."])
    assert compare(made.read_bytes()) == 1 + 20 * 3 + 2
    member, stored = next(pair for pair in read(made.read_bytes()) if pair[0].name.endswith("sparse"))
    assert member.size == 9_000_000
    if as_sparse:
        assert member.pieces is not None and len(stored) < 1_000_000
        content, position = bytearray(member.size), 0
        for start, size in member.pieces:
            content[start : start + size] = stored[position : position + size]
            position += size
        assert bytes(content) == (root / "sparse").read_bytes()


def test_global_headers() -> None:
    """What a global header says holds for all that follow, unless a member says otherwise; comments are nothing."""
    buffer = io.BytesIO()
    headers = {"mtime": "5.5", "uid": "77", "comment": "by git"}
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT, pax_headers=headers) as archive:
        for info, _ in (file("a"), file("b", pax_headers={"uid": "78"})):
            archive.addfile(info)
    members = [member for member, _ in read(buffer.getvalue())]
    assert [(member.name, member.uid, member.mtime_ns) for member in members] == [
        ("a", 77, 5_500_000_000),
        ("b", 78, 5_500_000_000),
    ]


def signed_checksum(header: bytes) -> bytes:
    """As some old programs add up: bytes from -128 to 127."""
    blank = header[:148] + b" " * 8 + header[156:]
    total = sum(byte - 256 if byte >= 128 else byte for byte in blank)
    return header[:148] + b"%06o\0 " % total + header[156:]


def star_header(header: bytes) -> bytes:
    """As star writes it: times of access and change where ustar has the end of a long name's first part."""
    changed = header[:345] + b"first".ljust(131, b"\0") + b"14000000000 14000000000 " + header[500:508] + b"tar\0"
    blank = changed[:148] + b" " * 8 + changed[156:]
    return changed[:148] + b"%06o\0 " % sum(blank) + changed[156:]


def gnu_incremental(header: bytes) -> bytes:
    """As `tar --format=gnu --incremental` writes it: times where ustar has the first part of a long name."""
    changed = header[:345] + b"14000000000\0" * 2 + header[369:]
    blank = changed[:148] + b" " * 8 + changed[156:]
    return changed[:148] + b"%06o\0 " % sum(blank) + changed[156:]


SPELLINGS: dict[str, tuple[Callable[[bytes], bytes], int, str]] = {
    "signed checksum": (signed_checksum, tarfile.USTAR_FORMAT, "é"),
    "star": (star_header, tarfile.USTAR_FORMAT, "first/é"),
    "gnu incremental": (gnu_incremental, tarfile.GNU_FORMAT, "é"),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_other_spellings(name: str) -> None:
    """What other programs have written is understood."""
    change, form, expected = SPELLINGS[name]
    data = tar(file("é", b"x"), form=form)
    (member, content), *rest = read(change(data[:512]) + data[512:])
    assert (member.name, content, rest) == (expected, b"x", [])


def test_damage_is_noticed() -> None:
    """Whatever single byte of a header is another one, the header is refused or the archive ends there."""
    data = tar(file("a", b"x" * 600), form=tarfile.USTAR_FORMAT)
    for at in sorted({*range(512)} - {155}):  # that one follows the end of the checksum, and is not added up
        damaged = data[:at] + bytes([data[at] ^ 0x15]) + data[at + 1 :]
        with pytest.raises(BadTar):
            read(damaged)


def test_garbage_never_escapes() -> None:
    """Headers with random damage and a right checksum are read or refused, and nothing else happens."""
    generator = random.Random(7)
    data = tar(*some_entries(), form=tarfile.PAX_FORMAT)
    outcomes = {"read": 0, "refused": 0}
    for _ in range(3000):
        broken = bytearray(data[: 512 * generator.randrange(2, 40)])
        for _ in range(generator.randrange(1, 9)):
            broken[generator.randrange(len(broken))] = generator.choice((0, 0x20, 0x30, 0x37, 0x80, 0xFF, 0x53, 0x78))
        for block in range(0, len(broken), 512):
            header = broken[block : block + 512]
            if header[257:262] == b"ustar":
                header[148:156] = b" " * 8
                broken[block + 148 : block + 156] = b"%06o\0 " % sum(header)
        try:
            read(bytes(broken))
            outcomes["read"] += 1
        except BadTar as error:
            assert str(error).isprintable()
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 100

"""One layer onto the disk, by the real child: what is kept, what is contained, what is refused."""

from __future__ import annotations

import gzip
import io
import os
import stat
import tarfile
import zlib
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest
import trio
import zstandard

from rik.images.confined import Owners
from rik.images.errors import ImageError, ImageInvalid
from rik.images.unpack import Limits, Unpacked, remove_tree, unpack
from rik.linux.idmap import IdMap
from tests.conftest import Require
from tests.images.build import WHEN, digest, entry, file, folder, hardlink, symlink, tar, whiteout

KIB = 1024
MIB = 1 << 20


class Layers:
    """Layers unpacked one on top of the other below `path`; `owners` as the fixture gives them."""

    def __init__(self, path: Path, owners: Owners) -> None:
        self._path = path
        self._owners = owners
        self.made: list[Path] = []

    async def add(self, data: bytes, limits: Limits | None = None) -> tuple[Path, Unpacked]:
        """Unpacks `data` on top of the others; returns where, and what was said of it."""
        target = self._path / str(len(self.made))
        target.mkdir()
        lower = list(reversed(self.made))
        with trio.fail_after(60):
            result = await unpack(pieces(data), target, lower, self._owners, limits or Limits(), "the layer x")
        self.made.append(target)
        return target, result


async def pieces(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 100_000):
        yield data[start : start + 100_000]


@pytest.fixture
def layers(workspace: Path, owners: Owners) -> Layers:
    return Layers(workspace, owners)


@pytest.fixture
def has_many_ids(owners: Owners) -> bool:
    return owners.true or (isinstance(owners.idmap, IdMap) and owners.idmap.mode != "single")


def owner_inside(path: Path, owners: Owners) -> tuple[int | None, int | None]:
    """Owner and group of a file as a pod sees them."""
    status = path.lstat()
    if owners.true:
        return status.st_uid, status.st_gid
    assert isinstance(owners.idmap, IdMap)
    uids = [i for i in range(2000) if owners.idmap.outside_uid(i) == status.st_uid]
    gids = [i for i in range(2000) if owners.idmap.outside_gid(i) == status.st_gid]
    return next(iter(uids), None), next(iter(gids), None)


def is_whiteout(path: Path) -> bool:
    status = path.lstat()
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def is_opaque(path: Path) -> bool:
    return any(name.endswith(".overlay.opaque") for name in os.listxattr(path))


def tree(path: Path) -> set[str]:
    return {str(found.relative_to(path)) for found in path.rglob("*")}


async def test_files_as_they_were(layers: Layers, owners: Owners, has_many_ids: bool) -> None:
    """Contents, modes (set-uid too), times to the nanosecond, links and owners are those of the layer."""
    data = tar(
        folder("./", mode=0o755),
        folder("bin"),
        file("bin/su", b"su", mode=0o4755),
        file("bin/app", b"x" * 3_000_000, mode=0o750, uid=1000, gid=1001),
        symlink("bin/sh", "../bin/su"),
        hardlink("bin/other", "bin/app"),
        folder("tmp", mode=0o1777),
        entry("pipe", tarfile.FIFOTYPE, mode=0o600),
        file("exact", pax_headers={"mtime": "1234567890.123456789"}),
        file("früh ☃", b"?"),
    )
    root, result = await layers.add(data)
    assert result.diff_id == digest(data)
    assert result.bytes == 3_000_003 and result.entries == 10
    assert (root / "bin/app").stat().st_size == 3_000_000
    assert stat.S_IMODE((root / "bin/su").stat().st_mode) == 0o4755
    assert stat.S_IMODE((root / "bin/app").stat().st_mode) == 0o750
    assert stat.S_IMODE((root / "tmp").stat().st_mode) == 0o1777
    assert os.readlink(root / "bin/sh") == "../bin/su"
    assert (root / "bin/other").stat().st_ino == (root / "bin/app").stat().st_ino
    assert stat.S_ISFIFO((root / "pipe").stat().st_mode)
    assert (root / "exact").stat().st_mtime_ns == 1234567890_123456789
    assert (root / "bin").stat().st_mtime == WHEN and (root / "bin/sh").lstat().st_mtime == WHEN
    assert (root / "früh ☃").read_bytes() == b"?"
    assert owner_inside(root / "bin/su", owners) == (0, 0)
    if has_many_ids:
        assert owner_inside(root / "bin/app", owners) == (1000, 1001)
        assert "owners" not in result.dropped
    else:
        assert owner_inside(root / "bin/app", owners) == (0, 0)
        assert result.dropped["owners"] == 1


async def test_foreign_owners_lend_no_rights(layers: Layers, owners: Owners) -> None:
    """A set-uid file whose owner does not exist here loses the bit with the owner, and keeps the rest of its mode."""
    root, result = await layers.add(tar(file("tool", b"x", uid=2**31, gid=2**31, mode=0o6755)))
    mode = stat.S_IMODE((root / "tool").stat().st_mode)
    assert (mode, result.dropped) == ((0o6755, {}) if owners.true else (0o755, {"owners": 1}))


async def test_names_in_no_encoding(layers: Layers) -> None:
    """Names are bytes: those that are no UTF-8 are kept, in names, links and attributes."""
    odd = b"caf\xe9".decode("utf-8", "surrogateescape")
    root, _ = await layers.add(tar(file(odd, b"x"), symlink("l", odd), form=tarfile.GNU_FORMAT))
    assert os.listdir(os.fsencode(root)).count(b"caf\xe9") == 1
    assert os.readlink(os.fsencode(root / "l")) == b"caf\xe9"


@pytest.mark.parametrize("how", ["plain", "gzip", "members", "zstd", "unpadded", "half-padded"])
async def test_compressions_and_endings(layers: Layers, how: str) -> None:
    """gzip (also in several members, with padding), zstd and plain layers; the padding at the end may be missing."""
    plain = tar(folder("d"), file("d/f", b"hello" * 100_000))
    data = {
        "plain": plain,
        "gzip": gzip.compress(plain),
        "members": gzip.compress(plain[:1000]) + gzip.compress(plain[1000:]) + bytes(512),
        "zstd": zstandard.compress(plain[:5000]) + zstandard.compress(plain[5000:]),
        "unpadded": plain[: 3 * 512 + 500_000],
        "half-padded": plain[: 3 * 512 + 500_000 + 100],
    }[how]
    unpadded = {"unpadded": data, "half-padded": data}.get(how, plain)
    root, result = await layers.add(data)
    assert (root / "d/f").read_bytes() == b"hello" * 100_000
    assert result.diff_id == digest(unpadded)


async def test_whiteouts(layers: Layers) -> None:
    """What a layer deletes becomes a whiteout; what it deletes and makes anew does not show what was there before."""
    await layers.add(tar(folder("a"), file("a/x"), folder("b"), file("b/y"), folder("c"), file("c/z"), file("d")))
    root, _ = await layers.add(
        tar(
            folder("a"),
            whiteout("a/x"),
            whiteout("b"),
            folder("b"),
            file("b/new"),
            folder("c"),
            file("c/new"),
            whiteout("c"),
            whiteout("d"),
            file("d", b"again"),
            whiteout("never-was"),
        )
    )
    assert is_whiteout(root / "a/x") and not is_opaque(root / "a")
    assert is_opaque(root / "b") and tree(root / "b") == {"new"}
    assert is_opaque(root / "c") and tree(root / "c") == {"new"}
    assert (root / "d").read_bytes() == b"again"
    assert "never-was" not in tree(root)


async def test_opaque_directories(layers: Layers, owners: Owners) -> None:
    """An opaque directory hides what lies below it, for overlays mounted by root and by others."""
    await layers.add(tar(folder("a"), file("a/x"), folder("a/deep", mode=0o700), file("a/deep/y")))
    root, _ = await layers.add(tar(folder("a"), file("a/.wh..wh..opq"), file("a/deep/z"), file(".wh..wh.plnk/0.1")))
    names = os.listxattr(root / "a")
    assert "user.overlay.opaque" in names
    assert ("trusted.overlay.opaque" in names) == owners.true
    assert tree(root) == {"a", "a/deep", "a/deep/z"}
    assert stat.S_IMODE((root / "a/deep").stat().st_mode) == 0o755  # not as below, which is not seen


async def test_implicit_parents(layers: Layers, owners: Owners, has_many_ids: bool) -> None:
    """A directory that a layer only passes through keeps mode, owner and time of the layers below it."""
    await layers.add(tar(folder("home", mode=0o711), folder("home/me", mode=0o700, uid=1000, gid=1000)))
    await layers.add(tar(folder("srv")))
    root, _ = await layers.add(tar(file("home/me/notes"), file("fresh/one/two")))
    assert stat.S_IMODE((root / "home").stat().st_mode) == 0o711
    assert stat.S_IMODE((root / "home/me").lstat().st_mode) == 0o700
    assert (root / "home/me").lstat().st_mtime == WHEN
    assert stat.S_IMODE((root / "fresh/one").stat().st_mode) == 0o755
    if has_many_ids:
        assert owner_inside(root / "home/me", owners) == (1000, 1000)
    assert owner_inside(root / "fresh", owners) == (0, 0)


async def test_root_directory(layers: Layers) -> None:
    """The root is as the layer says, else as the layers below have it."""
    first, _ = await layers.add(tar(folder("./", mode=0o700), file("./a")))
    second, _ = await layers.add(tar(file("b")))
    third, _ = await layers.add(tar(folder(".", mode=0o751), file("c")))
    assert [stat.S_IMODE(root.stat().st_mode) for root in (first, second, third)] == [0o700, 0o700, 0o751]


async def test_parents_that_are_links_below(layers: Layers) -> None:
    """A name that passes through a symbolic link of a lower layer lands where the link leads, as in one merged tree."""
    await layers.add(tar(folder("usr"), folder("usr/lib"), symlink("lib", "usr/lib"), symlink("abs", "/usr/lib")))
    root, _ = await layers.add(tar(file("lib/one"), file("abs/two"), hardlink("abs/three", "lib/one")))
    assert tree(root) == {"usr", "usr/lib", "usr/lib/one", "usr/lib/two", "usr/lib/three"}


async def test_hard_link_to_a_lower_layer(layers: Layers, owners: Owners, has_many_ids: bool) -> None:
    """A hard link to a file of a lower layer brings that file up, as overlayfs does."""
    await layers.add(tar(file("data", b"d" * 5000, mode=0o4755, uid=7, gid=8), symlink("soft", "data")))
    root, _ = await layers.add(tar(hardlink("again", "data"), hardlink("soft2", "soft")))
    assert (root / "again").read_bytes() == b"d" * 5000
    assert (root / "again").stat().st_ino == (root / "data").stat().st_ino
    assert stat.S_IMODE((root / "again").stat().st_mode) == (0o4755 if has_many_ids else 0o755)
    assert os.readlink(root / "soft2") == "data"
    if has_many_ids:
        assert owner_inside(root / "data", owners) == (7, 8)


async def test_repeated_names(layers: Layers) -> None:
    """The last entry of a name wins, whatever was there."""
    root, _ = await layers.add(
        tar(
            file("f", b"1"),
            file("f", b"22"),
            folder("d"),
            file("d/inside"),
            file("d", b"now a file"),
            symlink("l", "/nowhere"),
            folder("l"),
            file("l/x"),
            folder("e", mode=0o700),
            file("e/kept"),
            folder("e", mode=0o711),
        )
    )
    assert (root / "f").read_bytes() == b"22" and (root / "d").read_bytes() == b"now a file"
    assert tree(root) == {"f", "d", "l", "l/x", "e", "e/kept"}
    assert stat.S_IMODE((root / "e").stat().st_mode) == 0o711


async def test_extended_attributes(layers: Layers, owners: Owners) -> None:
    """Attributes and file capabilities are kept; overlayfs's own and the host's labels are dropped and counted."""
    capability = bytes.fromhex("0100000200040000000000000000000000000000")
    attributes = {
        "user.note": "hello",
        "security.capability": capability.decode("utf-8", "surrogateescape"),
        "trusted.overlay.redirect": "/etc",
        "user.overlay.opaque": "y",
        "security.selinux": "x",
    }
    headers = {f"SCHILY.xattr.{name}": value for name, value in attributes.items()}
    root, result = await layers.add(tar(file("f", b"x", mode=0o755, pax_headers=headers)))
    assert os.getxattr(root / "f", "user.note") == b"hello"
    assert result.dropped["xattrs"] == 3
    assert set(os.listxattr(root / "f")) == {"user.note", "security.capability"}
    if owners.true:
        assert os.getxattr(root / "f", "security.capability") == capability


async def test_devices(layers: Layers, owners: Owners) -> None:
    """Devices are kept where they are allowed, else dropped and counted."""
    root, result = await layers.add(
        tar(
            entry("null", tarfile.CHRTYPE, devmajor=1, devminor=3), entry("sda", tarfile.BLKTYPE, devmajor=8), file("f")
        )
    )
    if owners.true:
        assert (root / "null").stat().st_rdev == os.makedev(1, 3)
    else:
        assert tree(root) == {"f"} and result.dropped == {"devices": 2}


def write_sparse(path: Path) -> None:
    with open(path, "wb") as sparse:
        sparse.write(b"begin")
        sparse.seek(50 * MIB)
        sparse.write(b"middle")
        sparse.truncate(90 * MIB)


async def test_sparse_files(layers: Layers, tmp_path: Path, require: Require) -> None:
    """A hole stays a hole, in all three ways that GNU tar writes them."""
    require("tar", reason="Python's tarfile writes no sparse files")
    write_sparse(tmp_path / "f")
    for form in ("gnu", "pax --sparse-version=0.1", "pax --sparse-version=1.0"):
        made = tmp_path / "f.tar"
        command = ["tar", "-cSf", str(made), *f"--format={form}".split(), "-C", str(tmp_path), "f"]
        await trio.run_process(command)
        assert made.stat().st_size < MIB
        root, _ = await layers.add(made.read_bytes())
        status = (root / "f").stat()
        assert status.st_size == 90 * MIB and status.st_blocks * 512 < MIB
        content = (root / "f").read_bytes()
        assert content[:6] == b"begin\0" and content[50 * MIB :][:8] == b"middle\0\0"


ESCAPES: dict[str, Sequence[tuple[tarfile.TarInfo, bytes]]] = {
    "dot dot that stays inside": [file("tmp/../escaped", b"!")],
    "absolute": [file("/escaped", b"!")],
    "absolute link as parent": [symlink("l", "/tmp"), file("l/escaped", b"!")],
    "relative link as parent": [symlink("l", "../../../../../../../tmp"), file("l/escaped", b"!")],
    "link to a link": [symlink("a", "b"), symlink("b", "/tmp"), file("a/escaped", b"!")],
    "link under a link": [symlink("a", "."), symlink("a/b", "../../tmp"), file("b/escaped", b"!")],
    "dot dot after a link": [folder("x"), symlink("x/l", "/tmp"), file("x/l/../escaped", b"!")],
    "file over a link": [symlink("l", "/tmp/escaped"), file("l", b"!")],
    "hard link to the host": [hardlink("l", "/etc/hostname")],
    "hard link by a link": [symlink("e", "/etc"), hardlink("l", "e/hostname")],
    "write through a hard link": [symlink("s", "/tmp/escaped"), hardlink("h", "s"), file("h", b"!")],
    "whiteout of the host": [symlink("t", "/tmp"), file("t/.wh.escaped")],
    "opaque host": [symlink("t", "/tmp"), file("t/.wh..wh..opq")],
    "mode through a link": [symlink("t", "/tmp/escaped"), folder("t", mode=0o777)],
}


@pytest.mark.parametrize("name", ESCAPES)
async def test_nothing_escapes(layers: Layers, name: str) -> None:
    """Whatever names and links a layer has, it changes and shows nothing outside of its directory."""
    outside = Path("/tmp/escaped")
    assert not outside.exists()
    before = os.stat("/tmp").st_mode, os.stat("/etc/hostname").st_nlink, os.listxattr("/tmp")
    try:
        await layers.add(tar(*ESCAPES[name]))
    except ImageInvalid as error:
        assert name.startswith("hard link"), error
    assert not os.path.lexists(outside)
    assert before == (os.stat("/tmp").st_mode, os.stat("/etc/hostname").st_nlink, os.listxattr("/tmp"))


def damaged(offset: int) -> Callable[[], bytes]:
    def make() -> bytes:
        data = bytearray(tar(file("a", b"a" * 600), file("b"), form=tarfile.USTAR_FORMAT))
        data[offset : offset + 8] = b"\xff" * 8
        return bytes(data)

    return make


def with_size(size: int) -> bytes:
    """A header whose size is written as GNU's base-256 number, and so may be anything."""
    header = bytearray(tar(file("a"), form=tarfile.GNU_FORMAT)[:512])
    header[124:136] = (b"\xff" if size < 0 else b"\x80") + size.to_bytes(11, "big", signed=True)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + bytes(1024)


def long_pax(size: int) -> bytes:
    return tar(file("a", pax_headers={"comment": "x" * size}))


INVALID: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "empty"),
    "no tar": (lambda: b"hello world" * 100, "invalid header"),
    "damaged header": (damaged(1024 + 512), "at byte"),
    "damaged gzip": (
        lambda: gzip.compress(tar(file("a", os.urandom(90_000))))[:50_000] + bytes(50_000),
        "data is damaged",
    ),
    "name that climbs out": (lambda: tar(file("../../escaped", b"!")), "the name '../../escaped' climbs out of the"),
    "name that climbs out in the end": (lambda: tar(file("a/../../b")), "the name 'a/../../b' climbs out"),
    "absolute name that climbs out": (lambda: tar(file("/../escaped")), "the name '/../escaped' climbs out"),
    "directory that climbs out": (lambda: tar(folder("a"), folder("a/../..")), "the name 'a/../../' climbs out"),
    "symbolic link placed outside": (lambda: tar(symlink("../l", "x")), "the name '../l' climbs out"),
    "hard link placed outside": (lambda: tar(file("a"), hardlink("../l", "a")), "the name '../l' climbs out"),
    "hard link that climbs out": (lambda: tar(hardlink("l", "../../etc/hostname")), "'../../etc/hostname' climbs out"),
    "whiteout that climbs out": (lambda: tar(file("../tmp/.wh.escaped")), "the name '../tmp/.wh.escaped' climbs out"),
    "opaque directory that climbs out": (lambda: tar(file("a/../../tmp/.wh..wh..opq")), "climbs out"),
    "cut gzip": (lambda: gzip.compress(tar(file("a", os.urandom(90_000))))[:-50], "ends too early"),
    "garbage after gzip": (lambda: gzip.compress(tar(file("a"))) + b"garbage", "data is damaged"),
    "cut zstd": (lambda: zstandard.compress(tar(file("a", os.urandom(900_000))))[:-5000], "ends in the middle of 'a'"),
    "cut file": (lambda: tar(file("a", b"a" * 5000))[:3000], "ends in the middle of 'a'"),
    "cut header": (lambda: tar(file("a"))[:120], "bad checksum"),
    "negative size": (lambda: with_size(-512), "size -512"),
    "monstrous size": (lambda: with_size(1 << 70), "size"),
    "long name": (lambda: tar(file("n" * 10_000)), "10,000 characters) cannot be a file's: File name too long"),
    "long path": (lambda: tar(file("n/" * 5000 + "f")), "cannot be a file's: File name too long"),
    "zero byte in a name": (lambda: tar(file("a", pax_headers={"path": "a\0b"})), "zero byte"),
    "huge extended header": (lambda: long_pax(2_000_000), "extended header of 2,0"),
    "hard link to nothing": (lambda: tar(hardlink("a", "b")), "leads to '/b', which is not there"),
    "hard link to a directory": (lambda: tar(folder("d"), hardlink("a", "d")), "which is no file"),
    "hard link into what it replaces": (lambda: tar(file("d/f"), hardlink("d", "d/f")), "that it leads into"),
    "hard link to itself": (lambda: tar(hardlink("a", "a")), "leads to '/a', which is not there"),
    "zero byte in a link": (lambda: tar(symlink("a", "b", pax_headers={"linkpath": "b\0c"})), "null byte"),
    "link to nothing": (lambda: tar(symlink("a", "")), "the symbolic link 'a' leads nowhere"),
    "file as a directory": (lambda: tar(file("a"), file("a/b")), "which is no directory"),
    "links in a circle": (lambda: tar(symlink("a", "b"), symlink("b", "a"), file("a/x")), "too many symbolic links"),
    "whiteout of nothing": (lambda: tar(file("d/.wh.")), "names nothing"),
    "whiteout of the parent": (lambda: tar(file("d/.wh...")), "names nothing"),
    "impossible owner": (lambda: tar(file("a", pax_headers={"uid": "99999999999"})), "has the owner"),
}


@pytest.mark.parametrize("name", INVALID)
async def test_invalid_layers(layers: Layers, name: str) -> None:
    """A layer that is damaged or nonsense is refused, in one short printable line that says why."""
    make, words = INVALID[name]
    with pytest.raises(ImageInvalid) as caught:
        await layers.add(make())
    message = str(caught.value)
    assert message.startswith("the layer x cannot be unpacked: ") and words in message
    assert len(message) < 400 and message.isprintable()


def header_of(name: str, size: int) -> bytes:
    """The header alone of a file of that size."""
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT)


def bomb(compressor: Callable[[bytes], bytes]) -> bytes:
    """150 MiB of zeros: in a tar as one file."""
    return compressor(header_of("zeros", 150 * MIB) + bytes(150 * MIB))


def many(count: int) -> bytes:
    return gzip.compress(b"".join(file(f"f{index}")[0].tobuf() for index in range(count)), 1)


def hole(size: int) -> bytes:
    """A file of GNU's sparse format that is one hole."""
    info = tarfile.TarInfo("hole")
    info.size = 0
    buffer = io.BytesIO()
    numbers = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.map": f"{size},0"}
    info.pax_headers = {**numbers, "GNU.sparse.size": str(size), "GNU.sparse.numblocks": "1"}
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(info)
    return buffer.getvalue()


RATIO_OPTIONS = "`--image-max-ratio` or `--image-ratio-after`"
EXCESSIVE: dict[str, tuple[Callable[[], bytes], Limits, str]] = {
    "gzip bomb": (lambda: bomb(lambda data: gzip.compress(data, 6)), Limits(), "more than 200 times its size"),
    "zstd bomb": (lambda: bomb(zstandard.compress), Limits(), "more than 200 times its size"),
    "gzip of nothing but zeros": (lambda: zlib_zeros(400 * MIB), Limits(), "more than 200 times its size"),
    "10 GB hole": (lambda: hole(10_000_000_000), Limits(), "more than 200 times its size"),
    "30 GB hole": (lambda: hole(30_000_000_000), Limits(max_ratio=10**9), "larger than 20 GB when"),
    "large files": (lambda: tar(file("a", bytes(5000))), Limits(max_bytes=4000), "larger than 4 kB when"),
    "many files": (lambda: many(3000), Limits(max_entries=2000), "more than 2,000 files"),
}


def zlib_zeros(size: int) -> bytes:
    compressor = zlib.compressobj(9, zlib.DEFLATED, 31)
    first = file("a")[0].tobuf() + bytes(1024)
    parts = [compressor.compress(first)] + [compressor.compress(bytes(MIB)) for _ in range(size // MIB)]
    return b"".join(parts) + compressor.flush()


@pytest.mark.parametrize("name", EXCESSIVE)
async def test_limits(layers: Layers, name: str) -> None:
    """A layer that is too large, too many or too good to be true is refused with the limit that it broke, and with the
    option that sets it."""
    make, limits, words = EXCESSIVE[name]
    with pytest.raises(ImageInvalid, match=words) as caught:
        await layers.add(make(), limits)
    options = {"larger": "`--image-max-size`", "files": "`--image-max-files`", "times": RATIO_OPTIONS}
    assert next(option for word, option in options.items() if word in words) in caught.value.next_step


async def test_names_that_stay_inside(layers: Layers) -> None:
    """`..` within the image and absolute names, which some builders write, lead to where they say below the root."""
    root, _ = await layers.add(tar(folder("a"), file("a/../b", b"b"), file("/c", b"c"), hardlink("d", "/a/../c")))
    assert sorted(os.listdir(root)) == ["a", "b", "c", "d"]
    assert (root / "b").read_bytes() == b"b" and (root / "d").read_bytes() == b"c"


async def test_limits_just_kept(layers: Layers) -> None:
    """What is within the limits is unpacked."""
    _, result = await layers.add(many(2000), Limits(max_entries=2000))
    assert result.entries == 2000
    await layers.add(tar(file("a", bytes(4000))), Limits(max_bytes=4000))


async def test_deadline(workspace: Path, owners: Owners) -> None:
    """Unpacking that does not come to an end is ended, by killing the child; waiting for bytes does not count."""

    async def endless() -> AsyncIterator[bytes]:
        yield tar(file("a"))
        await trio.sleep(0.5)
        while True:
            yield bytes(MIB)

    target = workspace / "t"
    target.mkdir()
    with trio.fail_after(20), pytest.raises(ImageError, match=r"was not done after 0\.3 s") as caught:
        await unpack(endless(), target, [], owners, Limits(layer_deadline_s=0.3), "the layer x")
    assert caught.value.reason == "ImagePullFailed"
    assert children() == []


async def test_cancelled(workspace: Path, owners: Owners) -> None:
    """When it is cancelled, nothing goes on: no child, no zombie."""
    begun = trio.Event()

    async def endless() -> AsyncIterator[bytes]:
        yield tar(file("a"))[:700]
        begun.set()
        await trio.sleep_forever()

    target = workspace / "t"
    target.mkdir()
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(unpack, endless(), target, [], owners, Limits(), "the layer x")
            await begun.wait()
            assert len(children()) == 1
            nursery.cancel_scope.cancel()
    assert children() == []


def children() -> list[str]:
    """Those of every thread: a child belongs to the one that started it."""
    return [pid for found in Path("/proc/self/task").glob("*/children") for pid in found.read_text().split()]


async def test_deep_trees_are_removed(layers: Layers, workspace: Path, owners: Owners) -> None:
    """A tree as deep as paths allow, of directories that nobody may enter, is unpacked and removed."""
    deep = "d/" * 1500
    root, _ = await layers.add(
        tar(*(folder("d/" * depth, mode=0) for depth in range(1, 1500)), file(deep + "f", uid=5))
    )
    assert root.exists()
    await remove_tree(root, owners)
    assert not root.exists()


async def test_removing_what_is_not_a_tree(workspace: Path, owners: Owners) -> None:
    """A link is removed and not what it leads to; nothing at all is no error."""
    (workspace / "kept").mkdir()
    (workspace / "link").symlink_to("kept")
    (workspace / "file").write_text("x")
    for name in ("link", "file", "nothing"):
        await remove_tree(workspace / name, owners)
    assert [found.name for found in workspace.iterdir()] == ["kept"]


async def test_removing_goes_on_where_it_was_cut_off(workspace: Path, owners: Owners) -> None:
    """A removal that was killed half-way is taken up by the next."""
    for name in (".rik-discard-0", "a/b/c", "a/.rik-discard-0/x"):
        (workspace / "tree" / name).mkdir(parents=True)
        (workspace / "tree" / name / "f").write_text("x")
    await remove_tree(workspace / "tree", owners)
    assert not (workspace / "tree").exists()

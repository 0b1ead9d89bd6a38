"""Layers made to do harm, taken the whole way: from a layout through the store, by the real child.

`pytest -s tests/images/test_hostile_layers.py` prints the table: what was tried, the reason, the message. What single
tricks lead to inside of the layer's directory is tested in `test_unpack.py`, whose tables are taken up here.
"""

from __future__ import annotations

import gzip
import os
import tarfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import trio
import zstandard

from rik.images.errors import ImageError
from rik.images.reference import parse_reference
from rik.images.store import Image, ImageStore
from rik.linux.idmap import IdMap, Unavailable
from rik.settings import ImageSettings
from tests.images.build import LAYER, Entry, Layout, config_of, digest, entry, file, folder, hardlink, symlink, tar
from tests.images.conftest import HOST_ID, MakeStore
from tests.images.test_unpack import ESCAPES, INVALID, MIB, header_of

DEADLINE_S = 120  # of a million names; the others take a second at most
ESCAPED = Path("/tmp/escaped")


def zeros_of(size: int) -> bytes:
    """A tar of one file of `size` zeros, without them and the end."""
    return header_of("zeros", size)


def members_bomb() -> bytes:
    """400 MiB of zeros, a gzip member each."""
    return gzip.compress(zeros_of(400 * MIB)) + gzip.compress(bytes(MIB), 9) * 400


def pax_sparse(size: int, places: str, stored: bytes = b"", **more: str) -> bytes:
    """A sparse file as GNU tar's version 0.1 writes it."""
    headers = {"GNU.sparse.map": places, "GNU.sparse.size": str(size), "GNU.sparse.numblocks": "1", **more}
    return tar(file("hole", stored, pax_headers={f"{key}": value for key, value in headers.items()}))


def map_without_end() -> bytes:
    """Version 1.0, whose map comes before the data: it says that it has 10^9 pieces."""
    headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "1000"}
    return tar(file("hole", b"1000000000\n" + b"0\n" * 1000, pax_headers=headers))


def extended(kind: bytes, data: bytes) -> bytes:
    return tarfile.TarInfo("x").create_ustar_header(
        {**tarfile.TarInfo("x").get_info(), "type": kind, "size": len(data)}, "utf-8", "strict"
    ) + data.ljust(-(-len(data) // 512) * 512, b"\0")


def many(count: int, name: bytes = b"%07d") -> bytes:
    """Empty files, compressed; quickly made."""
    template = bytearray(header_of("", 0))
    template[148:156] = b" " * 8
    base, parts, compressor = sum(template), [], zlib.compressobj(1, zlib.DEFLATED, 31)
    for number in range(count):
        text = name % number
        template[: len(text)] = text
        template[148:156] = b"%06o\0 " % (base + sum(text))
        parts.append(compressor.compress(template))
    return b"".join(parts) + compressor.flush()


def made_of(entries: Sequence[Entry]) -> Callable[[], bytes]:
    return lambda: tar(*entries)


REFUSED_ESCAPES = {name: made_of(ESCAPES[name]) for name in ESCAPES if name.startswith("hard link")}

# Layers that change only what is theirs, whatever they say: no error.
CONTAINED: dict[str, Callable[[], bytes]] = {
    **{name: made_of(ESCAPES[name]) for name in ESCAPES if name not in REFUSED_ESCAPES},
    "directory replaced by a link": lambda: tar(
        folder("d"), file("d/x"), symlink("d", "/tmp"), file("d/escaped", b"!")
    ),
    "link replaced by a directory": lambda: tar(
        symlink("d", "/tmp"), file("d/a"), folder("d"), file("d/escaped", b"!")
    ),
    "link exchanged while in use": lambda: tar(
        folder("a"), symlink("l", "a"), file("l/one"), symlink("l", "/tmp"), file("l/escaped", b"!")
    ),
    "parent of a parent replaced": lambda: tar(
        file("a/b/one"), symlink("a", "/"), file("a/tmp/escaped", b"!"), file("a/b/../tmp/escaped", b"!")
    ),
    "link to the kernel's view of the root": lambda: tar(symlink("p", "/proc/1/root/tmp"), file("p/escaped", b"!")),
    "device as a parent's sibling": lambda: tar(entry("sda", tarfile.BLKTYPE, devmajor=8), file("x")),
    "set-user-id of root": lambda: tar(file("su", b"#!", mode=0o6755)),
    "300 directories deep": lambda: tar(file("d/" * 300 + "f")),
    "name of 255 bytes": lambda: tar(file("n" * 255)),
}

# Layers that are refused: how they are made, and words of the message.
REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    **INVALID,
    **{name: (make, "which is not there") for name, make in REFUSED_ESCAPES.items()},
    "name of 256 bytes": (lambda: tar(file("n" * 256)), "File name too long"),
    "10,000 directories deep": (lambda: tar(file("d/" * 10_000 + "f")), "File name too long"),
    "link of 10,000 characters": (lambda: tar(symlink("a", "l" * 10_000)), "leads to a name of 10,000 characters"),
    "device as a directory": (lambda: tar(entry("p", tarfile.FIFOTYPE), file("p/x")), "which is no directory"),
    "file of 30 GB": (lambda: header_of("a", 30_000_000_000), "larger than 20 GB when"),
    "10 GB hole": (lambda: pax_sparse(10_000_000_000, "10000000000,0"), "more than 200 times its size"),
    "30 GB hole": (lambda: pax_sparse(30_000_000_000, "30000000000,0"), "larger than 20 GB when"),
    "sparse map out of the file": (lambda: pax_sparse(1000, "900,200", bytes(200)), "points out of it"),
    "sparse map pointing back": (lambda: pax_sparse(1000, "500,100,0,100", bytes(200)), "or back"),
    "sparse map of more than is stored": (lambda: pax_sparse(9000, "0,9000", bytes(200)), "more bytes than are stored"),
    "sparse map of half a place": (lambda: pax_sparse(9000, "0,10,20", bytes(20)), "is incomplete"),
    "sparse map of no numbers": (lambda: pax_sparse(9000, "0,ten", bytes(20)), "'ten' where a number belongs"),
    "sparse map without end": (map_without_end, "is too long"),
    "gzip bomb": (lambda: gzip.compress(zeros_of(400 * MIB) + bytes(400 * MIB), 6), "more than 200 times its size"),
    "bomb of gzip members": (members_bomb, "more than 200 times its size"),
    "zstd bomb": (lambda: zstandard.compress(zeros_of(400 * MIB) + bytes(400 * MIB)), "more than 200 times its size"),
    "bomb after the end of the tar": (lambda: gzip.compress(bytes(400 * MIB), 6), "more than 200 times its size"),
    "garbage that begins as gzip": (lambda: b"\x1f\x8b" + b"garbage " * 900, "data is damaged"),
    "gzip with a wrong checksum": (lambda: gzip.compress(tar(file("a")))[:-8] + bytes(8), "data is damaged"),
    "garbage that begins as zstd": (lambda: b"\x28\xb5\x2f\xfd" + b"garbage " * 900, "data is damaged"),
    "html": (lambda: b"<html><body>Not found</body></html>" * 40, "there is no tar header in it"),
    "global header of 2 MB": (
        lambda: extended(b"g", b"comment=" + b"x" * 2_000_000) + tar(file("a")),
        "extended header of 2,0",
    ),
    "long name of 2 MB": (lambda: extended(b"L", b"n" * 2_000_000) + tar(file("a")), "extended header of 2,0"),
    "extended headers without end": (lambda: extended(b"g", b"13 comment=a\n") * 5000, "follow each other without end"),
    "extended header and nothing": (lambda: extended(b"x", b"13 comment=a\n"), "followed by nothing"),
    "record longer than its header": (lambda: extended(b"x", b"99 comment=a\n") + tar(file("a")), "is damaged"),
    "record of no length": (lambda: extended(b"x", b"0 comment=a\n") + tar(file("a")), "is damaged"),
    "attribute without a name": (lambda: tar(file("a", pax_headers={"SCHILY.xattr.a\0b": "x"})), "is called"),
    "negative owner": (lambda: tar(file("a", pax_headers={"uid": "-5"})), "has the owner"),
    "size that is no number": (lambda: tar(file("a", b"a", pax_headers={"size": "1e3"})), "where a number belongs"),
}

LIMITED: dict[str, tuple[Callable[[], bytes], ImageSettings, str]] = {
    "more files than allowed": (
        lambda: many(2001),
        ImageSettings(max_entries=2000),
        "more than 2,000 files",
    ),
    "more bytes than allowed": (
        lambda: tar(file("a", bytes(3000)), file("b", bytes(3000))),
        ImageSettings(max_bytes=5000),
        "larger than 5 kB when",
    ),
    "copies of a lower file": (  # each hard link to a replaced name would bring it up once more
        lambda: tar(file("a", bytes(3000)), hardlink("b", "a"), file("a", bytes(3000))),
        ImageSettings(max_bytes=5000),
        "larger than 5 kB when",
    ),
}


def layout_of(path: Path, blob: bytes, plain: bytes = b"") -> str:
    """A layout of one layer, whose bytes are `blob`; the reference to it."""
    made = Layout(path)
    config = config_of([plain or blob])
    layer = made.blob(blob, LAYER + "+gzip")
    manifest = {"schemaVersion": 2, "config": made.document(config, "application/vnd.oci.image.config.v1+json")}
    made.add(made.document({**manifest, "layers": [layer]}, "application/vnd.oci.image.manifest.v1+json"))
    return f"oci:{made.write()}"


def outside() -> tuple[object, ...]:
    """What the layers here try to change or to get hold of."""
    return os.stat("/tmp").st_mode, os.stat("/etc/hostname").st_nlink, os.listxattr("/tmp"), ESCAPED.exists()


async def ensure(store: ImageStore, reference: str) -> Image:
    with trio.fail_after(DEADLINE_S):
        return await store.ensure(parse_reference(reference))


async def leftovers(store: ImageStore) -> list[str]:
    """Everything in the store that is no whole image."""
    found = [resource.name for resource in await store.inventory() if not resource.owner]
    return found + [str(path) for path in store.directory.glob("layers/*/fs")]


def show(name: str, outcome: str, message: str = "") -> None:
    print(f"\n{name:40} {outcome:16} {message}", end="")


@pytest.mark.parametrize("name", CONTAINED)
async def test_contained(store: ImageStore, tmp_path: Path, name: str) -> None:
    """A layer that tries to reach out of its directory is unpacked inside of it, as its names read there."""
    blob, before = CONTAINED[name](), outside()
    assert not ESCAPED.exists()
    image = await ensure(store, layout_of(tmp_path / "layout", blob))
    show(name, "contained", f"{len(list(image.layers[0].rglob('*')))} files, dropped {image.dropped}")
    assert outside() == before
    assert [len(image.layers)] == [1] and image.layers[0].is_relative_to(store.directory)


@pytest.mark.parametrize("name", REFUSED)
async def test_refused(store: ImageStore, tmp_path: Path, name: str) -> None:
    """A layer that is nonsense or a bomb is ImageInvalid, its cause one printable line; nothing is left of it."""
    make, words = REFUSED[name]
    await refused(store, tmp_path, name, make(), words)


@pytest.mark.parametrize("name", LIMITED)
async def test_limited(make_store: MakeStore, tmp_path: Path, name: str) -> None:
    """The limits are those of the settings."""
    make, settings, words = LIMITED[name]
    await refused(make_store(settings=settings), tmp_path, name, make(), words)


async def refused(store: ImageStore, tmp_path: Path, name: str, blob: bytes, words: str) -> None:
    before = outside()
    assert not ESCAPED.exists()
    reference = layout_of(tmp_path / "layout", blob)
    with pytest.raises(ImageError) as caught:
        await ensure(store, reference)
    message = str(caught.value)
    show(name, caught.value.reason, message.replace(reference, "oci:…"))
    assert caught.value.reason == "ImageInvalid" and words in message
    assert digest(blob) in message and len(message) < 700 and message.isprintable()
    assert outside() == before
    assert await leftovers(store) == []


@pytest.mark.slow
async def test_a_million_names(workspace: Path, tmp_path: Path, detected_idmap: IdMap | Unavailable) -> None:
    """More entries than the default of 1,000,000 are refused, in time; here they delete what is not there, which is
    quicker than a million files."""
    store = ImageStore(workspace / "images", HOST_ID, detected_idmap)
    await refused(store, tmp_path, "more than a million", many(1_000_001, b".wh.%07d"), "more than 1,000,000 files")

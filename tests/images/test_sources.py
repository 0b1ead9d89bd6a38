"""Images in layouts and archives: what is found in them, and how each thing that can be wrong with them is told."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from rik.images.errors import ImageError, ImageUnauthorized
from rik.images.manifest import MAX_LABELS_CHARS, Platform, read_config, this_platform
from rik.images.opening import open_source
from rik.images.reference import parse_reference
from rik.images.registry.registries import Registries
from rik.images.source import Resolved
from rik.settings import ImageSettings
from tests.conftest import Require
from tests.images.build import (
    CONFIG,
    INDEX,
    LAYER,
    MANIFEST,
    Layout,
    archive,
    config_of,
    digest,
    docker_archive,
    file,
    layout,
    oci_archive,
    tar,
)

AMD64 = Platform("linux", "amd64")
ONE = tar(file("one", b"1"))
TWO = tar(file("two", b"2"))
NO_REGISTRIES = Registries(ImageSettings(), Path("/nonexistent"))


async def resolve(text: str, wanted: Platform | None = None, allow_dirs: list[Path] | None = None) -> Resolved:
    source = await open_source(parse_reference(text), wanted or this_platform(), allow_dirs, NO_REGISTRIES)
    return await source.resolve()


async def read_all(text: str) -> list[bytes]:
    """Every layer's bytes, read and verified."""
    source = await open_source(parse_reference(text), this_platform(), None, NO_REGISTRIES)
    resolved = await source.resolve()
    read_config(resolved.config, this_platform(), len(resolved.layers), text)
    found = []
    for layer in resolved.layers:
        async with source.open_layer(layer) as chunks:
            found.append(b"".join([chunk async for chunk in chunks]))
    return found


async def test_layout_by_tag(tmp_path: Path) -> None:
    """A layout's image is found by its tag, and its layers come lowest first, whether compressed or not."""
    made = Layout(tmp_path / "l")
    made.add(made.manifest([ONE, TWO]), "both")
    made.add(made.manifest([TWO], compress=False), "two")
    made.write()
    assert [gzip.decompress(data) for data in await read_all(f"oci:{tmp_path}/l:both")] == [ONE, TWO]
    assert await read_all(f"oci:{tmp_path}/l:two") == [TWO]


async def test_layout_without_tag(tmp_path: Path) -> None:
    """Without a tag it is the only image, or else the one tagged `latest`."""
    layout(tmp_path / "only", ONE, tag="any")
    made = Layout(tmp_path / "several")
    made.add(made.manifest([ONE]), "old")
    made.add(made.manifest([TWO]), "latest")
    made.write()
    assert len(await read_all(f"oci:{tmp_path}/only")) == 1
    assert [gzip.decompress(data) for data in await read_all(f"oci:{tmp_path}/several")] == [TWO]


async def test_nested_index_by_platform(tmp_path: Path) -> None:
    """Through indexes in indexes the image for this platform is found, past attestations and other platforms."""
    made = Layout(tmp_path / "l")
    attestation = {**made.manifest([]), "platform": {"os": "unknown", "architecture": "unknown"}}
    arm = {**made.manifest([ONE]), "platform": {"os": "linux", "architecture": "arm64", "variant": "v8"}}
    amd = {**made.manifest([TWO]), "platform": {"os": "linux", "architecture": "amd64"}}
    inner = made.document({"schemaVersion": 2, "mediaType": INDEX, "manifests": [attestation, arm, amd]}, INDEX)
    made.add(made.document({"schemaVersion": 2, "mediaType": INDEX, "manifests": [inner]}, INDEX), "latest")
    made.write()
    assert (await resolve(f"oci:{tmp_path}/l", AMD64)).digest == amd["digest"]
    assert (await resolve(f"oci:{tmp_path}/l", Platform("linux", "arm64", "v8"))).digest == arm["digest"]


async def test_links_inside_a_layout(tmp_path: Path) -> None:
    """Symbolic links that stay inside of the layout are followed."""
    made = layout(tmp_path / "l", ONE)
    os.rename(made / "blobs", made / "elsewhere")
    (made / "blobs").symlink_to("elsewhere")
    assert len(await read_all(f"oci:{made}")) == 1


async def test_oci_archive(tmp_path: Path) -> None:
    """A layout in a tar file reads as in a directory."""
    made = oci_archive(tmp_path / "a.tar", layout(tmp_path / "l", ONE, TWO, tag="v1"))
    assert [gzip.decompress(data) for data in await read_all(f"oci-archive:{made}:v1")] == [ONE, TWO]
    assert (await resolve(f"oci-archive:{made}")).digest == (await resolve(f"oci:{tmp_path}/l")).digest


async def test_docker_archive(tmp_path: Path) -> None:
    """What `docker save` wrote of old: a directory a layer, chosen by name, with Docker Hub's parts left out or not."""
    made = docker_archive(tmp_path / "d.tar", ONE, TWO, names=("app:1", "registry.example/app:2"))
    for name in ("", ":app:1", ":docker.io/library/app:1", ":registry.example/app:2"):
        assert await read_all(f"docker-archive:{made}{name}") == [ONE, TWO]


async def test_docker_archive_with_links(tmp_path: Path) -> None:
    """A layer that several images share is there as a link to one of them."""
    config = json.dumps(config_of([ONE, ONE])).encode()
    manifest = [{"Config": "c.json", "RepoTags": None, "Layers": ["a/layer.tar", "b/layer.tar"]}]
    files: dict[str, bytes | Path] = {
        "a/layer.tar": ONE,
        "c.json": config,
        "manifest.json": json.dumps(manifest).encode(),
    }
    made = archive(tmp_path / "d.tar", files, **{"b/layer.tar": "../a/layer.tar"})
    assert await read_all(f"docker-archive:{made}") == [ONE, ONE]


async def test_new_docker_archive(tmp_path: Path) -> None:
    """What `docker save` writes since version 25: `manifest.json` names blobs, whose names are their digests."""
    folder = layout(tmp_path / "l", ONE, compress=False)
    config = json.dumps(config_of([ONE])).encode()
    names = [f"blobs/sha256/{digest(data).removeprefix('sha256:')}" for data in (config, ONE)]
    manifest = [{"Config": names[0], "RepoTags": ["app:1"], "Layers": [names[1]]}]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    made = oci_archive(tmp_path / "d.tar", folder)
    assert await read_all(f"docker-archive:{made}:app:1") == [ONE]
    assert len(await read_all(f"oci-archive:{made}")) == 1


async def test_allowed_directories(tmp_path: Path) -> None:
    """With a list of directories, nothing outside of them is read, and whether it exists is not told."""
    inside = layout(tmp_path / "allowed" / "l", ONE)
    layout(tmp_path / "forbidden" / "l", ONE)
    (tmp_path / "allowed" / "link").symlink_to(tmp_path / "forbidden" / "l")
    allowed = [tmp_path / "allowed"]
    assert (await resolve(f"oci:{inside}", allow_dirs=allowed)).layers
    for text in ("forbidden/l", "allowed/link", "allowed/../forbidden/l", "allowed-not/l", "nowhere"):
        with pytest.raises(ImageUnauthorized, match="is not inside") as caught:
            await resolve(f"oci:{tmp_path}/{text}", allow_dirs=allowed)
        assert caught.value.reason == "ImageUnauthorized"
    with pytest.raises(ImageUnauthorized, match="from no directory"):
        await resolve(f"docker-archive:{tmp_path}/x.tar", allow_dirs=[])


def _edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    value = json.loads(path.read_bytes())
    change(value)
    path.write_text(json.dumps(value))


Spoil = Callable[[Path], object]


def _with_manifest(**fields: Any) -> Spoil:
    def spoil(path: Path) -> None:
        made = Layout(path.parent / "other")
        made.add(made.manifest([ONE], replace=fields))
        made.write()
        _replace(path, path.parent / "other")

    return spoil


def _with_layer(media_type: str) -> Spoil:
    return _with_manifest(layers=[{"mediaType": media_type, "digest": digest(ONE), "size": len(ONE)}])


def _replace(path: Path, by: Path) -> None:
    os.rename(path, path.with_name("replaced"))
    os.rename(by, path)


def _layer_file(path: Path) -> Path:
    return next(found for found in (path / "blobs" / "sha256").iterdir() if found.read_bytes()[:2] == b"\x1f\x8b")


def _manifest_file(path: Path) -> Path:
    entry = json.loads((path / "index.json").read_bytes())["manifests"][0]
    return path / "blobs" / "sha256" / str(entry["digest"]).removeprefix("sha256:")


def _deep(path: Path) -> None:
    made = Layout(path.parent / "other")
    descriptor = made.manifest([ONE])
    for _ in range(8):
        descriptor = made.document({"schemaVersion": 2, "mediaType": INDEX, "manifests": [descriptor]}, INDEX)
    made.add(descriptor)
    made.write()
    _replace(path, path.parent / "other")


def _other_platform(path: Path) -> None:
    _edit(path / "index.json", lambda v: v["manifests"][0].update(platform={"os": "linux", "architecture": "mips"}))


def _special(make: Callable[[Path], object]) -> Spoil:
    def spoil(path: Path) -> None:
        found = _layer_file(path)
        found.unlink()
        make(found)

    return spoil


def _index_directory(path: Path) -> None:
    (path / "index.json").unlink()
    (path / "index.json").mkdir()


BROKEN_LAYOUTS: dict[str, tuple[Spoil, str, str]] = {
    "no index": (lambda p: (p / "index.json").unlink(), "ImageNotFound", "has no index.json"),
    "garbage": (lambda p: (p / "index.json").write_bytes(b"\xff\x00{"), "ImageInvalid", "index.json cannot be read"),
    "html": (lambda p: (p / "index.json").write_text("<html>"), "ImageInvalid", "malformed"),
    "other json": (lambda p: (p / "index.json").write_text("[1]"), "ImageInvalid", "Expected `object`"),
    "endless nesting": (lambda p: (p / "index.json").write_text("[" * 100_000), "ImageInvalid", "cannot be read"),
    "empty index": (lambda p: _edit(p / "index.json", lambda v: v.update(manifests=[])), "ImageInvalid", "is empty"),
    "huge index": (lambda p: (p / "index.json").write_bytes(b" " * (5 << 20)), "ImageInvalid", "5,242,880 bytes"),
    "path in a digest": (
        lambda p: _edit(p / "index.json", lambda v: v["manifests"][0].update(digest="sha256:../../../etc/passwd")),
        "ImageInvalid",
        "`sha256:../../../etc/passwd`, which is no sha256",
    ),
    "wrong size": (
        lambda p: _edit(p / "index.json", lambda v: v["manifests"][0].update(size=7)),
        "ImageInvalid",
        "bytes where 7 are stated",
    ),
    "negative size": (
        lambda p: _edit(p / "index.json", lambda v: v["manifests"][0].update(size=-1)),
        "ImageInvalid",
        "has -1 bytes",
    ),
    "index is a directory": (
        _index_directory,
        "ImageInvalid",
        "no plain file, but a directory",
    ),
    "other platform": (_other_platform, "ImageNotFound", "has no image for linux/"),
    "no manifest": (lambda p: _manifest_file(p).unlink(), "ImageInvalid", "is missing"),
    "changed manifest": (
        lambda p: _manifest_file(p).write_bytes(_manifest_file(p).read_bytes().replace(b"2", b"3", 1)),
        "ImageInvalid",
        "is not what it says it is",
    ),
    "deep indexes": (_deep, "ImageInvalid", "nested more than 5 deep"),
    "no container image": (
        _with_manifest(
            config={"mediaType": "application/vnd.cncf.helm.config.v1+json", "digest": digest(b""), "size": 0}
        ),
        "ImageInvalid",
        "is no container image: its config is `application/vnd.cncf.helm",
    ),
    "foreign layer": (
        _with_layer("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"),
        "ImageInvalid",
        "is a foreign one",
    ),
    "encrypted layer": (_with_layer(f"{LAYER}+gzip+encrypted"), "ImageInvalid", "is encrypted"),
    "unknown layer": (_with_layer("application/x-squashfs"), "ImageInvalid", "unknown type (`application/x-squashfs`)"),
    "too many layers": (
        _with_manifest(layers=[{"mediaType": LAYER, "digest": digest(ONE), "size": len(ONE)}] * 501),
        "ImageInvalid",
        "has 501 layers",
    ),
    "no such config": (
        _with_manifest(config={"mediaType": CONFIG, "digest": digest(b"?"), "size": 1}),
        "ImageInvalid",
        "the config sha256:",
    ),
    "layer missing": (lambda p: _layer_file(p).unlink(), "ImageInvalid", "is missing"),
    "layer too short": (lambda p: os.truncate(_layer_file(p), 20), "ImageInvalid", "has 20 bytes where"),
    "layer changed": (
        lambda p: _layer_file(p).write_bytes(bytes(len(_layer_file(p).read_bytes()))),
        "ImageInvalid",
        "its digest is sha256:",
    ),
    "layer leads outside": (
        _special(lambda found: found.symlink_to("/etc/passwd")),
        "ImageInvalid",
        "is a symbolic link out of the image, to /etc/passwd",
    ),
    "layer is a FIFO": (_special(os.mkfifo), "ImageInvalid", "no plain file, but a FIFO"),
    "layer is a directory": (_special(os.mkdir), "ImageInvalid", "no plain file, but a directory"),
    "layer is a device": (_special(lambda found: found.symlink_to("/dev/zero")), "ImageInvalid", "a character device"),
}


@pytest.mark.parametrize("name", BROKEN_LAYOUTS)
async def test_broken_layouts(tmp_path: Path, name: str) -> None:
    """Each thing that may be wrong with a layout ends with its own reason, the reference and the cause in words."""
    spoil, reason, words = BROKEN_LAYOUTS[name]
    path = layout(tmp_path / "l", ONE)
    spoil(path)
    with trio.fail_after(10), pytest.raises(ImageError) as caught:
        await read_all(f"oci:{path}")
    message = str(caught.value)
    assert caught.value.reason == reason
    assert words in message and f"oci:{path}" in message
    assert len(message) < 1000


async def test_an_unreadable_layer(tmp_path: Path, require: Require) -> None:
    """A file that RIK may not read is said to be so, with the system's words."""
    require("ordinary-user", reason="root may read everything")
    path = layout(tmp_path / "l", ONE)
    _layer_file(path).chmod(0)
    with pytest.raises(ImageError, match="cannot be read: Permission denied") as caught:
        await read_all(f"oci:{path}")
    assert caught.value.reason == "ImagePullFailed"


async def test_missing_tag_lists_those_there_are(tmp_path: Path) -> None:
    """A tag that is not there, or none where several are, is answered with the tags there are."""
    made = Layout(tmp_path / "l")
    for tag in ("blue", "green"):
        made.add(made.manifest([ONE]), tag)
    made.write()
    for text in (":red", ""):
        with pytest.raises(ImageError, match="it has `blue`, `green`") as caught:
            await resolve(f"oci:{tmp_path}/l{text}")
        assert caught.value.reason == "ImageNotFound"
    two = docker_archive(tmp_path / "d.tar", ONE, names=("blue:1", "green:2"))
    with pytest.raises(ImageError, match="it has `blue:1`, `green:2`"):
        await resolve(f"docker-archive:{two}:red")


async def test_wrong_platform_in_the_config(tmp_path: Path) -> None:
    """An image for another machine is refused when only its config says so."""
    path = layout(tmp_path / "l", ONE, config=config_of([ONE], architecture="s390x"))
    with pytest.raises(ImageError, match="is for linux/s390x; this node is") as caught:
        await read_all(f"oci:{path}")
    assert caught.value.reason == "ImageNotFound"


@pytest.mark.parametrize(
    ("rootfs", "words"),
    [
        ({"diff_ids": []}, "lists 0 layers"),
        (None, "lists 0 layers"),
        ({"diff_ids": ["sha256:../x"]}, "which is no digest"),
        ({"diff_ids": 7}, "Expected `array | null`"),
    ],
)
async def test_config_must_fit_the_manifest(tmp_path: Path, rootfs: object, words: str) -> None:
    """The config names the digest of every layer's content."""
    path = layout(tmp_path / "l", ONE, config=config_of([ONE], rootfs=rootfs))
    with pytest.raises(ImageError) as caught:
        await read_all(f"oci:{path}")
    assert words in str(caught.value) and caught.value.reason == "ImageInvalid"


def _fifo(path: Path) -> Path:
    os.mkfifo(path)
    return path


def _cut(path: Path, made: Path) -> Path:
    path.write_bytes(made.read_bytes()[:-12_000])
    return path


def _sparse(path: Path) -> Path:
    info = tarfile.TarInfo("manifest.json")
    info.size = 0
    info.pax_headers = {
        "GNU.sparse.major": "0",
        "GNU.sparse.minor": "1",
        "GNU.sparse.map": "0,0",
        "GNU.sparse.size": "9",
    }
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as made:
        made.addfile(info, io.BytesIO())
    return path


BROKEN_ARCHIVES: dict[str, tuple[Callable[[Path], Path], str, str]] = {
    "missing": (lambda p: p / "none.tar", "ImageNotFound", "does not exist"),
    "a directory": (lambda p: p, "ImageInvalid", "no plain file, but a directory"),
    "a FIFO": (lambda p: _fifo(p / "x"), "ImageInvalid", "no plain file, but a FIFO"),
    "a device": (lambda p: Path("/dev/zero"), "ImageInvalid", "no plain file, but a character device"),
    "empty": (lambda p: Path(str((p / "x").write_bytes(b"") or p / "x")), "ImageInvalid", "no usable tar archive"),
    "text": (lambda p: archive(p / "x", {}), "ImageNotFound", "has no manifest.json"),
    "garbage manifest": (
        lambda p: archive(p / "x", {"manifest.json": b"{}"}),
        "ImageInvalid",
        "manifest.json cannot be read",
    ),
    "no image": (lambda p: archive(p / "x", {"manifest.json": b"[]"}), "ImageInvalid", "lists no image"),
    "no config": (lambda p: docker_archive(p / "x", ONE, Config="gone.json"), "ImageInvalid", "'gone.json' is missing"),
    "config elsewhere": (
        lambda p: docker_archive(p / "x", ONE, Config="/etc/passwd"),
        "ImageInvalid",
        "'/etc/passwd' is missing",
    ),
    "no layer": (lambda p: docker_archive(p / "x", ONE, Layers=["../../x"]), "ImageInvalid", "'../../x' is missing"),
    "link in a circle": (
        lambda p: archive(p / "x", {}, **{"manifest.json": "manifest.json"}),
        "ImageNotFound",
        "has no manifest.json",
    ),
    "cut short": (lambda p: _cut(p / "x", docker_archive(p / "d", tar(file("a", bytes(9000))))), "ImageInvalid", "cut"),
    "sparse": (lambda p: _sparse(p / "x"), "ImageInvalid", "as a sparse file"),
    "compressed": (
        lambda p: Path(str((p / "x").write_bytes(gzip.compress(ONE)) and p / "x")),
        "ImageInvalid",
        "compressed by gzip",
    ),
}


@pytest.mark.parametrize("name", BROKEN_ARCHIVES)
async def test_broken_archives(tmp_path: Path, name: str) -> None:
    """Each thing that may be wrong with an archive ends with its own reason, the reference and the cause in words."""
    make, reason, words = BROKEN_ARCHIVES[name]
    path = make(tmp_path)
    with trio.fail_after(10), pytest.raises(ImageError) as caught:
        await read_all(f"docker-archive:{path}")
    assert caught.value.reason == reason
    assert words in str(caught.value) and f"docker-archive:{path}" in str(caught.value)


def test_config_is_read_whole() -> None:
    """Everything that a runtime wants of the config reaches it; what is null or absent is empty."""
    data = {
        "os": "linux",
        "architecture": "amd64",
        "rootfs": {"diff_ids": []},
        "config": {
            "Entrypoint": ["/entry"],
            "Cmd": None,
            "Env": ["A=1"],
            "WorkingDir": "/srv",
            "User": "app:app",
            "StopSignal": "SIGQUIT",
            "ExposedPorts": {"80/tcp": {}, "53/udp": {}},
            "Labels": {"a": "b"},
            "Volumes": {"/data": {}},
        },
    }
    config, _ = read_config(json.dumps(data).encode(), AMD64, 0, "it")
    assert (config.entrypoint, config.cmd, config.env) == (("/entry",), (), ("A=1",))
    assert (config.working_dir, config.user, config.stop_signal) == ("/srv", "app:app", "SIGQUIT")
    assert (config.exposed_ports, config.labels) == (("80/tcp", "53/udp"), {"a": "b"})
    empty, _ = read_config(json.dumps({**data, "config": None}).encode(), AMD64, 0, "it")
    assert empty.entrypoint == () and empty.user == ""


def test_labels_are_bounded() -> None:
    """Of labels the first hundred are kept, long values cut, and nothing in them commands a terminal."""
    many = {f"l{number}": "v" for number in range(1000)}
    labels = {"long": "x" * 5000, "odd\x1b": "a\x1b[31m\nb", "n" * 5000: "v", "": "nameless", **many}
    data = {"rootfs": {"diff_ids": []}, "config": {"Labels": labels}}
    config, _ = read_config(json.dumps(data).encode(), AMD64, 0, "it")
    assert len(config.labels) == 100 and list(config.labels)[:3] == ["long", "odd\\x1b", "l0"]
    assert config.labels["long"] == "x" * 999 + "…"
    assert config.labels["odd\\x1b"] == "a\\x1b[31m\\nb"


def test_labels_have_a_bound_together() -> None:
    """However many and however odd labels are, what is kept of them is small: it is repeated in every instance."""
    labels = {"kept": "v", **{"\U000e0001" * 150 + str(number): "\U000e0001" * 1000 for number in range(100)}}
    labels |= {"late": "v"}
    data = {"rootfs": {"diff_ids": []}, "config": {"Labels": labels}}
    config, _ = read_config(json.dumps(data).encode(), AMD64, 0, "it")
    assert config.labels["kept"] == config.labels["late"] == "v"
    assert sum(len(name) + len(value) for name, value in config.labels.items()) <= MAX_LABELS_CHARS


def test_media_types_of_an_index_entry(tmp_path: Path) -> None:
    """A manifest that says it is something else is refused."""
    made = Layout(tmp_path / "l")
    made.add(made.manifest([ONE], replace={"mediaType": "text/plain"}))
    made.write()
    with pytest.raises(ImageError, match="says it is `text/plain`"):
        trio.run(resolve, f"oci:{tmp_path}/l")
    assert MANIFEST != INDEX

"""Images made in pure Python: layers from entries, layouts and archives from layers. Nothing needs to be installed."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rik.images.manifest import this_platform

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
WHEN = 1_700_000_000

Entry = tuple[tarfile.TarInfo, bytes]


def entry(name: str, kind: bytes, data: bytes = b"", **fields: Any) -> Entry:
    """A tar member; `fields` are TarInfo's (mode, uid, gid, linkname, pax_headers, …)."""
    info = tarfile.TarInfo(name)
    info.type = kind
    info.mtime = WHEN
    info.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, data


def file(name: str, data: bytes = b"", **fields: Any) -> Entry:
    return entry(name, tarfile.REGTYPE, data, **fields)


def folder(name: str, **fields: Any) -> Entry:
    return entry(name, tarfile.DIRTYPE, **fields)


def symlink(name: str, target: str, **fields: Any) -> Entry:
    return entry(name, tarfile.SYMTYPE, linkname=target, **fields)


def hardlink(name: str, target: str, **fields: Any) -> Entry:
    return entry(name, tarfile.LNKTYPE, linkname=target, **fields)


def whiteout(name: str) -> Entry:
    parent, slash, base = name.rpartition("/")
    return file(f"{parent}{slash}.wh.{base}")


def tar(*entries: Entry, form: int = tarfile.PAX_FORMAT) -> bytes:
    """An uncompressed layer."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form, encoding="utf-8", errors="surrogateescape") as archive:
        for info, data in entries:
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def config_of(layers: Sequence[bytes], **fields: Any) -> dict[str, Any]:
    """An image config for uncompressed `layers`; `fields` replace its members."""
    here = this_platform()
    config = {
        "os": here.os,
        "architecture": here.architecture,
        "config": {"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [digest(layer) for layer in layers]},
    }
    return {**config, **fields}


class Layout:
    """An OCI layout being written to `path`: blobs first, then entries of its index, then `write`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: list[dict[str, Any]] = []
        (path / "blobs" / "sha256").mkdir(parents=True)
        (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')

    def blob(self, data: bytes, media_type: str) -> dict[str, Any]:
        """Writes a blob; returns its descriptor."""
        self.file_of(digest(data)).write_bytes(data)
        return {"mediaType": media_type, "digest": digest(data), "size": len(data)}

    def file_of(self, blob_digest: str) -> Path:
        return self.path / "blobs" / "sha256" / blob_digest.removeprefix("sha256:")

    def document(self, value: Any, media_type: str) -> dict[str, Any]:
        return self.blob(json.dumps(value).encode(), media_type)

    def manifest(
        self,
        layers: Sequence[bytes],
        *,
        config: dict[str, Any] | None = None,
        compress: bool = True,
        replace: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Writes layers, config and manifest of uncompressed `layers`; `replace` are other members of the manifest."""
        suffix = "+gzip" if compress else ""
        blobs = [self.blob(gzip.compress(layer, mtime=0) if compress else layer, LAYER + suffix) for layer in layers]
        described = self.document(config_of(layers) if config is None else config, CONFIG)
        value = {"schemaVersion": 2, "mediaType": MANIFEST, "config": described, "layers": blobs}
        return self.document({**value, **(replace or {})}, MANIFEST)

    def add(self, descriptor: dict[str, Any], tag: str | None = "latest", **fields: Any) -> None:
        """An entry of the index, which `write` writes."""
        annotations = {"annotations": {"org.opencontainers.image.ref.name": tag}} if tag else {}
        self.entries.append({**descriptor, **annotations, **fields})

    def write(self) -> Path:
        index = {"schemaVersion": 2, "manifests": self.entries}
        (self.path / "index.json").write_text(json.dumps(index))
        return self.path


def layout(path: Path, *layers: bytes, tag: str = "latest", **options: Any) -> Path:
    """A layout of one image, from uncompressed layers."""
    made = Layout(path)
    made.add(made.manifest(layers, **options), tag)
    return made.write()


def archive(path: Path, files: dict[str, bytes | Path], **links: str) -> Path:
    """A plain tar file of `files`, by name."""
    with tarfile.open(path, "w") as made:
        for name, data in files.items():
            content = data.read_bytes() if isinstance(data, Path) else data
            info = tarfile.TarInfo(name)
            info.size = len(content)
            made.addfile(info, io.BytesIO(content))
        for name, target in links.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            made.addfile(info)
    return path


def oci_archive(path: Path, folder_of_layout: Path) -> Path:
    """A layout as one tar file."""
    files = (found for found in sorted(folder_of_layout.rglob("*")) if found.is_file())
    return archive(path, {str(found.relative_to(folder_of_layout)): found for found in files})


def docker_archive(path: Path, *layers: bytes, names: Sequence[str] = ("app:1",), **fields: Any) -> Path:
    """What `docker save` wrote before version 25: a directory a layer. `fields` replace members of its manifest."""
    config = json.dumps(config_of(layers)).encode()
    config_name = f"{hashlib.sha256(config).hexdigest()}.json"
    manifest = {
        "Config": config_name,
        "RepoTags": list(names),
        "Layers": [f"{index}/layer.tar" for index in range(len(layers))],
    }
    files: dict[str, bytes | Path] = {f"{index}/layer.tar": layer for index, layer in enumerate(layers)}
    files[config_name] = config
    files["manifest.json"] = json.dumps([{**manifest, **fields}]).encode()
    return archive(path, files)

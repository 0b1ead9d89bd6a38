"""What `docker save` and `skopeo copy … docker-archive:` write: `manifest.json` beside the configs and layers it names.

Old ones have a directory a layer (`<id>/layer.tar`, shared ones as links); new ones (Docker 25) are OCI layouts
besides, and their `manifest.json` names files under `blobs/`. One reader does for both.
"""

from __future__ import annotations

import hashlib
import os

import msgspec

from rik.images.errors import ImageInvalid, ImageNotFound
from rik.images.files import read_small
from rik.images.manifest import MAX_JSON_BYTES, MAX_LAYERS, decode
from rik.images.reference import RegistryReference, is_digest, parse_reference
from rik.images.source import FileSource, Layer, Resolved, listed


class _Entry(msgspec.Struct, rename="pascal"):
    config: str
    layers: list[str]
    repo_tags: list[str] | None = None


class DockerArchive(FileSource):
    """The image `reference` names in the archive that `files` holds."""

    def _resolve(self) -> Resolved:
        entry = self._entry()
        config = self._config(entry.config)
        if len(entry.layers) > MAX_LAYERS:
            raise ImageInvalid(f"{self._reference} has {len(entry.layers)} layers; at most {MAX_LAYERS} can be mounted")
        layers = tuple(self._layer(os.path.normpath(name)) for name in entry.layers)
        # As with Docker, such an image is known by the digest of its config: the archive holds no manifest in the
        # registry's sense.
        return Resolved(f"sha256:{hashlib.sha256(config).hexdigest()}", config, layers)

    def _path(self, layer: Layer) -> str:
        return layer.name

    def _entry(self) -> _Entry:
        where = f"{self._reference}: manifest.json"
        try:
            data = read_small(self._files, "manifest.json", MAX_JSON_BYTES, where)
        except FileNotFoundError:
            raise ImageNotFound(
                f"{self._reference} is no docker archive: it has no manifest.json", next_step="is it an `oci-archive:`?"
            ) from None
        entries = decode(data, list[_Entry], where)
        if not entries:
            raise ImageInvalid(f"{where} lists no image")
        names = [tag for entry in entries for tag in entry.repo_tags or ()]
        wanted = self._reference.name
        if wanted is not None:
            full = _full_name(wanted)
            for entry in entries:
                if any(tag == wanted or _full_name(tag) == full for tag in entry.repo_tags or ()):
                    return entry
            raise ImageNotFound(f"{self._reference}: there is no image `{wanted[:100]}`; {_listed(names)}")
        if len(entries) > 1:
            raise ImageNotFound(f"{self._reference}: which of its {len(entries)} images? {_listed(names)}")
        return entries[0]

    def _config(self, name: str) -> bytes:
        where = f"{self._reference}: the config {name[:100]!r}"
        try:
            data = read_small(self._files, os.path.normpath(name), MAX_JSON_BYTES, where)
        except FileNotFoundError:
            raise ImageInvalid(f"{where} is missing") from None
        stated = os.path.basename(name).removesuffix(".json")
        found = hashlib.sha256(data).hexdigest()
        if is_digest(f"sha256:{stated}") and stated != found:
            raise ImageInvalid(f"{where} is not what it says it is: its digest is sha256:{found}")
        return data

    def _layer(self, name: str) -> Layer:
        try:
            part = self._files.open(name)
        except FileNotFoundError:
            raise ImageInvalid(f"{self._reference}: the layer {name[:100]!r} is missing") from None
        part.close()
        algorithm, _, encoded = name.removeprefix("blobs/").partition("/")
        stated = f"{algorithm}:{encoded}"
        return Layer(name, part.size, stated if name.startswith("blobs/") and is_digest(stated) else "")


def _full_name(text: str) -> str | None:
    """`busybox` and `docker.io/library/busybox:latest` are the same image; None for what is no such name."""
    try:
        reference = parse_reference(text)
    except ImageInvalid:
        return None
    return str(reference) if isinstance(reference, RegistryReference) else None


def _listed(names: list[str]) -> str:
    return listed(names) if names else "its images have no names"

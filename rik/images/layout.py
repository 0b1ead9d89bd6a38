"""OCI image layouts, as a directory or in a tar file (OCI image-spec 1.1, "Image Layout")."""

from __future__ import annotations

from rik.images.errors import ImageInvalid, ImageNotFound
from rik.images.files import read_small
from rik.images.manifest import (
    INDEX_TYPES,
    MAX_INDEX_DEPTH,
    MAX_JSON_BYTES,
    Descriptor,
    choose,
    decode,
    read_index,
    read_manifest,
)
from rik.images.reference import DEFAULT_TAG
from rik.images.source import Digest, FileSource, Layer, Resolved, listed


class OciLayout(FileSource):
    """The image `reference` names in the layout that `files` holds."""

    def _resolve(self) -> Resolved:
        descriptor = self._entry()
        for _ in range(MAX_INDEX_DEPTH):
            data = self._blob(descriptor, "the manifest")
            if descriptor.media_type not in INDEX_TYPES and not _looks_like_index(descriptor, data):
                break
            where = f"{self._reference}: the index {descriptor.digest}"
            descriptor = choose(read_index(data, where), self._wanted, where)
        else:
            raise ImageInvalid(f"{self._reference}: indexes are nested more than {MAX_INDEX_DEPTH} deep")
        manifest = read_manifest(data, f"{self._reference}: the manifest {descriptor.digest}")
        config = self._blob(manifest.config, "the config")
        layers = tuple(Layer(blob.digest, blob.size, blob.digest) for blob in manifest.layers)
        return Resolved(descriptor.digest, config, layers)

    def _path(self, layer: Layer) -> str:
        return _blob_path(layer.digest)

    def _entry(self) -> Descriptor:
        where = f"{self._reference}: index.json"
        try:
            data = read_small(self._files, "index.json", MAX_JSON_BYTES, where)
        except FileNotFoundError:
            raise ImageNotFound(f"{self._reference} is no OCI image layout: it has no index.json") from None
        entries = read_index(data, where)
        name = self._reference.name
        tags = sorted({tag for entry in entries if (tag := entry.tag())})
        if name is not None:
            named = [entry for entry in entries if entry.tag() == name]
            if not named:
                raise ImageNotFound(f"{self._reference}: there is no tag `{name[:100]}`; {_listed(tags)}")
            return choose(named, self._wanted, str(self._reference))
        if len(tags) > 1:
            if DEFAULT_TAG not in tags:
                raise ImageNotFound(f"{self._reference}: which of its images? {_listed(tags)}")
            entries = tuple(entry for entry in entries if entry.tag() == DEFAULT_TAG)
        return choose(entries, self._wanted, str(self._reference))

    def _blob(self, descriptor: Descriptor, what: str) -> bytes:
        where = f"{self._reference}: {what} {descriptor.digest}"
        try:
            data = read_small(self._files, _blob_path(descriptor.digest), MAX_JSON_BYTES, where)
        except FileNotFoundError:
            raise ImageInvalid(f"{where} is missing") from None
        if len(data) != descriptor.size:
            raise ImageInvalid(f"{where} has {len(data):,} bytes where {descriptor.size:,} are stated")
        digest = Digest(descriptor.digest)
        digest.update(data)
        digest.check(where)
        return data


def _looks_like_index(descriptor: Descriptor, data: bytes) -> bool:
    """Entries without a media type are told apart by what they hold."""
    return not descriptor.media_type and "manifests" in decode(data, dict, "the manifest")


def _blob_path(digest: str) -> str:
    algorithm, _, encoded = digest.partition(":")
    return f"blobs/{algorithm}/{encoded}"


def _listed(tags: list[str]) -> str:
    return listed(tags) if tags else "it has no tags at all"

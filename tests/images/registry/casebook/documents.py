"""Cases of manifests, indexes and configs that are not what they should be."""

from __future__ import annotations

import gzip
import json

from rik.images.errors import ImageError, ImageInvalid, ImagePullFailed
from rik.images.manifest import this_platform
from tests.images.build import INDEX, LAYER, MANIFEST, config_of, digest
from tests.images.registry.casebook.case import TRIES_S, case
from tests.images.registry.hostile import (
    instead,
    raw,
    repeat,
    status,
)
from tests.images.registry.scene import LOWER, Scene


@case(ImageInvalid, "manifest")
def garbage(scene: Scene) -> None:
    """Garbage in place of the manifest."""
    scene.script(scene.image.manifest_path, status(200, b"\x00\xff\xfe garbage", Content_Type=MANIFEST))


@case(ImagePullFailed, "web page|html")
def captive_portal(scene: Scene) -> None:
    """A web page with 200, as captive portals do."""
    scene.script(scene.image.manifest_path, status(200, b"<html>Pay for this network</html>", Content_Type="text/html"))


@case(ImageInvalid, "manifest")
def empty(scene: Scene) -> None:
    """An empty manifest."""
    scene.script(scene.image.manifest_path, status(200, b"", Content_Type=MANIFEST))


@case(ImageError, "manifest")
def no_content(scene: Scene) -> None:
    """204 in place of a manifest."""
    scene.script(scene.image.manifest_path, raw(b"HTTP/1.1 204 No Content\r\n\r\n"))


@case(ImageInvalid, "manifest")
def huge_manifest(scene: Scene) -> None:
    """A manifest of 100 MB."""
    scene.script(scene.image.manifest_path, status(200, b" " * 100_000_000, Content_Type=MANIFEST))
    scene.after(lambda: scene.read_at_most(24_000_000))


@case(ImageInvalid, "manifest")
def endless_manifest(scene: Scene) -> None:
    """A manifest in chunks that never ends."""
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {MANIFEST}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    scene.script(scene.image.manifest_path, repeat(b"10000\r\n" + b" " * 65536 + b"\r\n", 0, first=head))
    scene.after(lambda: scene.read_at_most(24_000_000))


@case(ImageInvalid, "manifest")
def deep_manifest(scene: Scene) -> None:
    """JSON nested a million deep."""
    scene.script(scene.image.manifest_path, status(200, b'{"config":' + b"[" * 1_000_000, Content_Type=MANIFEST))


@case(ImageInvalid, "manifest")
def null_manifest(scene: Scene) -> None:
    """The manifest is `null`."""
    scene.script(scene.image.manifest_path, status(200, b"null", Content_Type=MANIFEST))


@case(ImageInvalid, "manifest")
def compressed_bomb(scene: Scene) -> None:
    """A manifest that Content-Encoding blows up to a gigabyte."""
    bomb = gzip.compress(b" " * 10_000_000) * 100
    scene.script(scene.image.manifest_path, status(200, bomb, Content_Encoding="gzip", Content_Type=MANIFEST))


@case(ImageInvalid, "digest|is not what it says")
def wrong_manifest(scene: Scene) -> str:
    """Another manifest than the digest asked for."""
    scene.script(scene.image.digest_path, instead(lambda data: data + b" "))
    return f"{scene.registry.address}/app@{scene.image.digest}"


@case(ImageInvalid, "config.*(digest|bytes)")
def wrong_config(scene: Scene) -> None:
    """Another config than its digest says."""
    scene.script(scene.image.config_path, instead(lambda data: data.replace(b"/bin/sh", b"/bin/ls")))


@case(ImageInvalid, "layer sha256:.*digest")
def wrong_layer(scene: Scene) -> None:
    """Another layer than its digest says."""
    scene.script(scene.image.layer_paths[1], instead(lambda data: data[:-9] + b"!" + data[-8:]))


@case(ImageInvalid, "config.*(digest|diff_id|says)|unpacks to")
def wrong_diff_id(scene: Scene) -> str:
    """A config that tells lies about what the layers unpack to."""
    config = json.dumps(config_of([b"something else"])).encode()
    return scene.registry.publish(LOWER, repository="lie", config=config).reference


@case(ImageInvalid, "bytes")
def larger_than_stated(scene: Scene) -> str:
    """A layer larger than the manifest states."""
    return scene.lie(lambda manifest: manifest["layers"][0].update(size=1000))


@case(ImageInvalid, "bytes")
def smaller_than_stated(scene: Scene) -> str:
    """A layer smaller than the manifest states."""
    return scene.lie(lambda manifest: manifest["layers"][0].update(size=manifest["layers"][0]["size"] + 1000))


@case(ImagePullFailed, "bytes", TRIES_S)
def chunked_and_smaller(scene: Scene) -> str:
    """A layer smaller than the manifest states, in chunks."""
    reference = scene.lie(lambda manifest: manifest["layers"][0].update(size=manifest["layers"][0]["size"] + 1000))
    data = scene.registry.blobs[scene.image.layer_paths[0].rpartition("/")[2]]
    chunks = f"{len(data):x}\r\n".encode() + data + b"\r\n0\r\n\r\n"
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    scene.script(scene.image.layer_paths[0].replace("/app/", "/lie/"), raw(head + chunks))
    return reference


@case(ImageInvalid, "config.*bytes")
def config_size(scene: Scene) -> str:
    """A config of another size than stated."""
    return scene.lie(lambda manifest: manifest["config"].update(size=1))


@case(ImageInvalid, "config.*bytes")
def huge_config(scene: Scene) -> str:
    """A config that is stated, truly, to have 30 MB."""
    return scene.registry.publish(LOWER, repository="lie", config=b" " * 30_000_000).reference


@case(ImageInvalid, "bytes|size")
def negative_size(scene: Scene) -> str:
    """A layer of -1 bytes."""
    return scene.lie(lambda manifest: manifest["layers"][0].update(size=-1))


@case(ImageInvalid, "bytes|size|int")
def absurd_size(scene: Scene) -> str:
    """A layer of 1e30 bytes."""
    return scene.lie(lambda manifest: manifest["layers"][0].update(size=1e30))


@case(ImageInvalid, "index|manifest|digest")
def index_of_itself(scene: Scene) -> str:
    """An index that points at itself."""
    claimed = digest(b"anything")
    entry = {"mediaType": INDEX, "digest": claimed, "size": 1, "platform": _platform()}
    data = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]}).encode()
    scene.registry.manifests["app", claimed] = (INDEX, data)
    return scene.registry.publish_document(data, INDEX).reference


@case(ImageInvalid, "deep|index|nest")
def deep_index(scene: Scene) -> str:
    """An index of an index of an index, and so on."""
    child, kind = b"{}", MANIFEST
    for _ in range(40):
        entry = {"mediaType": kind, "digest": digest(child), "size": len(child), "platform": _platform()}
        child, kind = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]}).encode(), INDEX
        made = scene.registry.publish_document(child, INDEX)
    return made.reference


@case(ImageInvalid, "layers")
def many_layers(scene: Scene) -> str:
    """A manifest of 1,000 layers."""
    return scene.lie(lambda manifest: manifest.update(layers=manifest["layers"] * 500))


@case(ImageInvalid, "layers")
def no_layers(scene: Scene) -> str:
    """An image without layers."""
    return scene.registry.publish(repository="lie").reference


@case(ImageInvalid, "schema|v1|manifest")
def schema_1(scene: Scene) -> str:
    """A manifest of schema 1."""
    kind = "application/vnd.docker.distribution.manifest.v1+prettyjws"
    value = {"schemaVersion": 1, "name": "app", "tag": "v1", "architecture": "amd64", "fsLayers": [], "history": []}
    return scene.document(value, kind)


@case(ImageInvalid, "helm")
def helm_chart(scene: Scene) -> str:
    """A helm chart."""
    return scene.lie(lambda manifest: manifest["config"].update(mediaType="application/vnd.cncf.helm.config.v1+json"))


@case(ImageInvalid, "manifest|empty")
def artifact(scene: Scene) -> str:
    """An artifact that is no image."""
    return scene.lie(lambda manifest: manifest["config"].update(mediaType="application/vnd.oci.empty.v1+json"))


@case(ImageInvalid, "encrypted")
def encrypted(scene: Scene) -> str:
    """An encrypted layer."""
    return scene.lie(lambda manifest: manifest["layers"][1].update(mediaType=f"{LAYER}+gzip+encrypted"))


@case(ImageInvalid, "foreign")
def foreign(scene: Scene) -> str:
    """A foreign layer, with an address of its own."""
    kind = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
    url = f"{scene.other.url}/layer"
    scene.after(lambda: scene.nothing_asked(scene.other))
    return scene.lie(lambda manifest: manifest["layers"][0].update(mediaType=kind, urls=[url]))


def _platform() -> dict[str, str]:
    here = this_platform()
    return {"os": here.os, "architecture": here.architecture}

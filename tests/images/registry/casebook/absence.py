"""Cases of what is not there: repositories, tags, layers, platforms; and of servers that refuse or have faults."""

from __future__ import annotations

import email.utils
import time

from rik.images.errors import ImageError, ImageNotFound, ImagePullFailed
from tests.images.build import INDEX, MANIFEST, digest
from tests.images.registry.casebook.case import TRIES_S, case
from tests.images.registry.hostile import (
    problem,
    raw,
    repeat,
    status,
)
from tests.images.registry.scene import Scene


@case(ImageNotFound, "nowhere")
def no_repository(scene: Scene) -> str:
    """404: no such repository."""
    scene.script("/v2/nowhere/manifests/v1", status(404, problem("NAME_UNKNOWN", "repository name not known")))
    return f"{scene.registry.address}/nowhere:v1"


@case(ImageNotFound, "v9")
def no_tag(scene: Scene) -> str:
    """404: no such tag."""
    return f"{scene.registry.address}/app:v9"


@case(ImageNotFound, "404|no ")
def no_words(scene: Scene) -> None:
    """404 as a web page."""
    scene.script(scene.image.manifest_path, status(404, b"<html>" + b"x" * 100_000, Content_Type="text/html"))


@case(ImageError, "layer sha256:")
def no_layer(scene: Scene) -> None:
    """404: a layer is missing."""
    scene.script(scene.image.layer_paths[1], status(404, problem("BLOB_UNKNOWN", "blob unknown to registry")))


@case(ImageError, "config")
def no_config(scene: Scene) -> None:
    """404: the config is missing."""
    scene.script(scene.image.config_path, status(404))


@case(ImageNotFound, "s390x")
def no_platform(scene: Scene) -> str:
    """An index without this platform."""
    entry = {"mediaType": MANIFEST, "digest": digest(b"x"), "size": 1}
    entry |= {"platform": {"os": "linux", "architecture": "s390x"}}
    return scene.document({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]}, INDEX)


@case(ImagePullFailed, "429", TRIES_S)
def always_429(scene: Scene) -> None:
    """429 for ever."""
    scene.script(scene.image.manifest_path, status(429, problem("TOOMANYREQUESTS", "slow down"), Retry_After="0"))
    scene.after(lambda: scene.count_requests_at_most(20))


@case(ImagePullFailed, "429", TRIES_S)
def retry_after_a_day(scene: Scene) -> None:
    """429 with a Retry-After of a day."""
    scene.script(scene.image.manifest_path, status(429, Retry_After="86400"))


@case(ImagePullFailed, "503", TRIES_S)
def retry_after_nonsense(scene: Scene) -> None:
    """503 with a Retry-After of nonsense."""
    scene.script(
        scene.image.manifest_path,
        status(503, Retry_After="-1"),
        status(503, Retry_After="9" * 400),
        status(503, Retry_After="soon"),
    )


@case(ImagePullFailed, "503", TRIES_S)
def retry_after_a_date(scene: Scene) -> None:
    """503 with the date of tomorrow in Retry-After."""
    tomorrow = email.utils.formatdate(time.time() + 86400, usegmt=True)
    scene.script(scene.image.manifest_path, status(503, Retry_After=tomorrow))


@case(ImagePullFailed, "500", TRIES_S)
def always_500(scene: Scene) -> None:
    """500 for ever."""
    scene.script(scene.image.manifest_path, status(500, b"\x1b[31moops\x1b]0;title\x07"))
    scene.after(lambda: scene.count_requests_at_most(20))


@case(ImagePullFailed, "502", TRIES_S)
def always_502_layer(scene: Scene) -> None:
    """502 for a layer, for ever."""
    scene.script(scene.image.layer_paths[0], status(502, b"<html>bad gateway</html>"))
    scene.after(lambda: scene.count_requests_at_most(40))


@case(ImagePullFailed, "418", TRIES_S)
def unknown_status(scene: Scene) -> None:
    """A status that makes no sense."""
    scene.script(scene.image.manifest_path, status(418))


@case(ImageError, "", TRIES_S)
def not_modified(scene: Scene) -> None:
    """304 to a question without a condition."""
    scene.script(scene.image.manifest_path, raw(b"HTTP/1.1 304 Not Modified\r\n\r\n"))


@case(ImagePullFailed, "500", TRIES_S)
def endless_error(scene: Scene) -> None:
    """500 with a body that never ends."""
    head = b"HTTP/1.1 500 Oops\r\nContent-Length: 1000000000000\r\n\r\n"
    scene.script(scene.image.manifest_path, repeat(b"x" * 65536, 0, first=head))
    scene.after(lambda: scene.read_at_most(64_000_000))

"""Cases of redirects, certificates, and registries that cannot be reached."""

from __future__ import annotations

import socket

from rik.images.errors import ImageError, ImageInvalid, ImagePullFailed
from tests.images.registry.casebook.case import REFUSED_S, TRIES_S, case
from tests.images.registry.hostile import (
    raw,
    redirect,
    status,
)
from tests.images.registry.scene import Scene


@case(ImagePullFailed, "redirect")
def redirect_loop(scene: Scene) -> None:
    """Redirects that go round in a circle."""
    there = f"{scene.other.url}/round"
    scene.other.script("/round", redirect(f"{scene.registry.url}{scene.image.layer_paths[0]}"))
    scene.script(scene.image.layer_paths[0], redirect(there))
    scene.after(lambda: scene.count_requests_at_most(60))


@case(ImagePullFailed, "redirect")
def redirect_to_ftp(scene: Scene) -> None:
    """A redirect to ftp."""
    scene.script(scene.image.layer_paths[0], redirect("ftp://127.0.0.1/layer"))


@case(ImagePullFailed, "redirect")
def redirect_to_a_file(scene: Scene) -> None:
    """A redirect to a file of this host."""
    scene.script(scene.image.manifest_path, redirect("file:///etc/passwd"))


@case(ImagePullFailed, "redirect|refused|loopback|http")
def redirect_to_plain_http(scene: Scene) -> None:
    """A redirect to plain http on a host that is not this one."""
    scene.script(scene.image.layer_paths[0], redirect("http://registry.invalid/layer"))


@case(ImagePullFailed, "redirect|location")
def redirect_to_nonsense(scene: Scene) -> None:
    """A redirect to something that is no URL."""
    scene.script(scene.image.layer_paths[0], redirect("http://[::1"))


@case(ImagePullFailed, "redirect")
def redirect_to_a_bad_port(scene: Scene) -> None:
    """A redirect to port 99999999."""
    scene.script(scene.image.layer_paths[0], redirect("http://127.0.0.1:99999999/layer"))


@case(ImageError, "redirect|layer sha256:", TRIES_S)
def redirect_to_bytes(scene: Scene) -> None:
    """A redirect to unprintable bytes."""
    scene.script(
        scene.image.layer_paths[0], raw(b"HTTP/1.1 302 Found\r\nLocation: \xff\xfe\x01\r\nContent-Length: 0\r\n\r\n")
    )


@case(ImagePullFailed, "redirect")
def redirect_to_nowhere(scene: Scene) -> None:
    """A redirect without a Location."""
    scene.script(scene.image.layer_paths[0], status(307))


@case(ImagePullFailed, "refused", REFUSED_S)
def refused(scene: Scene) -> str:
    """Nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return f"127.0.0.1:{port}/app:v1"


@case(ImagePullFailed, "name|host|resol|address", REFUSED_S)
def unknown_host(scene: Scene) -> str:
    """A host that does not exist."""
    return "registry.invalid/app:v1"


@case(ImagePullFailed, "", REFUSED_S)
def redirect_to_unknown_host(scene: Scene) -> None:
    """A redirect to a host that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    scene.script(scene.image.layer_paths[0], redirect(f"http://127.0.0.1:{port}/layer"))


@case(ImageInvalid, "no image reference")
def no_reference(scene: Scene) -> str:
    """A reference that is no reference."""
    return f"{scene.registry.address}/App with spaces:v1"

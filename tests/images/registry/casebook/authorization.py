"""Cases of credentials, tokens and challenges."""

from __future__ import annotations

import json

from rik.images.errors import ImageError, ImageUnauthorized
from tests.images.registry.casebook.case import TRIES_S, case, stalls
from tests.images.registry.hostile import (
    TokenServer,
    problem,
    redirect,
    require_basic,
    silence,
    status,
)
from tests.images.registry.scene import Scene


@case(ImageUnauthorized, "401")
def bare_401(scene: Scene) -> None:
    """401 without a challenge."""
    scene.script(scene.image.manifest_path, status(401))


@case(ImageUnauthorized, "401|credentials")
def basic_without_credentials(scene: Scene) -> None:
    """401 that wants Basic, and there are no credentials."""
    require_basic(scene.registry, "user", "secret-of-mine")


@case(ImageUnauthorized, "401|credentials|refused")
def basic_with_wrong_credentials(scene: Scene) -> None:
    """401 that wants Basic, and the credentials are wrong."""
    require_basic(scene.registry, "user", "secret-of-mine")
    scene.login(scene.registry, "user", "a-wrong-secret")
    scene.after(lambda: scene.count_requests_at_most(8))


@case(ImageUnauthorized, "401")
def token_that_does_not_help(scene: Scene) -> None:
    """401 for every token that is given out."""
    TokenServer(scene.registry, scene.registry, uses=0)
    scene.after(lambda: scene.count_requests_at_most(12))


@case(ImageUnauthorized, "403")
def token_server_403(scene: Scene) -> None:
    """The token server says 403."""
    TokenServer(scene.registry, scene.other)
    scene.other.script("/token", status(403, problem("DENIED", "not you")))


@case(ImageUnauthorized, "401")
def token_server_401(scene: Scene) -> None:
    """The token server does not like the credentials."""
    TokenServer(scene.registry, scene.other, secret="user:right")
    scene.login(scene.registry, "user", "a-wrong-secret")


@case(ImageError, "token")
def token_is_garbage(scene: Scene) -> None:
    """The token server answers garbage."""
    TokenServer(scene.registry, scene.other)
    scene.other.script("/token", status(200, b"\x00\xff{{{"))


@case(ImageError, "token")
def token_is_html(scene: Scene) -> None:
    """The token server answers a web page."""
    TokenServer(scene.registry, scene.other)
    scene.other.script("/token", status(200, b"<html>Sign in</html>", Content_Type="text/html"))


@case(ImageError, "token")
def token_is_missing(scene: Scene) -> None:
    """The token server answers JSON without a token."""
    TokenServer(scene.registry, scene.other)
    scene.other.script("/token", status(200, b"{}"))


@case(ImageError, "token")
def token_is_no_header(scene: Scene) -> None:
    """The token holds a line break and a header of its own."""
    TokenServer(scene.registry, scene.other)
    scene.other.script("/token", status(200, json.dumps({"token": "a\r\nX-Evil: 1"}).encode()))
    scene.after(lambda: scene.never_sent("x-evil"))


@case(ImageError, "token")
def token_is_huge(scene: Scene) -> None:
    """The token has 50 MB."""
    TokenServer(scene.registry, scene.other)
    scene.other.script("/token", status(200, json.dumps({"token": "x" * 50_000_000}).encode()))
    scene.after(lambda: scene.read_at_most(16_000_000))


@case(ImageError, "token")
def token_server_is_empty(scene: Scene) -> None:
    """The token server answers nothing at all."""
    TokenServer(scene.registry, scene.other)
    scene.other.script("/token", status(204))


@stalls("token")
def token_server_is_silent(scene: Scene) -> None:
    """The token server never answers."""
    TokenServer(scene.registry, scene.other)
    scene.other.script("/token", silence)


@case(ImageError, "", TRIES_S)
def token_server_redirects(scene: Scene) -> None:
    """The token server redirects to another host, which gets no credentials."""
    TokenServer(scene.registry, scene.registry, secret="user:secret-of-mine")
    scene.login(scene.registry, "user", "secret-of-mine")
    scene.registry.script("/token", redirect(f"{scene.other.url}/token"))
    scene.other.script("/token", status(200, json.dumps({"token": "t"}).encode()))
    scene.after(lambda: scene.no_credentials_at(scene.other))


@case(ImageError, "realm|token|challenge")
def realm_of_another_scheme(scene: Scene) -> None:
    """The realm of the token server is a file."""
    scene.challenge('Bearer realm="file:///etc/passwd",service="x"')


@case(ImageError, "realm|token|challenge|host")
def realm_of_nonsense(scene: Scene) -> None:
    """The realm of the token server is no URL."""
    scene.challenge('Bearer realm="http://[::bad",service="x"')


@case(ImageError, "realm|token|challenge|401")
def realm_of_plain_http(scene: Scene) -> None:
    """The realm of the token server is plain http on another machine."""
    scene.login(scene.registry, "user", "secret-of-mine")
    scene.challenge('Bearer realm="http://tokens.invalid/token",service="x"')


@case(ImageError, "challenge|401|token server")
def challenge_of_nonsense(scene: Scene) -> None:
    """The challenge is 50 KB of quotes and commas."""
    scene.challenge("Bearer " + 'a="\\' * 12_000)


@case(ImageUnauthorized, "Negotiate|challenge|401")
def challenge_of_an_unknown_kind(scene: Scene) -> None:
    """The challenge wants something that nobody has."""
    scene.challenge("Negotiate")


@case(ImageUnauthorized, "403")
def forbidden(scene: Scene) -> None:
    """403."""
    scene.script(scene.image.manifest_path, status(403, problem("DENIED", "requested access is denied")))


@case(ImageUnauthorized, "403")
def forbidden_layer(scene: Scene) -> None:
    """403 for a layer alone."""
    scene.script(scene.image.layer_paths[0], status(403))

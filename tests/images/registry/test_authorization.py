"""Tokens: kept while they are good, renewed once, asked for where it is safe, and with what is known at the time."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import parse_qs

import pytest
import trio

from rik.images.errors import ImagePullFailed, ImageUnauthorized
from rik.images.registry.authorization import MAX_TOKENS, Tokens
from rik.images.registry.credentials import Credential
from tests.images.registry.certificate import self_signed
from tests.images.registry.hostile import (
    Exchange,
    HostileRegistry,
    Request,
    TokenServer,
    basic,
    problem,
    redirect,
    require_basic,
    serving_registry,
    status,
    well,
)
from tests.images.registry.pulling import pull, registries_in
from tests.images.registry.scene import LOWER, Scene

pytestmark = pytest.mark.usefixtures("nothing_stays")

SECRET = "secret-of-mine"


def shown(registry: HostileRegistry, path: str) -> list[str]:
    return [request.headers.get("authorization", "") for request in registry.asked(path)]


async def test_tokens_are_kept(scene: Scene, tmp_path: Path) -> None:
    """A token serves for the next pull too; another store gets its own."""
    tokens = TokenServer(scene.registry, scene.other)
    registries = registries_in(tmp_path)
    for _ in range(3):
        await pull(registries, scene.image.reference)
    assert tokens.issued == 1
    assert "" in shown(scene.registry, scene.image.manifest_path)[:1]
    assert "" not in shown(scene.registry, scene.image.manifest_path)[1:]
    await pull(registries_in(tmp_path), scene.image.reference)
    assert tokens.issued == 2


async def test_tokens_that_are_refused(scene: Scene, tmp_path: Path) -> None:
    """A token that is good for less than was said is renewed, once, in the middle of a pull."""
    tokens = TokenServer(scene.registry, scene.other, uses=2)
    await pull(registries_in(tmp_path), scene.image.reference)
    assert tokens.issued == 2


async def test_a_login_after_a_refusal(scene: Scene, tmp_path: Path) -> None:
    """Credentials that come, change or go take effect at the next pull of the same store."""
    require_basic(scene.registry, "user", SECRET)
    registries = registries_in(tmp_path)
    with pytest.raises(ImageUnauthorized, match=f"none are there for {scene.registry.address}") as caught:
        await pull(registries, scene.image.reference)
    assert f"docker login {scene.registry.address}" in caught.value.next_step
    scene.login(scene.registry, "user", "wrong")
    with pytest.raises(ImageUnauthorized, match=r"credentials of .*config\.json"):
        await pull(registries, scene.image.reference)
    scene.login(scene.registry, "user", SECRET)
    await pull(registries, scene.image.reference)
    (scene.home / ".docker" / "config.json").unlink()
    with pytest.raises(ImageUnauthorized):
        await pull(registries, scene.image.reference)


async def test_basic_is_remembered(scene: Scene, tmp_path: Path) -> None:
    """What got us in is shown at once for the other parts."""
    require_basic(scene.registry, "user", SECRET)
    scene.login(scene.registry, "user", SECRET)
    await pull(registries_in(tmp_path), scene.image.reference)
    assert shown(scene.registry, scene.image.manifest_path) == ["", basic("user", SECRET)]
    assert shown(scene.registry, scene.image.config_path) == [basic("user", SECRET)]


async def test_credentials_wait_for_the_question(scene: Scene, tmp_path: Path) -> None:
    """A registry that asks for nothing is shown nothing."""
    scene.login(scene.registry, "user", SECRET)
    await pull(registries_in(tmp_path), scene.image.reference)
    scene.no_credentials_at(scene.registry)


async def test_what_the_token_server_is_asked(scene: Scene, tmp_path: Path) -> None:
    """Service and scope as the registry names them, beside what its realm has already, and the account."""
    scene.login(scene.registry, "user", SECRET)

    def guard(request: object) -> list[tuple[str, str]]:
        challenge = f'Bearer realm="{scene.other.url}/token?a=b",service="s p",scope="repository:app:pull"'
        return [("WWW-Authenticate", challenge)]

    scene.registry.guard = guard
    scene.other.script("/token", status(401, problem("DENIED", "no")))
    with pytest.raises(ImageUnauthorized, match="DENIED: no"):
        await pull(registries_in(tmp_path), scene.image.reference)
    (asked,) = scene.other.asked("/token")
    query = {"a": ["b"], "service": ["s p"], "scope": ["repository:app:pull"], "account": ["user"]}
    assert parse_qs(asked.query) == query
    assert asked.headers["authorization"] == basic("user", SECRET)


async def test_a_token_without_an_end(scene: Scene, tmp_path: Path) -> None:
    """A token server need not say how long a token is good for, and may call it `access_token`."""
    token = "t0ken"
    scene.registry.guard = lambda request: (
        None
        if request.headers.get("authorization") == f"Bearer {token}"
        else [("WWW-Authenticate", f'Bearer realm="{scene.other.url}/token"')]
    )
    scene.other.script("/token", status(200, json.dumps({"access_token": token}).encode()))
    await pull(registries_in(tmp_path), scene.image.reference)
    (asked,) = scene.other.asked("/token")
    assert parse_qs(asked.query) == {"scope": ["repository:app:pull"]}


async def test_both_are_offered(scene: Scene, tmp_path: Path) -> None:
    """Of Basic and Bearer the token is preferred: the password goes to fewer places."""
    TokenServer(scene.registry, scene.other, secret=f"user:{SECRET}")
    scene.login(scene.registry, "user", SECRET)
    inner = scene.registry.guard
    scene.registry.guard = lambda request: (
        (found := inner(request)) and [("WWW-Authenticate", f'Basic realm="a, b", {found[0][1]}')]
    )
    await pull(registries_in(tmp_path), scene.image.reference)
    assert not [value for value in shown(scene.registry, scene.image.manifest_path) if value.startswith("Basic")]


async def test_a_challenge_from_elsewhere(scene: Scene, tmp_path: Path) -> None:
    """Who stands behind a redirect is not shown credentials, though he asks."""
    scene.login(scene.registry, "user", SECRET)
    scene.login(scene.other, "user", SECRET)
    require_basic(scene.registry, "user", SECRET)
    there = scene.other.publish(LOWER)
    require_basic(scene.other, "user", SECRET)
    scene.registry.script(scene.image.layer_paths[0], redirect(f"{scene.other.url}{there.layer_paths[0]}"))
    with pytest.raises(ImageUnauthorized, match="redirects to"):
        await pull(registries_in(tmp_path), scene.image.reference)
    scene.no_credentials_at(scene.other)


async def test_realms_of_plain_http(scene: Scene, tmp_path: Path) -> None:
    """A registry of https cannot have its credentials sent by plain http, not even to this machine."""
    context, certificate = self_signed(tmp_path)
    async with serving_registry(tls=context) as registry:
        image = registry.publish(LOWER)
        TokenServer(registry, scene.other, secret=f"user:{SECRET}")
        scene.login(registry, "user", SECRET)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SSL_CERT_FILE", str(certificate))
            registries = registries_in(tmp_path)
            registry.guard = lambda request: [("WWW-Authenticate", 'Bearer realm="http://tokens.invalid/"')]
            with pytest.raises(ImagePullFailed, match="https only"):
                await pull(registries, image.reference)
        scene.nothing_asked(scene.other)


@pytest.mark.parametrize("kind", ["basic", "token", "token server"])
async def test_secrets_that_are_repeated(scene: Scene, tmp_path: Path, kind: str) -> None:
    """What a server repeats of the credentials it was shown is in no message, even when the quotation is cut short."""
    secret = SECRET * 40
    scene.login(scene.registry, "user", secret)

    async def repeat(exchange: Exchange) -> None:
        value = exchange.request.headers.get("authorization", "")
        known = base64.b64decode(value.partition(" ")[2]).decode() if value.startswith("Basic ") else ""
        await exchange.answer(403 if value else 401, problem("DENIED", f"{value} {known}"), challenge)

    challenge: Sequence[tuple[str, str]] = [("WWW-Authenticate", 'Basic realm="tests"')]
    if kind != "basic":
        TokenServer(scene.registry, scene.other)
        challenge = scene.registry.guard(Request("GET", "/v2/", "", {}, b"", 0)) or []
    if kind == "token server":
        scene.other.script("/token", repeat)
    else:
        scene.registry.script(scene.image.manifest_path, repeat)
    with pytest.raises(ImageUnauthorized) as caught:
        await pull(registries_in(tmp_path), scene.image.reference)
    message = str(caught.value)
    assert "(concealed)" in message
    assert SECRET not in message
    for value in [*shown(scene.registry, scene.image.manifest_path), *shown(scene.other, "/token")]:
        assert not value or value.partition(" ")[2][:20] not in message


async def test_problems_with_files_are_told(scene: Scene, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file of credentials that cannot be used is no matter for a public image, and named when it is one."""
    scene.docker_config(credsStore="is-not-there")
    await pull(registries_in(tmp_path), scene.image.reference)
    assert "docker-credential-is-not-there" in caplog.text
    require_basic(scene.registry, "user", SECRET)
    with pytest.raises(ImageUnauthorized, match="docker-credential-is-not-there is not in"):
        await pull(registries_in(tmp_path), scene.image.reference)


async def test_many_at_once(scene: Scene, tmp_path: Path) -> None:
    """Layers that meet the end of their token together renew it once."""
    image = scene.registry.publish(*([LOWER] + [b"\0" * 512 * (2 + n) for n in range(6)]), repository="many")
    tokens = TokenServer(scene.registry, scene.other)
    gone: list[str] = []
    guard = scene.registry.guard

    async def once(exchange: Exchange) -> None:
        if not gone:
            gone.append(exchange.request.headers["authorization"])
        await well(exchange)

    scene.registry.script(image.config_path, once)
    scene.registry.guard = lambda request: (
        [("WWW-Authenticate", f'Bearer realm="{scene.other.url}/token"')]
        if request.headers.get("authorization") in gone
        and "/blobs/" in request.path
        and len(gone) > 0
        and request.path != image.config_path
        else guard(request)
    )
    await pull(registries_in(tmp_path, downloads_at_once=7), image.reference)
    assert tokens.issued == 2


async def test_tokens_run_out(autojump_clock: object) -> None:
    """A token is forgotten when its time is over, and their number is bounded."""
    tokens = Tokens()
    me = Credential("me", SECRET)
    tokens.keep("https://a/v2", "app", me, "Bearer t", 60)
    assert tokens.get("https://a/v2", "app", me) == "Bearer t"
    assert tokens.get("https://a/v2", "app", None) is None
    assert tokens.get("https://a/v2", "other", me) is None
    await trio.sleep(61)
    assert tokens.get("https://a/v2", "app", me) is None
    for number in range(2 * MAX_TOKENS):
        tokens.keep("https://a/v2", str(number), None, "t", 60)
    assert len(tokens._kept) <= MAX_TOKENS
    assert not re.search(SECRET, repr(tokens._kept))

"""HTTP as pulls need it: bounded, redirected by hand, and each failure in words."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

import rik
from rik.images.errors import ImageInvalid
from rik.images.registry.attempts import TransientFailure
from rik.images.registry.failures import Refusal
from rik.images.registry.tls import TlsContexts
from rik.images.registry.transport import MAX_ERROR_BYTES, MAX_REDIRECTS, Transport
from tests.images.registry.certificate import self_signed
from tests.images.registry.hostile import drip, redirect, serving_registry, status
from tests.images.registry.scene import Scene

pytestmark = pytest.mark.usefixtures("nothing_stays")

LIMIT_S = 10.0


def transport(*insecure: str, idle_s: float = 5.0) -> Transport:
    return Transport(TlsContexts([]), idle_s=idle_s, idle_bytes=100, insecure=insecure, environment={})


@pytest.fixture
async def quick() -> AsyncIterator[Transport]:
    async with transport() as made:
        yield made


async def test_a_document(scene: Scene, quick: Transport) -> None:
    """An answer comes whole, and the question says who asks."""
    scene.other.script("/x", status(200, b"body", X_Y="z"))
    document = await quick.document(f"{scene.other.url}/x", {"Accept": "a/b"}, limit=4)
    assert (document.status, document.body, document.headers["x-y"]) == (200, b"body", "z")
    (asked,) = scene.other.requests
    assert asked.headers["user-agent"] == f"rik/{rik.__version__}"
    assert (asked.headers["accept-encoding"], asked.headers["accept"]) == ("identity", "a/b")
    with pytest.raises(Refusal, match="more than 3 bytes") as caught:
        await quick.document(f"{scene.other.url}/x", {}, limit=3)
    assert caught.value.kind is ImageInvalid


async def test_errors_are_cut_short(scene: Scene, quick: Transport) -> None:
    """Of an answer that is no success only the beginning is read."""
    scene.other.script("/x", status(500, b"x" * 10_000_000))
    document = await quick.document(f"{scene.other.url}/x", {}, limit=1)
    assert MAX_ERROR_BYTES < len(document.body) < 4 * MAX_ERROR_BYTES
    scene.read_at_most(8_000_000)


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
async def test_redirects(scene: Scene, quick: Transport, code: int) -> None:
    """As many redirects as there may be are followed, relative ones too; one more is refused."""
    for number in range(MAX_REDIRECTS + 1):
        scene.other.script(f"/{number + 1}", redirect(f"{number}", code))
    scene.other.script("/0", status(200, b"there"))
    with trio.fail_after(LIMIT_S):
        assert (await quick.document(f"{scene.other.url}/{MAX_REDIRECTS}", {}, limit=9)).body == b"there"
        with pytest.raises(Refusal, match=f"more than {MAX_REDIRECTS} times"):
            await quick.document(f"{scene.other.url}/{MAX_REDIRECTS + 1}", {}, limit=9)


async def test_what_a_redirect_takes_along(scene: Scene, quick: Transport) -> None:
    """Authorization stays with its origin; all else goes along; names and passwords in a Location do not."""
    address = scene.other.address
    scene.registry.script("/x", redirect("/same"))
    scene.registry.script("/same", redirect(f"http://user:secret-of-mine@{address}/y"))
    scene.other.script("/y", redirect(f"{scene.registry.url}/z"))
    scene.registry.script("/z", status(200))
    await quick.document(f"{scene.registry.url}/x", {"Authorization": "Bearer t", "Range": "bytes=5-"}, limit=9)
    shown = [request.headers.get("authorization") for request in scene.registry.requests]
    assert shown == ["Bearer t", "Bearer t", None]
    (away,) = scene.other.requests
    assert "authorization" not in away.headers and away.headers["range"] == "bytes=5-"


async def test_forms_are_not_redirected(scene: Scene, quick: Transport) -> None:
    """A secret in a form goes where it was meant to go, and nowhere else."""
    scene.registry.script("/x", redirect(f"{scene.other.url}/y"))
    document = await quick.document(f"{scene.registry.url}/x", {}, limit=9, form={"refresh_token": "secret"})
    assert document.status == 307
    scene.nothing_asked(scene.other)


async def test_from_http_to_https(scene: Scene, tmp_path: Path) -> None:
    """A redirect may lead from http to https, where the certificate counts."""
    context, _ = self_signed(tmp_path)
    async with serving_registry(tls=context) as there:
        there.script("/y", status(200, b"there"))
        scene.registry.script("/x", redirect(f"{there.url}/y"))
        async with transport(there.address) as trusting, transport() as careful:
            assert (await trusting.document(f"{scene.registry.url}/x", {}, limit=9)).body == b"there"
            with pytest.raises(Refusal, match="not trusted"):
                await careful.document(f"{scene.registry.url}/x", {}, limit=9)


async def test_cookies_are_not_kept(scene: Scene, quick: Transport) -> None:
    """Nothing is remembered for a server."""
    scene.other.script("/x", status(200, Set_Cookie="a=b; Path=/"))
    for _ in range(2):
        await quick.document(f"{scene.other.url}/x", {}, limit=9)
    scene.never_sent("cookie")


async def test_a_slow_document(scene: Scene) -> None:
    """A document that comes on, slowly, is waited for; one that hardly does is not."""
    path = scene.image.manifest_path
    async with transport(idle_s=0.6) as impatient:
        scene.script(path, drip(100, 0.2))
        with trio.fail_after(LIMIT_S):
            assert (await impatient.document(f"{scene.registry.url}{path}", {}, limit=9999)).status == 200
            scene.script(path, drip(1, 0.2))
            with pytest.raises(Refusal, match="stalled"):
                await impatient.document(f"{scene.registry.url}{path}", {}, limit=9999)


async def test_connections_are_used_again(scene: Scene, quick: Transport) -> None:
    """Several questions go over one connection, after errors too."""
    scene.other.script("/x", status(404, b"no"), status(200))
    for _ in range(3):
        await quick.document(f"{scene.other.url}/x", {}, limit=9)
    assert scene.other.connections == 1


@pytest.mark.parametrize("environment", [{"http_proxy": "socks9://user:secret@a"}, {"http_proxy": "http://a:secret"}])
async def test_proxies_that_are_none(environment: dict[str, str]) -> None:
    """A proxy that makes no sense is said to, without repeating what may be a password."""
    made = Transport(TlsContexts([]), idle_s=1, idle_bytes=1, insecure=("a.invalid",), environment=environment)
    async with made as broken:
        with pytest.raises(Refusal, match="proxy") as caught:
            await broken.document("http://a.invalid/", {}, limit=1)
    assert "secret" not in caught.value.cause


async def test_a_proxy_that_is_down() -> None:
    """It is the proxy that is named then, without its password."""
    environment = {"https_proxy": "http://user:secret@127.0.0.1:1"}
    async with Transport(TlsContexts([]), idle_s=1, idle_bytes=1, insecure=(), environment=environment) as proxied:
        with pytest.raises(TransientFailure, match=r"the proxy 127\.0\.0\.1:1: Connection refused") as caught:
            await proxied.document("https://a.invalid/", {}, limit=1)
    assert caught.value.unreachable and "secret" not in caught.value.cause + caught.value.next_step
    assert caught.value.next_step.startswith("check that the proxy 127.0.0.1:1 runs")

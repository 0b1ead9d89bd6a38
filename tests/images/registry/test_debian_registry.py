"""With Debian's `docker-registry`: plain, with a password, and behind a certificate that nobody vouches for."""

from __future__ import annotations

import base64
import json
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from rik.images.errors import ImageNotFound, ImagePullFailed, ImageUnauthorized
from rik.images.manifest import this_platform
from rik.images.reference import RegistryReference, parse_reference
from rik.images.registry.downloads import Body
from rik.images.source import Layer
from tests.conftest import Require
from tests.images.build import digest, layout
from tests.images.registry.certificate import self_signed
from tests.images.registry.pulling import LIMIT_S, pull, registries_in
from tests.images.registry.scene import LOWER, UPPER
from tests.registry import PASSWORD, USER, Registry, running_registry

pytestmark = pytest.mark.usefixtures("nothing_stays", "home")


@pytest.fixture(scope="module", params=["open", "password"])
def registry(
    request: pytest.FixtureRequest, require: Require, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Registry]:
    """It holds `org/app:v1`."""
    for program in ("docker-registry", "skopeo"):
        require(program, reason="a real registry is pulled from")
    folder = tmp_path_factory.mktemp("registry")
    layout(folder / "image", LOWER, UPPER, tag="v1")
    with running_registry(folder, has_password=request.param == "password") as registry:
        registry.push(f"oci:{folder}/image:v1", "org/app:v1")
        yield registry


def log_in(home: Path, host: str, password: str = PASSWORD) -> None:
    (home / ".docker").mkdir(exist_ok=True)
    secret = base64.b64encode(f"{USER}:{password}".encode()).decode()
    (home / ".docker" / "config.json").write_text(json.dumps({"auths": {host: {"auth": secret}}}))


@asynccontextmanager
async def behind_tls(port: int, context: ssl.SSLContext) -> AsyncIterator[str]:
    """The same registry by https; its address."""

    async def serve(outer: trio.SSLStream[trio.SocketStream]) -> None:
        try:
            async with outer, await trio.open_tcp_stream("127.0.0.1", port) as inner, trio.open_nursery() as nursery:
                nursery.start_soon(copy, outer, inner, nursery.cancel_scope)
                nursery.start_soon(copy, inner, outer, nursery.cancel_scope)
        except* (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # who does not like the certificate goes

    async def copy(source: trio.abc.ReceiveStream, target: trio.abc.SendStream, scope: trio.CancelScope) -> None:
        async for data in source:
            await target.send_all(data)
        scope.cancel()

    listeners = await trio.open_ssl_over_tcp_listeners(0, context, host="127.0.0.1", https_compatible=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(trio.serve_listeners, serve, listeners))
        yield f"127.0.0.1:{listeners[0].transport_listener.socket.getsockname()[1]}"  # type: ignore[attr-defined]
        nursery.cancel_scope.cancel()


async def test_by_tag_and_by_digest(registry: Registry, home: Path, tmp_path: Path) -> None:
    """An image comes by its tag, and by the digest it had there, with the bytes its digests say."""
    log_in(home, registry.host)
    registries = registries_in(tmp_path)
    resolved, layers = await pull(registries, f"{registry.host}/org/app:v1")
    assert [digest(layer) for layer in layers] == [layer.digest for layer in resolved.layers]
    again, _ = await pull(registries, f"{registry.host}/org/app@{resolved.digest}")
    assert again == resolved


async def test_passwords(registry: Registry, home: Path, tmp_path: Path) -> None:
    """Without the password, or with a wrong one, nothing is had, and nothing is told about it."""
    if not registry._has_password:
        return
    registries = registries_in(tmp_path)
    for password in (None, "wrong horse"):
        if password is not None:
            log_in(home, registry.host, password)
        with pytest.raises(ImageUnauthorized) as caught:
            await pull(registries, f"{registry.host}/org/app:v1")
        assert registry.host in caught.value.message and "docker login" in caught.value.next_step
        assert "horse" not in f"{caught.value}"


@pytest.mark.parametrize("name", ["org/app:v9", "org/nowhere:v1", f"org/app@sha256:{'0' * 64}"])
async def test_what_is_not_there(registry: Registry, home: Path, tmp_path: Path, name: str) -> None:
    """A tag, a repository or a digest that it does not have is said in its own words."""
    log_in(home, registry.host)
    with pytest.raises(ImageNotFound, match=r"404 Not Found .*(?i:unknown)"):
        await pull(registries_in(tmp_path), f"{registry.host}/{name}")


async def test_https(registry: Registry, home: Path, tmp_path: Path) -> None:
    """By https with a certificate of its own making it must be declared insecure; the password serves there too."""
    context, _ = self_signed(tmp_path)
    async with behind_tls(registry.port, context) as host:
        log_in(home, host)
        with pytest.raises(ImagePullFailed, match=r"certificate of .* is not trusted") as caught:
            await pull(registries_in(tmp_path), f"{host}/org/app:v1")
        assert f"--insecure-registry {host}" in caught.value.next_step
        resolved, layers = await pull(registries_in(tmp_path, insecure_registries=(host,)), f"{host}/org/app:v1")
        assert [digest(layer) for layer in layers] == [layer.digest for layer in resolved.layers]


async def test_from_the_middle(registry: Registry, home: Path, tmp_path: Path) -> None:
    """It goes on in the middle of a layer, where it is asked to."""
    log_in(home, registry.host)
    registries = registries_in(tmp_path)
    reference = parse_reference(f"{registry.host}/org/app:v1")
    assert isinstance(reference, RegistryReference)
    source = registries.source(reference, this_platform())
    _, whole = await pull(registries, str(reference))
    with trio.fail_after(LIMIT_S):
        layer = (await source.resolve()).layers[0]
        async with source._open_clients() as clients, clients[-1].layer(layer, 1000) as body:  # type: ignore[attr-defined]
            assert isinstance(layer, Layer) and isinstance(body, Body)
            assert body.start == 1000
            assert b"".join([chunk async for chunk in body.chunks]) == whole[0][1000:]

"""With registries that mean well, or stumble and recover: the image comes, by as few questions as it takes."""

from __future__ import annotations

import gzip
import json
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import zstandard

from rik.images.errors import ImageError, ImageNotFound
from rik.images.manifest import this_platform
from rik.images.reference import parse_reference
from rik.images.store import Image, ImageStore
from rik.linux.idmap import IdMap, Unavailable
from rik.model.instance import Progress
from tests.images.build import INDEX, LAYER, MANIFEST, config_of, file, tar
from tests.images.registry.certificate import self_signed
from tests.images.registry.conftest import half_made, store_in
from tests.images.registry.hostile import (
    Behaviour,
    Exchange,
    HostileRegistry,
    Published,
    TokenServer,
    cut,
    drip,
    instead,
    raw,
    require_basic,
    serving_registry,
    silence,
    status,
    well,
)
from tests.images.registry.scene import LOWER, UPPER, Scene

pytestmark = [
    pytest.mark.require("user-namespaces", reason="layers are unpacked in one"),
    pytest.mark.usefixtures("nothing_stays"),
]

LIMIT_S = 15.0


async def pull(store: ImageStore, image: Published | str, **options: Any) -> Image:
    with trio.fail_after(LIMIT_S):
        return await store.ensure(parse_reference(image if isinstance(image, str) else image.reference), **options)


def ranges(registry: HostileRegistry, path: str) -> list[str]:
    """What was asked for of a path, request by request: "" is all of it."""
    return [request.headers.get("range", "") for request in registry.asked(path)]


# -- who asks ----------------------------------------------------------------------------------------------------------


async def test_anonymous_token(store: ImageStore, scene: Scene) -> None:
    """A token is fetched once, with service and scope, and serves for the whole pull."""
    tokens = TokenServer(scene.registry, scene.other)
    await pull(store, scene.image)
    assert tokens.issued == 1
    (asked,) = scene.other.asked("/token")
    assert "service=tests" in asked.query and "scope=repository" in asked.query
    assert "authorization" not in asked.headers


async def test_basic(store: ImageStore, scene: Scene) -> None:
    """User and password come from config.json."""
    require_basic(scene.registry, "user", "secret-of-mine")
    scene.login(scene.registry, "user", "secret-of-mine")
    assert (await pull(store, scene.image)).digest == scene.image.digest


async def test_token_for_a_user(store: ImageStore, scene: Scene) -> None:
    """The token server gets the credentials, the registry only the token."""
    TokenServer(scene.registry, scene.other, secret="user:secret-of-mine")
    scene.login(scene.registry, "user", "secret-of-mine")
    await pull(store, scene.image)
    assert not [r for r in scene.registry.requests if r.headers.get("authorization", "").startswith("Basic")]


async def test_identity_token(store: ImageStore, scene: Scene) -> None:
    """An identity token is exchanged for one of the registry's."""
    TokenServer(scene.registry, scene.other, secret="identity-of-mine")
    scene.docker_config({scene.registry.address: {"identitytoken": "identity-of-mine"}})
    await pull(store, scene.image)
    assert [request.method for request in scene.other.asked("/token")] == ["POST"]


async def test_credential_helper(
    store: ImageStore, scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A credential helper in PATH is asked for this registry."""
    require_basic(scene.registry, "helped", "secret-of-mine")
    helper = tmp_path / "docker-credential-tests"
    answer = json.dumps({"ServerURL": scene.registry.address, "Username": "helped", "Secret": "secret-of-mine"})
    helper.write_text(
        f"#!/bin/sh\nread server\ntest \"$1 $server\" = 'get {scene.registry.address}' && echo '{answer}'\n"
    )
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    scene.docker_config(credHelpers={scene.registry.address: "tests"})
    assert (await pull(store, scene.image)).digest == scene.image.digest


async def test_a_token_that_expires(store: ImageStore, scene: Scene) -> None:
    """A token that runs out in the middle of a pull is replaced by another."""
    tokens = TokenServer(scene.registry, scene.registry, uses=2)
    assert (await pull(store, scene.image)).digest == scene.image.digest
    assert 2 <= tokens.issued <= 8


# -- as few questions as it takes --------------------------------------------------------------------------------------


async def test_twenty_at_once(store: ImageStore, scene: Scene) -> None:
    """Twenty who want one image cause one pull: one manifest, one config, every layer once; all see its progress."""
    scene.registry.blob_delay_s = 0.2
    seen: dict[int, list[Progress]] = {}
    images: list[Image] = []

    async def ensure(number: int) -> None:
        images.append(await pull(store, scene.image, progress=seen.setdefault(number, []).append))

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(ensure, number)
    assert len(images) == 20 and len({image.digest for image in images}) == 1
    for path in (scene.image.config_path, *scene.image.layer_paths):
        assert [request.method for request in scene.registry.asked(path)] == ["GET"]
    manifests = scene.registry.asked(scene.image.manifest_path, scene.image.digest_path)
    assert [request.method for request in manifests].count("GET") == 1 and len(manifests) <= 2
    assert all(any(progress.step == "pull" for progress in told) for told in seen.values()) and len(seen) == 20
    assert half_made_besides_layers(store) == []


def half_made_besides_layers(store: ImageStore) -> list[str]:
    """Left-overs of a successful pull."""
    return [name for name in half_made(store) if name.startswith(("downloads", "leases")) or "tmp-" in name]


async def test_what_is_here_is_not_asked_for(store: ImageStore, scene: Scene) -> None:
    """An image that is here needs no network; `refresh` asks for its manifest, and for nothing else."""
    await pull(store, scene.image)
    count = len(scene.registry.requests)
    assert (await pull(store, scene.image)).cached
    assert len(scene.registry.requests) == count
    await pull(store, scene.image, refresh=True)
    paths = {request.path for request in scene.registry.requests[count:]}
    assert paths <= {scene.image.manifest_path, scene.image.digest_path, "/v2/"} and paths


async def test_a_tag_that_moves(store: ImageStore, scene: Scene) -> None:
    """A moved tag is noticed when asked to; only what is new comes over the wire."""
    first = await pull(store, scene.image)
    moved = scene.registry.publish(LOWER, tar(file("new", b"new")))
    assert (await pull(store, scene.image)).digest == first.digest
    second = await pull(store, moved, refresh=True)
    assert second.digest == moved.digest and second.pulled_layers == 1
    assert len(scene.registry.asked(moved.layer_paths[0])) == 1


async def test_layers_at_once(workspace: Path, detected_idmap: IdMap | Unavailable, scene: Scene) -> None:
    """Layers come several at a time, never more than the setting says, over all pulls together."""
    store = store_in(workspace / "images", detected_idmap, downloads_at_once=3)
    scene.registry.blob_delay_s = 0.05
    images = [
        scene.registry.publish(
            *(tar(file(f"{name}{number}", os.urandom(2000))) for number in range(8)), repository=name
        )
        for name in ("one", "two")
    ]
    async with trio.open_nursery() as nursery:
        for image in images:
            nursery.start_soon(pull, store, image)
    assert scene.registry.most_blobs_at_once == 3


async def test_a_layer_of_two_images(store: ImageStore, scene: Scene) -> None:
    """Two images that are pulled at once share the layer that both have."""
    scene.registry.blob_delay_s = 0.2
    others = [scene.registry.publish(LOWER, tar(file(name)), repository="app", tag=name) for name in ("a", "b")]
    async with trio.open_nursery() as nursery:
        for image in others:
            nursery.start_soon(pull, store, image)
    assert len(scene.registry.asked(scene.image.layer_paths[0])) == 1


async def test_one_layer_twice(store: ImageStore, scene: Scene) -> None:
    """An image that has one layer several times, as empty ones are, gets it by one request."""
    image = scene.registry.publish(UPPER, LOWER, UPPER, UPPER, repository="twice")
    assert len((await pull(store, image)).layers) == 4
    assert len(scene.registry.asked(image.layer_paths[0])) == 1


@pytest.mark.parametrize("kind", ["zstd", "plain", "docker"])
async def test_compressions(store: ImageStore, scene: Scene, kind: str) -> None:
    """Layers may be compressed by zstd or not at all, and may be called as Docker calls them."""
    kinds: dict[str, tuple[Callable[[bytes], bytes], str]] = {
        "zstd": (zstandard.ZstdCompressor().compress, f"{LAYER}+zstd"),
        "plain": (bytes, LAYER),
        "docker": (gzip.compress, "application/vnd.docker.image.rootfs.diff.tar.gzip"),
    }
    encode, name = kinds[kind]

    def docker(manifest: dict[str, Any]) -> None:
        if kind == "docker":
            manifest["mediaType"] = "application/vnd.docker.distribution.manifest.v2+json"
            manifest["config"]["mediaType"] = "application/vnd.docker.container.image.v1+json"

    image = scene.registry.publish(LOWER, UPPER, repository=kind, encode=encode, layer_type=name, change=docker)
    made = await pull(store, image)
    assert (made.layers[0] / "bin/sh").stat().st_size == 200_000
    assert made.pulled_layers == 2 and made.pulled_bytes >= 250_000


async def test_by_digest(store: ImageStore, scene: Scene) -> None:
    """A digest is asked for and checked; beside a tag it decides, wherever the tag points now."""
    scene.registry.publish(UPPER)
    for reference in (f"@{scene.image.digest}", f":v1@{scene.image.digest}"):
        made = await pull(store, f"{scene.registry.address}/app{reference}")
        assert made.digest == scene.image.digest
    assert scene.registry.asked(scene.image.manifest_path) == []


async def test_an_index(store: ImageStore, scene: Scene) -> None:
    """Of an index the image for this machine is taken."""
    here = this_platform()
    entries = []
    for architecture, layer in ((here.architecture, LOWER), ("s390x", UPPER)):
        made = scene.registry.publish(layer, repository="many", tag=architecture)
        size = len(scene.registry.manifests["many", made.digest][1])
        platform = {"os": "linux", "architecture": architecture}
        entries.append({"mediaType": MANIFEST, "digest": made.digest, "size": size, "platform": platform})
    index = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries[::-1]}).encode()
    image = await pull(store, scene.registry.publish_document(index, INDEX, "many"))
    assert (image.layers[0] / "bin/sh").exists()


async def test_progress(store: ImageStore, scene: Scene) -> None:
    """Bytes never go back nor beyond the total, layers end complete, and seconds count."""
    told: list[Progress] = []
    scene.script(scene.image.layer_paths[0], drip(20_000, 0.1), well)
    await pull(store, scene.image, progress=told.append)
    pulling = [progress for progress in told if progress.step == "pull" and progress.total]
    assert [p.done for p in pulling] == sorted(p.done for p in pulling)
    size = sum(len(scene.registry.blobs[path.rpartition("/")[2]]) for path in scene.image.layer_paths)
    assert {p.total for p in pulling} == {size} and pulling[-1].done <= size
    assert len({p.done for p in pulling}) >= 3
    assert told[-1].layers_done == told[-1].layers_total == 2
    assert 0 < told[-1].seconds < LIMIT_S


# -- who stumbles and recovers -----------------------------------------------------------------------------------------


async def test_one_500(store: ImageStore, scene: Scene) -> None:
    """A fault that passes is waited out, for a manifest, a config and a layer."""
    for path in (scene.image.manifest_path, scene.image.config_path, scene.image.layer_paths[0]):
        scene.script(path, status(500), well)
    await pull(store, scene.image)
    assert len(scene.registry.asked(scene.image.manifest_path)) == 2


async def test_retry_after(store: ImageStore, scene: Scene) -> None:
    """429 with a Retry-After of two seconds is not asked again sooner, and then succeeds."""
    times: list[float] = []

    async def note(exchange: Exchange) -> None:
        times.append(trio.current_time())
        await (status(429, Retry_After="2") if len(times) == 1 else well)(exchange)

    scene.script(scene.image.manifest_path, note)
    await pull(store, scene.image)
    assert 2.0 <= times[1] - times[0] < 5


async def test_resumed(store: ImageStore, scene: Scene) -> None:
    """A layer that breaks off is gone on with where it ended, as often as it makes progress."""
    path = scene.image.layer_paths[0]
    scene.script(path, cut(70_000))
    told: list[Progress] = []
    made = await pull(store, scene.image, progress=told.append)
    assert (made.layers[0] / "bin/sh").stat().st_size == 200_000
    assert ranges(scene.registry, path)[:3] == ["", "bytes=70000-", "bytes=140000-"]
    assert made.pulled_bytes == sum(len(scene.registry.blobs[p.rpartition("/")[2]]) for p in scene.image.layer_paths)


async def _no_ranges(exchange: Exchange) -> None:
    await instead(bytes)(exchange)


async def _wrong_place(exchange: Exchange) -> None:
    await exchange.answer(206, b"y" * 1000, [("Content-Range", "bytes 7-1006/200000")])


@pytest.mark.parametrize(
    "second",
    [
        pytest.param(_no_ranges, id="Range ignored"),
        pytest.param(_wrong_place, id="wrong Content-Range"),
        pytest.param(status(416), id="416"),
        pytest.param(status(206, b"x"), id="206 without Content-Range"),
        pytest.param(raw(b"garbage"), id="garbage"),
        pytest.param(status(503), id="503"),
    ],
)
async def test_ranges_that_are_none(store: ImageStore, scene: Scene, second: Behaviour) -> None:
    """A registry that cannot go on in the middle is asked again; what is put together is what the digest says."""
    scene.script(scene.image.layer_paths[0], cut(70_000), second, well)
    made = await pull(store, scene.image)
    assert (made.layers[0] / "bin/sh").stat().st_size == 200_000


async def test_encodings_that_are_none(store: ImageStore, scene: Scene) -> None:
    """Content-Encoding on a layer that is compressed anyway changes nothing: the bytes are what the digest is of."""
    scene.script(scene.image.layer_paths[0], instead(bytes, ("Content-Encoding", "gzip")))
    await pull(store, scene.image)
    (asked,) = scene.registry.asked(scene.image.layer_paths[0])
    assert asked.headers.get("accept-encoding", "identity") == "identity"


@pytest.mark.parametrize("kind", ["chunks", "until the end"])
async def test_bodies_without_length(store: ImageStore, scene: Scene, kind: str) -> None:
    """An answer may state no length, in chunks or until the connection ends."""

    async def answer(exchange: Exchange) -> None:
        data, _ = exchange.part() or (b"", [])
        exchange.keep = False
        if kind == "chunks":
            chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (data[:100], data[100:]) if part)
            await exchange.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n")
        else:
            await exchange.send(b"HTTP/1.0 200 OK\r\n\r\n" + data)

    for path in (scene.image.manifest_path, scene.image.config_path, *scene.image.layer_paths):
        scene.script(path, answer)
    assert (await pull(store, scene.image)).digest == scene.image.digest


async def test_cancelled(store: ImageStore, scene: Scene) -> None:
    """Who gives up in the middle leaves nothing, and the registry notices; the next pull succeeds."""
    scene.script(scene.image.layer_paths[0], drip(0, 0, at_once=50_000), well)
    with trio.move_on_after(1.0) as scope:
        await pull(store, scene.image, holder="gone")
    assert scope.cancelled_caught
    with trio.fail_after(2):
        while scene.registry.open_connections:
            await trio.sleep(0.02)
    await store.release("gone")
    assert [name for name in half_made(store) if "layers/" not in name or "tmp-" in name] == []
    assert (await pull(store, scene.image)).digest == scene.image.digest


async def test_the_leader_leaves(store: ImageStore, scene: Scene) -> None:
    """When the one who began a pull gives up, another who waits goes on; what has come is not fetched again."""
    path = scene.image.layer_paths[0]
    scene.script(path, drip(20_000, 0.1))
    images: list[Image] = []

    async def ensure() -> None:
        images.append(await pull(store, scene.image))

    async with trio.open_nursery() as nursery:
        leader = trio.CancelScope()

        async def lead() -> None:
            with leader:
                await ensure()

        nursery.start_soon(lead)
        with trio.fail_after(5):
            while not scene.registry.asked(path):
                await trio.sleep(0.01)
        nursery.start_soon(ensure)
        await trio.sleep(0.5)
        leader.cancel()
    assert [image.digest for image in images] == [scene.image.digest]
    assert leader.cancelled_caught
    assert len(scene.registry.asked(path)) == 1 or all(ranges(scene.registry, path)[1:])


async def test_a_failure_is_everybodys_and_nobodys_for_long(store: ImageStore, scene: Scene) -> None:
    """All who wait get the same error; the next one asks anew."""
    scene.script(scene.image.manifest_path, status(404), well)
    errors: list[str] = []

    async def ensure() -> None:
        try:
            await pull(store, scene.image)
        except ImageNotFound as error:
            errors.append(error.message)

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(ensure)
    assert len(errors) in (4, 5) or len(set(errors)) == 1
    assert (await pull(store, scene.image)).digest == scene.image.digest


# -- mirrors and proxies -----------------------------------------------------------------------------------------------


def mirrored(directory: Path, idmap: IdMap | Unavailable, registry: HostileRegistry, *urls: str) -> ImageStore:
    return store_in(directory / "images", idmap, mirrors=tuple((registry.address, url) for url in urls), idle_s=1.0)


async def test_a_mirror(workspace: Path, detected_idmap: IdMap | Unavailable, scene: Scene) -> None:
    """A mirror is asked in place of the registry, and named where the image came from."""
    scene.other.publish(LOWER, UPPER)
    scene.login(scene.registry, "user", "secret-of-mine")
    store = mirrored(workspace, detected_idmap, scene.registry, scene.other.url)
    made = await pull(store, scene.image)
    assert scene.other.address in made.origin
    assert scene.registry.requests == []
    scene.no_credentials_at(scene.other)


MIRRORS: dict[str, Behaviour] = {
    "404": status(404),
    "401": status(401),
    "500": status(500),
    "garbage": status(200, b"garbage"),
    "html": status(200, b"<html>", Content_Type="text/html"),
    "another manifest": instead(lambda data: data + b" "),
    "no HTTP": raw(b"SSH-2.0"),
    "silence": silence,
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", MIRRORS)
async def test_a_bad_mirror(workspace: Path, detected_idmap: IdMap | Unavailable, scene: Scene, kind: str) -> None:
    """A mirror that does not have it, is broken or lies costs some time: the registry itself is asked."""
    there = scene.other.publish(LOWER, UPPER)
    scene.other.script(there.digest_path, MIRRORS[kind])
    store = mirrored(workspace, detected_idmap, scene.registry, scene.other.url)
    made = await pull(store, f"{scene.registry.address}/app@{scene.image.digest}")
    assert made.digest == scene.image.digest
    assert scene.registry.address in made.origin


@pytest.mark.parametrize("kind", ["404", "another layer", "silence", "cut"])
async def test_a_mirror_of_bad_layers(
    workspace: Path, detected_idmap: IdMap | Unavailable, scene: Scene, kind: str
) -> None:
    """A layer that the mirror does not have, or has wrong, comes from the registry itself."""
    there = scene.other.publish(LOWER, UPPER)
    bad = {"404": status(404), "another layer": instead(bytes.swapcase), "silence": silence, "cut": cut(0)}[kind]
    scene.other.script(there.layer_paths[0], bad)
    store = mirrored(workspace, detected_idmap, scene.registry, scene.other.url)
    assert (await pull(store, scene.image)).digest == scene.image.digest


async def test_a_mirror_that_is_down(workspace: Path, detected_idmap: IdMap | Unavailable, scene: Scene) -> None:
    """Nobody listens at the mirror: the registry is asked, within some seconds."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    store = mirrored(workspace, detected_idmap, scene.registry, "https://mirror.invalid", url)
    assert (await pull(store, scene.image)).digest == scene.image.digest


@asynccontextmanager
async def tunnels(port: int, asked: list[str]) -> AsyncIterator[str]:
    """A proxy that leads every CONNECT to one local port; its URL. `asked` gets the first line of each."""

    async def serve(stream: trio.SocketStream) -> None:
        head = b""
        try:
            async with stream:
                while b"\r\n\r\n" not in head:
                    data = await stream.receive_some()
                    if not data:
                        return
                    head += data
                asked.append(head.split(b"\r\n")[0].decode())
                async with await trio.open_tcp_stream("127.0.0.1", port) as inner, trio.open_nursery() as nursery:
                    await stream.send_all(b"HTTP/1.1 200 Connection established\r\n\r\n")
                    for source, target in ((stream, inner), (inner, stream)):
                        nursery.start_soon(copy, source, target, nursery.cancel_scope)
        except* (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    async def copy(source: trio.SocketStream, target: trio.SocketStream, scope: trio.CancelScope) -> None:
        async for data in source:
            await target.send_all(data)
        scope.cancel()

    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(trio.serve_listeners, serve, [listener]))
        yield f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


async def test_a_proxy_for_https(
    store: ImageStore, scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HTTPS_PROXY leads to the registry by CONNECT; the certificate is checked through it; NO_PROXY is an exception."""
    context, certificate = self_signed(tmp_path, "registry.invalid")
    asked: list[str] = []
    async with serving_registry(tls=context) as registry, tunnels(registry.port, asked) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        image = registry.publish(LOWER)
        assert (await pull(store, "registry.invalid/app:v1")).digest == image.digest
        assert asked and set(asked) == {"CONNECT registry.invalid:443 HTTP/1.1"}


async def test_no_proxy(store: ImageStore, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """NO_PROXY is heeded, and this machine is never asked for by a proxy."""
    monkeypatch.setenv("HTTPS_PROXY", scene.other.url)
    monkeypatch.setenv("HTTP_PROXY", scene.other.url)
    monkeypatch.setenv("ALL_PROXY", scene.other.url)
    monkeypatch.setenv("NO_PROXY", "registry.invalid")
    assert (await pull(store, scene.image)).digest == scene.image.digest
    with pytest.raises(ImageError, match=r"registry\.invalid"):
        await pull(store, "registry.invalid/app:v1")
    assert scene.other.requests == []


async def test_a_proxy_for_http(
    workspace: Path, detected_idmap: IdMap | Unavailable, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HTTP_PROXY is asked with the whole URL."""
    monkeypatch.setenv("http_proxy", scene.registry.url)
    store = store_in(
        workspace / "images",
        detected_idmap,
        mirrors=(("registry.invalid", "http://mirror.invalid"),),
        insecure_registries=("mirror.invalid",),
    )
    assert (await pull(store, "registry.invalid/app:v1")).digest == scene.image.digest
    assert {request.headers["host"] for request in scene.registry.requests} == {"mirror.invalid"}


async def test_https_on_loopback(
    store: ImageStore, scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A registry on loopback may speak https as well, when its certificate is vouched for."""
    context, certificate = self_signed(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    async with serving_registry(tls=context) as registry:
        image = registry.publish(LOWER)
        assert (await pull(store, image)).digest == image.digest


async def test_insecure_registry(
    workspace: Path, detected_idmap: IdMap | Unavailable, scene: Scene, tmp_path: Path
) -> None:
    """A certificate that nobody vouches for will do for a registry that is declared insecure."""
    context, _ = self_signed(tmp_path)
    async with serving_registry(tls=context) as registry:
        image = registry.publish(LOWER)
        store = store_in(workspace / "images", detected_idmap, insecure_registries=(registry.address,))
        assert (await pull(store, image)).digest == image.digest


async def test_a_config_of_too_many_hints(store: ImageStore, scene: Scene) -> None:
    """Exposed ports go into every instance's record: what is no port is left out, and a hundred of them are enough."""
    config = config_of([LOWER])
    config["config"]["ExposedPorts"] = {"80/tcp": {}, "x" * 10_000: {}} | {f"{port}/udp": {} for port in range(60_000)}
    image = scene.registry.publish(LOWER, repository="ports", config=json.dumps(config).encode())
    ports = (await pull(store, image)).config.exposed_ports
    assert ports[0] == "80/tcp" and len(ports) == 100 and max(map(len, ports)) < 20


async def test_a_slow_registry_holds_up_no_other(store: ImageStore, scene: Scene) -> None:
    """A registry that brings next to nothing, on every connection that may be used, does not keep others waiting."""
    layers = [tar(file(f"{number}", os.urandom(20_000))) for number in range(8)]
    slow = scene.registry.publish(*layers, repository="slow")
    for path in slow.layer_paths:
        scene.script(path, drip(0, 0, at_once=100))
    there = scene.other.publish(LOWER, UPPER)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pull, store, slow)
            while len(scene.registry.asked(*slow.layer_paths)) < 4:
                await trio.sleep(0.02)
            assert (await pull(store, there)).digest == there.digest
            nursery.cancel_scope.cancel()

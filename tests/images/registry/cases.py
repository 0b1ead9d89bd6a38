"""What registries do to their clients: each case with the reason it must end in, the words that say why, and its time.

A case sets a scene; what it returns is pulled (by default the scene's image). `settings` are of ImageSettings.
"""

from __future__ import annotations

import email.utils
import gzip
import json
import socket
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import trio

from rik.images.errors import ImageError, ImageInvalid, ImageNotFound, ImagePullFailed, ImageUnauthorized
from rik.images.manifest import this_platform
from tests.images.build import INDEX, LAYER, MANIFEST, config_of, digest
from tests.images.registry.hostile import (
    Exchange,
    TokenServer,
    cut,
    drip,
    instead,
    problem,
    raw,
    redirect,
    repeat,
    require_basic,
    silence,
    status,
)
from tests.images.registry.scene import LOWER, Scene

QUICK_S = 4.0  # nothing to wait for: an answer, and the verdict
TRIES_S = 40.0  # as often as it makes sense, with growing pauses
IDLE_S = 12.0  # with `idle_s` of one second
REFUSED_S = 10.0  # promised in these very words


class Case(NamedTuple):
    title: str
    error: type[ImageError]
    words: str
    within_s: float
    settings: dict[str, Any]
    arrange: Callable[[Scene], str | None]


CASES: list[Case] = []
Arrange = Callable[[Scene], str | None]


def case(
    error: type[ImageError], words: str, within_s: float = QUICK_S, **settings: Any
) -> Callable[[Arrange], Arrange]:
    """`words` is a regular expression that the message holds, in any letter case; the docstring is the case's title."""

    def add(arrange: Arrange) -> Arrange:
        assert arrange.__doc__
        CASES.append(Case(arrange.__doc__.rstrip("."), error, words, within_s, settings, arrange))
        return arrange

    return add


def stalls(words: str, **settings: Any) -> Callable[[Arrange], Arrange]:
    return case(ImagePullFailed, words, IDLE_S, idle_s=1.0, **settings)


# -- who may ---------------------------------------------------------------------------------------------------------


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


# -- what is not there -------------------------------------------------------------------------------------------------


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


# -- refusals and faults -----------------------------------------------------------------------------------------------


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


# -- documents ---------------------------------------------------------------------------------------------------------


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


# -- bytes on the wire -------------------------------------------------------------------------------------------------


@case(ImagePullFailed, "layer sha256:", TRIES_S)
def always_cut(scene: Scene) -> None:
    """A layer cut short, always before its first byte."""
    scene.script(scene.image.layer_paths[0], cut(0))
    scene.after(lambda: scene.count_requests_at_most(40))


@case(ImagePullFailed, "manifest", TRIES_S)
def manifest_cut(scene: Scene) -> None:
    """A manifest cut short, always."""
    scene.script(scene.image.manifest_path, cut(50))


@case(ImageError, "layer sha256:", TRIES_S)
def wrong_range(scene: Scene) -> None:
    """A Range answered from another place than asked for."""
    data = b"y" * 5000
    wrong = status(206, data, Content_Range="bytes 7-5006/999999")
    scene.script(scene.image.layer_paths[0], cut(1000), wrong)
    scene.after(lambda: scene.count_requests_at_most(40))


@case(ImageError, "layer sha256:", TRIES_S)
def right_range_wrong_bytes(scene: Scene) -> None:
    """A Range answered by bytes of something else."""

    async def lie(exchange: Exchange) -> None:
        data, _ = exchange.part() or (b"", [])
        start = int(exchange.request.headers.get("range", "bytes=0-")[6:].rstrip("-") or 0)
        where = f"bytes {start}-{len(data) - 1}/{len(data)}"
        await exchange.answer(206, b"y" * (len(data) - start), [("Content-Range", where)])

    scene.script(scene.image.layer_paths[0], cut(1000), lie)
    scene.after(lambda: scene.count_requests_at_most(40))


@case(ImageError, "layer sha256:", TRIES_S)
def always_416(scene: Scene) -> None:
    """416 to every Range, and the rest cut short."""

    async def refuse(exchange: Exchange) -> None:
        if "range" in exchange.request.headers:
            await exchange.answer(416)
        else:
            await cut(1000)(exchange)

    scene.script(scene.image.layer_paths[0], refuse)
    scene.after(lambda: scene.count_requests_at_most(60))


@case(ImagePullFailed, "layer sha256:", TRIES_S)
def partial_unasked(scene: Scene) -> None:
    """206 to a question without Range."""
    scene.script(scene.image.layer_paths[0], status(206, b"y" * 100, Content_Range="bytes 50-149/1000"))


def broken(name: str, answer: bytes) -> None:
    """A case of an answer that is no HTTP, for the manifest: it fails after some tries."""

    def arrange(scene: Scene) -> None:
        scene.script(scene.image.manifest_path, raw(answer))

    arrange.__doc__ = name
    case(ImageError, "manifest", TRIES_S)(arrange)


_OK = b"HTTP/1.1 200 OK\r\n"
broken("Chunks of a broken size", _OK + b"Transfer-Encoding: chunked\r\n\r\nzzz\r\nhello\r\n")
broken("A chunk of 10^30 bytes", _OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 25 + b"\r\nhello")
broken("Chunks that end in the middle", _OK + b"Transfer-Encoding: chunked\r\n\r\n10\r\nhello")
broken("A header of 1 MB", _OK + b"X-Large: " + b"x" * 1_000_000 + b"\r\n\r\n")
broken("100,000 headers", _OK + b"X: y\r\n" * 100_000 + b"\r\n")
broken("Two Content-Lengths that differ", _OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!")
broken("A negative Content-Length", _OK + b"Content-Length: -5\r\n\r\nhello")
broken("A Content-Length of words", _OK + b"Content-Length: many\r\n\r\nhello")
broken("No HTTP but SSH", b"SSH-2.0-OpenSSH_9.2\r\n")
broken("Bytes of nothing", bytes(range(256)) * 20)
broken("The status 999", b"HTTP/1.1 999 What\r\nContent-Length: 0\r\n\r\n")
broken("An answer in HTTP/2 words", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
broken("The connection ends without an answer", b"")
broken("The connection ends within the headers", _OK + b"Content-Le")


@stalls("bytes|second|slow|stall|no ", idle_bytes=100)
def one_byte_a_minute(scene: Scene) -> None:
    """One byte now and then."""
    scene.script(scene.image.layer_paths[0], drip(1, 0.3))


@stalls("manifest", idle_bytes=100)
def manifest_one_byte_a_minute(scene: Scene) -> None:
    """A manifest of one byte now and then."""
    scene.script(scene.image.manifest_path, drip(1, 0.3))


@stalls("manifest", idle_bytes=100)
def slow_headers(scene: Scene) -> None:
    """Headers of one byte now and then."""
    scene.script(scene.image.manifest_path, repeat(b"x", 0.3, first=b"HTTP/1.1 200 OK\r\nX: "))


@stalls("manifest", idle_bytes=100)
def endless_informational(scene: Scene) -> None:
    """100 Continue, again and again."""
    scene.script(scene.image.manifest_path, repeat(b"HTTP/1.1 100 Continue\r\n\r\n", 0.3))


@stalls("127.0.0.1|connect|answer")
def nothing_after_accept(scene: Scene) -> None:
    """Nothing at all after the connection was taken."""
    scene.registry.at_accept = hush


@stalls("manifest")
def nothing_after_the_question(scene: Scene) -> None:
    """No answer to the question."""
    scene.script(scene.image.manifest_path, silence)


@stalls("layer sha256:")
def nothing_after_the_headers(scene: Scene) -> None:
    """Nothing after the headers of a layer."""
    scene.script(scene.image.layer_paths[0], drip(0, 0))


@stalls("layer sha256:")
def half_a_body(scene: Scene) -> None:
    """Half a layer, and silence."""
    scene.script(scene.image.layer_paths[0], drip(0, 0, at_once=50_000), silence)


async def hush(stream: trio.abc.Stream) -> None:
    """Takes what comes and says nothing, until the client goes."""
    async for _ in stream:
        pass


# -- other places ------------------------------------------------------------------------------------------------------


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


def _platform() -> dict[str, str]:
    here = this_platform()
    return {"os": here.os, "architecture": here.architecture}

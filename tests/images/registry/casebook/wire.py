"""Cases of connections that break, stall, or carry other bytes than HTTP allows."""

from __future__ import annotations

import trio

from rik.images.errors import ImageError, ImagePullFailed
from tests.images.registry.casebook.case import TRIES_S, case, stalls
from tests.images.registry.hostile import (
    Exchange,
    cut,
    drip,
    raw,
    repeat,
    silence,
    status,
)
from tests.images.registry.scene import Scene


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

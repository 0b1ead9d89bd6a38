"""Whatever one client sends, the server goes on for the others."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest
import trio

from tests.e2e.server import Client, Server

LIMIT_S = 30.0
FRAME = b"\x81\x84\0\0\0\0junk"


def handshake(netloc: str, path: str) -> bytes:
    """A request for a websocket."""
    return (
        f"GET /api/v0/{path} HTTP/1.1\r\nHost: {netloc}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    ).encode()


async def conversation(server: Server, *parts: bytes) -> bytes:
    """Sends the parts one after the other, the next one when something was answered; returns the first answer."""
    where = urlsplit(server.url)
    stream = await trio.open_tcp_stream(str(where.hostname), where.port or 0)
    first = b""
    async with stream:
        for part in parts:
            try:
                await stream.send_all(part)
                with trio.move_on_after(1):
                    answer = await stream.receive_some(65_536)
                    first = first or answer
            except trio.BrokenResourceError:
                break
    return first


async def is_well(server: Server) -> bool:
    async with Client(server.url) as client:
        return server.alive() and bool(await client.get("cluster.info"))


@pytest.mark.parametrize("path", ["instances.attach/nosuch", "instances.watch?since=abc", "instances.exec/nosuch"])
async def test_frames_after_a_refused_handshake(server: Server, path: str) -> None:
    """Frames sent after (or together with) a handshake that is refused end that connection alone."""
    with trio.fail_after(LIMIT_S):
        request = handshake(urlsplit(server.url).netloc, path)
        assert b" 101 " not in await conversation(server, request, FRAME * 4, FRAME)
        assert b" 101 " not in await conversation(server, request + FRAME * 4)
        assert await is_well(server)


@pytest.mark.parametrize(
    "frames",
    [
        b"\0\0\5\2\0\0\0\0\1\0\0\0\1\0",  # a stream that depends on itself
        b"".join(b"\0\0\0\1\5\0\0" + number.to_bytes(2, "big") for number in range(1, 99, 2)),
        b"\xff" * 300,
    ],
    ids=["self-dependent", "empty-requests", "garbage"],
)
async def test_http2(server: Server, frames: bytes) -> None:
    """HTTP/2 is not spoken: whoever assumes it is refused."""
    with trio.fail_after(LIMIT_S):
        begin = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0"
        assert (await conversation(server, begin + frames, frames)).startswith(b"HTTP/1.1 4")
        assert await is_well(server)


async def test_upgrade_to_http2(server: Server) -> None:
    """A request that offers to go on in HTTP/2 is answered in HTTP/1.1."""
    with trio.fail_after(LIMIT_S):
        netloc = urlsplit(server.url).netloc
        headers = f"Host: {netloc}\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk"
        answer = await conversation(server, f"GET /healthz HTTP/1.1\r\n{headers}\r\n\r\n".encode())
        assert answer.startswith(b"HTTP/1.1 200")

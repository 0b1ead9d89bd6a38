"""A registry over real sockets that does as it is told: it serves images well, or misbehaves byte by byte.

    async with serving_registry() as registry:
        image = registry.publish(tar(file("a")))
        registry.script(image.manifest_path, status(500), well)   # the first request gets 500, all others the truth
        ... pull image.reference ...
        assert [request.method for request in registry.asked(image.manifest_path)] == ["GET", "GET"]

Beside `/v2/…` it serves what scripts put under other paths: token servers and targets of redirects are made of it, too.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import math
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import trio

from tests.images.build import CONFIG, LAYER, MANIFEST, config_of, digest

_PART = re.compile(r"/v2/(.+)/(manifests|blobs)/([^/]+)")
_PIECE_BYTES = 256 << 10
_TLS_HANDSHAKE = b"\x16"
_ABSOLUTE = re.compile(r"http://[^/]*")
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")

Behaviour = Callable[["Exchange"], Awaitable[None]]
Headers = Sequence[tuple[str, str]]


class Request(NamedTuple):
    """One request as it came; the names of its headers are in lower case. `connection` numbers connections from 1."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes
    connection: int


class Published(NamedTuple):
    """An image as a registry holds it: paths to script, and the reference to pull."""

    reference: str
    digest: str
    manifest_path: str
    digest_path: str
    config_path: str
    layer_paths: list[str]


class Exchange:
    """One request, and the connection its answer is to go on. `keep` says whether another request may follow."""

    def __init__(self, registry: HostileRegistry, request: Request, stream: trio.abc.Stream) -> None:
        self.registry = registry
        self.request = request
        self.keep = True
        self._stream = stream

    async def send(self, data: bytes) -> None:
        """Bytes as they are, whatever they mean."""
        for start in range(0, len(data), _PIECE_BYTES):
            await self._stream.send_all(data[start : start + _PIECE_BYTES])
            self.registry.sent_bytes += min(_PIECE_BYTES, len(data) - start)

    async def answer(
        self, status: int = 200, body: bytes = b"", headers: Headers = (), *, length: int | None = None
    ) -> None:
        """A whole answer. `length` is what Content-Length says when that is a lie: the connection then ends."""
        stated = len(body) if length is None else length
        lines = [f"HTTP/1.1 {status} As Told", f"Content-Length: {stated}", *(f"{k}: {v}" for k, v in headers)]
        await self.send("\r\n".join([*lines, "", ""]).encode("latin-1"))
        if self.request.method != "HEAD":
            await self.send(body)
        self.keep = self.keep and stated == len(body)

    def part(self) -> tuple[bytes, list[tuple[str, str]]] | None:
        """The body and the headers that belong under this request's path; None when there is nothing."""
        match = _PART.fullmatch(self.request.path)
        if match is None:
            return None
        repository, kind, name = match.groups()
        if kind == "blobs":
            data = self.registry.blobs.get(name)
            return None if data is None else (data, [("Content-Type", "application/octet-stream")])
        found = self.registry.manifests.get((repository, name))
        if found is None:
            return None
        return found[1], [("Content-Type", found[0]), ("Docker-Content-Digest", digest(found[1]))]


class HostileRegistry:
    """What it serves, how, and what it was asked. `guard` refuses requests below `/v2/` by answering a challenge."""

    def __init__(self, host: str, scheme: str) -> None:
        self.host, self.scheme, self.port = host, scheme, 0
        self.manifests: dict[tuple[str, str], tuple[str, bytes]] = {}
        self.blobs: dict[str, bytes] = {}
        self.guard: Callable[[Request], Headers | None] = lambda request: None
        self.at_accept: Callable[[trio.abc.Stream], Awaitable[None]] | None = None
        self.requests: list[Request] = []
        self.connections = 0
        self.open_connections = 0
        self.sent_bytes = 0
        self.blob_delay_s = 0.0
        self.sending_blobs = 0
        self.most_blobs_at_once = 0
        self._scripts: dict[str, list[Behaviour]] = {}

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.address}"

    def script(self, path: str, *behaviours: Behaviour) -> None:
        """The first request of `path` meets the first behaviour, the next the second…; the last one stays."""
        self._scripts[path] = list(behaviours)

    def asked(self, *paths: str) -> list[Request]:
        """The requests of these paths, in their order."""
        return [request for request in self.requests if request.path in paths]

    def publish(
        self,
        *layers: bytes,
        repository: str = "app",
        tag: str = "v1",
        encode: Callable[[bytes], bytes] = lambda data: gzip.compress(data, 1, mtime=0),
        layer_type: str = f"{LAYER}+gzip",
        config: bytes | None = None,
        change: Callable[[dict[str, Any]], object] = lambda manifest: None,
    ) -> Published:
        """Holds an image of uncompressed `layers`. `change` may make its manifest lie before it is written down."""
        blobs = [encode(layer) for layer in layers]
        config = json.dumps(config_of(layers)).encode() if config is None else config
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": self.hold(config, CONFIG),
            "layers": [self.hold(blob, layer_type) for blob in blobs],
        }
        paths = [f"/v2/{repository}/blobs/{digest(blob)}" for blob in blobs]
        change(manifest)
        made = self.publish_document(json.dumps(manifest).encode(), manifest["mediaType"], repository, tag)
        return made._replace(config_path=f"/v2/{repository}/blobs/{digest(config)}", layer_paths=paths)

    def publish_document(
        self, data: bytes, media_type: Any = MANIFEST, repository: str = "app", tag: str = "v1"
    ) -> Published:
        """Holds `data` as the manifest of that tag, whatever it is."""
        for name in (tag, digest(data)):
            self.manifests[repository, name] = (str(media_type), data)
        base = f"/v2/{repository}/manifests/"
        reference = f"{self.address}/{repository}:{tag}"
        return Published(reference, digest(data), base + tag, base + digest(data), "", [])

    def hold(self, data: bytes, media_type: str) -> dict[str, Any]:
        """Keeps a blob; returns its descriptor."""
        self.blobs[digest(data)] = data
        return {"mediaType": media_type, "digest": digest(data), "size": len(data)}

    async def serve(self, stream: trio.abc.Stream) -> None:
        """One connection, until either side has enough of it."""
        self.connections += 1
        self.open_connections += 1
        try:
            async with stream, trio.open_nursery() as nursery:
                if self.at_accept is not None:
                    await self.at_accept(stream)
                if isinstance(stream, trio.SSLStream):
                    await stream.do_handshake()
                send, receive = trio.open_memory_channel[bytes](math.inf)
                nursery.start_soon(_pump, stream, send, nursery.cancel_scope)
                await self._converse(stream, _Inbox(receive), self.connections)
                nursery.cancel_scope.cancel()
        except* (OSError, trio.BrokenResourceError, trio.ClosedResourceError, trio.EndOfChannel):
            pass  # a client may leave whenever it likes
        finally:
            self.open_connections -= 1

    async def _converse(self, stream: trio.abc.Stream, inbox: _Inbox, number: int) -> None:
        while True:
            try:
                request = await inbox.request(number)
            except NotHttp:
                await stream.send_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
                return
            self.requests.append(request)
            exchange = Exchange(self, request, stream)
            scripts = self._scripts.get(request.path, [well])
            await (scripts.pop(0) if len(scripts) > 1 else scripts[0])(exchange)
            if not exchange.keep:
                return


class NotHttp(Exception):
    """A client speaks TLS where plain http is spoken."""


class _Inbox:
    """What came from the client and was not read yet."""

    def __init__(self, receive: trio.MemoryReceiveChannel[bytes]) -> None:
        self._receive = receive
        self._buffer = b""

    async def request(self, connection: int) -> Request:
        while b"\r\n\r\n" not in self._buffer:
            self._buffer += await self._receive.receive()
            if self._buffer[:1] == _TLS_HANDSHAKE:
                raise NotHttp
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        method, target, _ = first.split(" ", 2)
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = int(headers.get("content-length", "0"))
        while len(self._buffer) < length:
            self._buffer += await self._receive.receive()
        body, self._buffer = self._buffer[:length], self._buffer[length:]
        path, _, query = _ABSOLUTE.sub("", target).partition("?")  # as a proxy is asked
        return Request(method, path, query, headers, body, connection)


async def _pump(stream: trio.abc.Stream, inbox: trio.MemorySendChannel[bytes], scope: trio.CancelScope) -> None:
    try:
        async for data in stream:
            await inbox.send(bytes(data))
    finally:
        scope.cancel()  # the client has gone: whatever was being done for it ends


# -- behaviours --------------------------------------------------------------------------------------------------------


async def well(exchange: Exchange) -> None:
    """As a good registry does: challenges, ranges, and problems in the registries' own form."""
    request, registry = exchange.request, exchange.registry
    challenge = registry.guard(request) if request.path.startswith("/v2/") else None
    if challenge is not None:
        await exchange.answer(401, problem("UNAUTHORIZED", "authentication required"), challenge)
        return
    if request.path == "/v2/":
        await exchange.answer(200, b"{}", [("Docker-Distribution-API-Version", "registry/2.0")])
        return
    part = exchange.part()
    if part is None:
        code = "MANIFEST_UNKNOWN" if "/manifests/" in request.path else "BLOB_UNKNOWN"
        await exchange.answer(404, problem(code, "not known here"))
        return
    data, headers = part
    registry.sending_blobs += "/blobs/" in request.path
    registry.most_blobs_at_once = max(registry.most_blobs_at_once, registry.sending_blobs)
    try:
        if "/blobs/" in request.path:
            await trio.sleep(registry.blob_delay_s)
        await _serve_part(exchange, data, headers)
    finally:
        registry.sending_blobs -= "/blobs/" in request.path


async def _serve_part(exchange: Exchange, data: bytes, headers: Headers) -> None:
    asked = _RANGE.fullmatch(exchange.request.headers.get("range", ""))
    if asked is None or "/blobs/" not in exchange.request.path:
        await exchange.answer(200, data, headers)
    elif int(asked[1]) >= len(data):
        await exchange.answer(416, b"", [("Content-Range", f"bytes */{len(data)}")])
    else:
        start, end = int(asked[1]), min(int(asked[2] or len(data)), len(data) - 1)
        where = ("Content-Range", f"bytes {start}-{end}/{len(data)}")
        await exchange.answer(206, data[start : end + 1], [*headers, where])


def problem(code: str, message: str) -> bytes:
    """An error as the distribution specification has it."""
    return json.dumps({"errors": [{"code": code, "message": message}]}).encode()


def status(code: int, body: bytes = b"", **headers: str) -> Behaviour:
    """That status; `headers` are written with `_` for `-`."""
    return lambda exchange: exchange.answer(code, body, [(k.replace("_", "-"), v) for k, v in headers.items()])


def redirect(location: str, code: int = 307) -> Behaviour:
    return status(code, Location=location)


def raw(data: bytes) -> Behaviour:
    """These bytes, and the connection ends."""

    async def behave(exchange: Exchange) -> None:
        exchange.keep = False
        await exchange.send(data)

    return behave


def instead(change: Callable[[bytes], bytes], *headers: tuple[str, str], length: int | None = None) -> Behaviour:
    """200 with something made of the right body, and further headers."""

    async def behave(exchange: Exchange) -> None:
        data, own = exchange.part() or (b"", [])
        await exchange.answer(200, change(data), [*own, *headers], length=length)

    return behave


def cut(count: int) -> Behaviour:
    """The right answer, also to a Range, but the connection ends after `count` bytes of the body."""

    async def behave(exchange: Exchange) -> None:
        data, headers = exchange.part() or (b"", [])
        asked = _RANGE.fullmatch(exchange.request.headers.get("range", ""))
        start = int(asked[1]) if asked else 0
        if asked:
            headers = [*headers, ("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")]
        rest = data[start:]
        await exchange.answer(206 if asked else 200, rest[:count], headers, length=len(rest))
        exchange.keep = False

    return behave


def drip(count: int, every_s: float, *, at_once: int = 0) -> Behaviour:
    """The right body: `at_once` bytes of it, then `count` bytes every `every_s` seconds (0 bytes: silence)."""

    async def behave(exchange: Exchange) -> None:
        data, headers = exchange.part() or (b"", [])
        await exchange.answer(200, data[:at_once], headers, length=len(data))
        done = at_once
        while count and done < len(data):
            await trio.sleep(every_s)
            await exchange.send(data[done : done + count])
            done += count
        exchange.keep = done >= len(data)
        if not count:
            await trio.sleep_forever()

    return behave


def repeat(data: bytes, every_s: float, *, first: bytes = b"") -> Behaviour:
    """`first`, then the same bytes for ever."""

    async def behave(exchange: Exchange) -> None:
        await exchange.send(first)
        while True:
            await exchange.send(data)
            await trio.sleep(every_s)

    return behave


async def silence(exchange: Exchange) -> None:
    """Nothing, for ever."""
    await trio.sleep_forever()


# -- authentication ----------------------------------------------------------------------------------------------------


def basic(user: str, password: str) -> str:
    """The value of an Authorization header."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def require_basic(registry: HostileRegistry, user: str, password: str) -> None:
    right = basic(user, password)
    registry.guard = lambda request: (
        None if request.headers.get("authorization") == right else [("WWW-Authenticate", 'Basic realm="tests"')]
    )


class TokenServer:
    """Gives out bearer tokens under `/token` of `at`, for `registry` to ask for; `uses` bounds the requests a token is
    good for. With `secret` ("user:password", or an identity token) it wants that."""

    def __init__(
        self, registry: HostileRegistry, at: HostileRegistry, *, secret: str = "", uses: int = 1_000_000
    ) -> None:
        self.issued = 0
        self._left: dict[str, int] = {}
        self._secret, self._uses = secret, uses
        challenge = f'Bearer realm="{at.url}/token",service="tests",scope="repository:app:pull"'
        registry.guard = lambda request: None if self._spend(request) else [("WWW-Authenticate", challenge)]
        at.script("/token", self._issue)

    def _spend(self, request: Request) -> bool:
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        self._left[token] = self._left.get(token, 0) - 1
        return self._left[token] >= 0

    async def _issue(self, exchange: Exchange) -> None:
        request = exchange.request
        if ":" in self._secret:
            allowed = request.headers.get("authorization") == basic(*self._secret.split(":", 1))
        else:
            allowed = not self._secret or f"refresh_token={self._secret}" in request.body.decode()
        if not allowed:
            await exchange.answer(401, problem("UNAUTHORIZED", "wrong credentials"))
            return
        self.issued += 1
        token = hashlib.sha256(f"{id(self)}-{self.issued}".encode()).hexdigest()
        self._left[token] = self._uses
        body = {"token": token, "access_token": token, "expires_in": 300}
        await exchange.answer(200, json.dumps(body).encode(), [("Content-Type", "application/json")])


# -- serving -----------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def serving_registry(
    host: str = "127.0.0.1", tls: ssl.SSLContext | None = None
) -> AsyncIterator[HostileRegistry]:
    """A registry that listens; at the end every connection is cut."""
    registry = HostileRegistry(host, "https" if tls else "http")
    listeners: list[Any] = list(await trio.open_tcp_listeners(0, host=host))
    registry.port = listeners[0].socket.getsockname()[1]
    if tls is not None:
        listeners = [trio.SSLListener(listener, tls, https_compatible=True) for listener in listeners]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, registry.serve, listeners)
        try:
            yield registry
        finally:
            nursery.cancel_scope.cancel()

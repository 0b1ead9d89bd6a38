"""HTTP for one pull, on httpx: bounded, with redirects followed by hand, and every error in words of ours.

Importing this module loads httpx (20 to 100 ms): do it in a thread, at the first pull. Proxies are those of the
environment, but never for this machine. Bodies are taken as they are sent: nothing is decompressed.
"""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import NamedTuple
from urllib.parse import urljoin, urlsplit, urlunsplit

import httpx
import trio

import rik
from rik.images.errors import ImageInvalid
from rik.images.registry.attempts import TransientFailure
from rik.images.registry.endpoints import is_listed, is_loopback, origin_of
from rik.images.registry.failures import NotSpoken, Refusal
from rik.images.registry.proxies import proxy_of
from rik.images.registry.tls import TlsContexts

# A TCP and a TLS handshake around the world take one second.
CONNECT_S = 10.0
MAX_REDIRECTS = 5
# What is read of an answer that is no success: it is quoted, shortened.
MAX_ERROR_BYTES = 64 << 10
# A small document may take this many times the idle limit, as long as it comes on at all.
DOCUMENT_PERIODS = 5
# Everybody else waits no longer than this for one body.
LONGEST_BREATH_S = 0.005
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_PROXY = "the proxy "
_CUT_OFF = ("Server disconnected", "peer closed connection")


class Document(NamedTuple):
    """An answer that was read into memory. `url` is where it came from in the end; `body` of an error is cut short."""

    status: int
    headers: httpx.Headers
    body: bytes
    url: str


class Transport:
    """The connections of one pull: use it as a context manager, which closes them.

    Nothing within `idle_s` seconds is a failure. `insecure` hosts need no certificate that somebody vouches for.
    Everything raises TransientFailure for what may pass, and Refusal for what will not.
    """

    def __init__(
        self,
        tls: TlsContexts,
        *,
        idle_s: float,
        idle_bytes: int,
        insecure: Sequence[str],
        environment: Mapping[str, str],
    ) -> None:
        self._tls = tls
        self._idle_s = idle_s
        self._idle_bytes = idle_bytes
        self._insecure = insecure
        self._environment = environment
        self._clients: dict[tuple[str, str | None], httpx.AsyncClient] = {}
        self._making = trio.Lock()
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Transport:
        await self._stack.__aenter__()
        return self

    async def __aexit__(self, *exception: object) -> None:
        with trio.CancelScope(shield=True):  # closes sockets, and waits for nobody
            await self._stack.aclose()

    async def document(
        self,
        url: str,
        headers: Mapping[str, str],
        *,
        limit: int,
        form: Mapping[str, str] | None = None,
    ) -> Document:
        """All of an answer, whatever its status; a success of more than `limit` bytes is ImageInvalid. With `form` it
        is a POST, which no redirect takes elsewhere."""
        async with self.open(url, headers, form=form) as response:
            body = await self.body(response, limit)
            return Document(response.status_code, response.headers, body, str(response.url))

    async def body(self, response: httpx.Response, limit: int) -> bytes:
        """A small body; that of an error is cut short. A success of more than `limit` bytes is ImageInvalid."""
        body = bytearray()
        breathed_at = trio.current_time()
        mark, end = self._idle_bytes, breathed_at + DOCUMENT_PERIODS * self._idle_s
        with trio.move_on_after(self._idle_s) as scope:
            async with aclosing(self.chunks(response)) as chunks:
                async for chunk in chunks:
                    body += chunk
                    # A thousand chunks of one byte may come in one packet, and httpx hands them out without a pause.
                    if trio.current_time() - breathed_at > LONGEST_BREATH_S:
                        await trio.lowlevel.checkpoint()
                        breathed_at = trio.current_time()
                    if response.is_success and len(body) > limit:
                        raise Refusal(f"the answer has more than {limit:,} bytes", ImageInvalid)
                    if not response.is_success and len(body) > MAX_ERROR_BYTES:
                        break
                    if len(body) >= mark:
                        mark = len(body) + self._idle_bytes
                        scope.deadline = min(trio.current_time() + self._idle_s, end)
        if scope.cancelled_caught:
            raise self._stalled(_peer(response.url))
        return bytes(body)

    @asynccontextmanager
    async def open(
        self, url: str, headers: Mapping[str, str], *, form: Mapping[str, str] | None = None
    ) -> AsyncIterator[httpx.Response]:
        """The head of the answer, after redirects. `Authorization` goes to the origin of `url` and nowhere else."""
        response = await self._head(url, dict(headers), form)
        try:
            yield response
        finally:
            await response.aclose()

    async def chunks(self, response: httpx.Response) -> AsyncGenerator[bytes, None]:
        """The body, piece by piece as it comes. Whoever does not read it to its end ends the connection."""
        pieces = response.aiter_raw()
        try:
            async for chunk in pieces:
                yield chunk
        except httpx.HTTPError as error:
            raise self._failure(error, _peer(response.url)) from error
        finally:
            await response.aclose()
            # Below this one httpx has five more generators, each waiting inside of the next, and closes none of them:
            # that the connection is no more ends them all, before the garbage collector comes upon them.
            with suppress(httpx.HTTPError):
                async for _ in pieces:
                    pass

    # ------------------------------------------------------------------------------------------------------------------

    async def _head(self, url: str, headers: dict[str, str], form: Mapping[str, str] | None) -> httpx.Response:
        first, seen = url, [url]
        with trio.move_on_after(self._idle_s):
            while True:
                response = await self._send(url, headers, form)
                if response.status_code not in _REDIRECTS or form is not None:
                    return response
                location = response.headers.get("location", "")
                await response.aclose()
                url = _target(url, location)
                self._check_plain(seen[-1], url)
                if url in seen:
                    raise Refusal(f"it redirects in a circle: {_shown(seen[0])} leads back to {_shown(url)}")
                if len(seen) > MAX_REDIRECTS:
                    raise Refusal(f"it redirects more than {MAX_REDIRECTS} times, last to {_shown(url)}")
                if origin_of(url) != origin_of(first):
                    headers.pop("Authorization", None)
                seen.append(url)
        raise self._stalled(urlsplit(url).netloc)

    def _check_plain(self, before: str, url: str) -> None:
        parts = urlsplit(url)
        host = parts.netloc.lower()
        if parts.scheme == "http" and not (is_loopback(host) or is_listed(host, self._insecure)):
            raise Refusal(
                f"{_shown(before)} redirects to {_shown(url)}, and plain http is spoken to this machine and to "
                "insecure registries only",
                next_step=f"if this is as it should be, start this node with `rik serve --insecure-registry {host}`",
            )

    async def _send(self, url: str, headers: dict[str, str], form: Mapping[str, str] | None) -> httpx.Response:
        proxy = proxy_of(url, self._environment)
        peer = f"{_PROXY}{urlsplit(proxy).netloc.rpartition('@')[2]}" if proxy else urlsplit(url).netloc
        client = await self._client(url, proxy)
        try:
            request = client.build_request("GET" if form is None else "POST", url, headers=headers, data=form)
            return await client.send(request, stream=True)
        except httpx.HTTPError as error:
            raise self._failure(error, peer) from error
        except httpx.InvalidURL as error:
            raise Refusal(f"{_shown(url)} is no URL: {error}") from error

    async def _client(self, url: str, proxy: str | None) -> httpx.AsyncClient:
        parts = urlsplit(url)
        host = parts.netloc.lower()
        # Plain http needs no certificates: one client serves all of it.
        key = (host if parts.scheme == "https" else "", proxy)
        async with self._making:
            if key not in self._clients:
                if parts.scheme == "https":
                    context = await self._tls.get(host, insecure=is_listed(host, self._insecure))
                else:
                    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                self._clients[key] = await self._stack.enter_async_context(self._new_client(context, proxy))
            return self._clients[key]

    def _new_client(self, context: ssl.SSLContext, proxy: str | None) -> httpx.AsyncClient:
        try:
            return httpx.AsyncClient(
                verify=context,
                proxy=proxy,
                trust_env=False,
                headers={"User-Agent": f"rik/{rik.__version__}", "Accept-Encoding": "identity"},
                timeout=httpx.Timeout(self._idle_s, connect=min(CONNECT_S, self._idle_s)),
                limits=httpx.Limits(max_connections=None),
                cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
                follow_redirects=False,
            )
        except (ImportError, ValueError, httpx.InvalidURL):
            # Its text would repeat the proxy's URL, which may hold a password.
            raise Refusal("the proxy in this process's environment (https_proxy and the like) cannot be used") from None

    def _stalled(self, peer: str) -> Refusal:
        return Refusal(f"{peer} stalled: too little came within {self._idle_s:g} s")

    def _failure(self, error: httpx.HTTPError, peer: str) -> TransientFailure | Refusal:
        match error:
            case httpx.ConnectTimeout():
                limit = min(CONNECT_S, self._idle_s)
                return _unreachable(f"{peer} did not take a connection within {limit:g} s", peer)
            case httpx.TimeoutException():
                return self._stalled(peer)
            case httpx.ConnectError():
                return _connect_failure(error, peer)
            case httpx.ProxyError():
                return Refusal(f"{peer} refuses: {error}")
            case httpx.NetworkError():
                return TransientFailure(f"the connection to {peer} broke: {_root(error)}")
            case httpx.RemoteProtocolError() if str(error).startswith(_CUT_OFF):
                return TransientFailure(f"{peer} ended the connection too early: {error}")
            case httpx.RemoteProtocolError() if "in location header" in str(error):
                return Refusal(f"{peer} redirects to something that is no URL")
            case httpx.RemoteProtocolError():
                return NotSpoken(f"{peer} does not answer in HTTP: {str(error)[:200]}")
            case _:
                return Refusal(f"{peer}: {error}")


def _connect_failure(error: httpx.HTTPError, peer: str) -> TransientFailure | Refusal:
    root = _root(error)
    host = peer.removeprefix(_PROXY)
    if isinstance(root, ssl.SSLCertVerificationError):
        return Refusal(
            f"the certificate of {peer} is not trusted: {root.verify_message}",
            next_step=f"put its authority into /etc/docker/certs.d/{host}/ca.crt on this node, or start it with "
            f"`rik serve --insecure-registry {host}`",
        )
    if isinstance(root, ssl.SSLError) and not isinstance(root, ssl.SSLEOFError):
        return NotSpoken(
            f"{peer} does not speak TLS as it should: {root.reason or root}",
            next_step=f"if it speaks plain http, start this node with `rik serve --insecure-registry {host}`",
        )
    if isinstance(root, socket.gaierror):
        return _unreachable(f"the host {peer} is unknown: {root.strerror}", peer)
    if isinstance(root, ssl.SSLEOFError) or not isinstance(root, OSError):
        return TransientFailure(f"{peer} ended the connection during the TLS handshake")
    cause = os.strerror(root.errno) if root.errno else str(root)
    return _unreachable(f"no connection to {peer}: {cause}", peer)


def _unreachable(cause: str, peer: str) -> TransientFailure:
    if peer.startswith(_PROXY):
        step = f"check that {peer} runs: the environment of `rik serve` names it (https_proxy and the like)"
    else:
        step = "check that the registry runs and that its name is right"
    return TransientFailure(cause, unreachable=True, next_step=step)


def _root(error: BaseException) -> BaseException:
    """What is really the matter: the system's own error, or else the innermost cause; of a group the first."""
    while True:
        if isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
            continue
        # httpcore raises anew what it caught, `from None`: the context is still the cause.
        inner = error.__cause__ or error.__context__
        if inner is None or (isinstance(error, OSError) and error.errno is not None):
            return error
        error = inner


def _target(url: str, location: str) -> str:
    """Where a redirect leads. Names and passwords in it, and the fragment, are not for us. Raises Refusal."""
    if not location:
        raise Refusal(f"{_shown(url)} redirects to nowhere (no Location)")
    try:
        parts = urlsplit(urljoin(url, location))
        old, new = urlsplit(url).scheme, parts.scheme.lower()
        _ = parts.port  # checks it
    except ValueError:
        raise Refusal(f"{_shown(url)} redirects to `{location[:200]}`, which is no URL") from None
    if new not in ("http", "https") or not parts.hostname:
        raise Refusal(f"{_shown(url)} redirects to `{location[:200]}`, which is no http or https address")
    if old == "https" and new == "http":
        raise Refusal(f"{_shown(url)} redirects from https to plain http, to {_shown(urlunsplit(parts))}")
    return urlunsplit((new, parts.netloc.rpartition("@")[2], parts.path or "/", parts.query, ""))


def _shown(url: str) -> str:
    """Without its query, which may be a signature, and not at length."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"[:200]


def _peer(url: httpx.URL) -> str:
    return url.netloc.decode("ascii", "replace")

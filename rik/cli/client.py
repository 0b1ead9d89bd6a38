"""The API over plain HTTP: one call, one answer, errors as sentences. Standard library only, so that it loads fast."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

import rik
from rik.cli.config import Cluster
from rik.cli.errors import RequestRefused, Unreachable

API = "/api/v0"
CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 60.0  # creating 10,000 instances in one request takes seconds, not a minute
CHUNK_BYTES = 64 * 1024
START_ONE = "start one with `python3 rik.py serve --demo`, or name another with --server URL"

Query = Mapping[str, str | int | Sequence[str] | None]


class Answer(NamedTuple):
    """A successful answer; `body` is exactly what the server sent, the names of `headers` are in lower case."""

    status: int
    body: bytes
    headers: Mapping[str, str] = {}

    def json(self) -> Any:
        return json.loads(self.body) if self.body else None


def path_of(call: str, *names: str, query: Query | None = None) -> str:
    """`/api/v0/CALL/NAME…?query`, quoted; what is None or "" is left out of the query, a list is repeated."""
    path = "/".join((f"{API}/{call}", *(quote(name, safe="") for name in names)))
    pairs: list[tuple[str, str]] = []
    for key, value in (query or {}).items():
        if value is None or value == "":
            continue
        if isinstance(value, str | int):
            pairs.append((key, str(value)))
        else:
            pairs.extend((key, item) for item in value)
    return f"{path}?{urlencode(pairs, errors='surrogateescape')}" if pairs else path


class Client:
    """Calls one server. Every method raises RequestRefused for an error answer and Unreachable when there is none.

    Not to be shared between threads. GET requests reuse one connection; a POST always has a fresh one, since it must
    not be repeated when a kept connection turns out to have been closed by the server.
    """

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self._kept: http.client.HTTPConnection | None = None

    def get(self, call: str, *names: str, query: Query | None = None, timeout_s: float = ANSWER_TIMEOUT_S) -> Answer:
        path = path_of(call, *names, query=query)
        if self._kept is not None:
            kept, self._kept = self._kept, None
            try:
                return self._finish(kept, self._ask(kept, "GET", path, None, {}))
            except (http.client.HTTPException, OSError):
                kept.close()  # the server had closed it meanwhile, which a fresh one tells apart from an outage
        return self._call("GET", path, timeout_s=timeout_s)

    def post(self, call: str, body: Any, *, query: Query | None = None, timeout_s: float = ANSWER_TIMEOUT_S) -> Answer:
        """`body` is sent as JSON."""
        content, headers = json.dumps(body).encode(), {"Content-Type": "application/json"}
        return self._call("POST", path_of(call, query=query), content, headers, timeout_s)

    def post_bytes(self, call: str, body: bytes, media_type: str, *, query: Query | None = None) -> Answer:
        return self._call("POST", path_of(call, query=query), body, {"Content-Type": media_type})

    def stream(self, call: str, *names: str, query: Query | None = None) -> Iterator[bytes]:
        """The chunks of an answer of unknown length, as they come; there is no limit on the time between them."""
        return self._stream("GET", path_of(call, *names, query=query), None, None)

    def post_stream(
        self, call: str, body: Any, *, query: Query | None = None, silence_s: float
    ) -> Generator[Any, None, None]:
        """The JSON lines of an answer, as they come; a server that says nothing for `silence_s` is Unreachable.

        Closing the iterator closes the connection, by which the server knows that nobody waits any longer.
        """
        chunks = self._stream("POST", path_of(call, query=query), json.dumps(body).encode(), silence_s)
        with closing(chunks):
            rest = b""
            for chunk in chunks:
                *lines, rest = (rest + chunk).split(b"\n")
                yield from (json.loads(line) for line in lines if line)
            if rest:
                yield json.loads(rest)

    def _stream(
        self, method: str, path: str, body: bytes | None, silence_s: float | None
    ) -> Generator[bytes, None, None]:
        connection = self._connect(CONNECT_TIMEOUT_S)
        headers = {"Content-Type": "application/json"} if body is not None else {}
        try:
            with translated(self.cluster):
                if silence_s is not None and connection.sock is not None:
                    connection.sock.settimeout(silence_s)
                response = self._ask(connection, method, path, body, headers)
                if response.status >= 400:
                    raise refusal(response.status, response.read(), dict(response.headers))
                if connection.sock is not None:
                    connection.sock.settimeout(silence_s)
                while chunk := response.read1(CHUNK_BYTES):
                    yield chunk
        finally:
            connection.close()

    def close(self) -> None:
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    def _call(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = ANSWER_TIMEOUT_S,
    ) -> Answer:
        connection = self._connect(min(timeout_s, CONNECT_TIMEOUT_S))
        if connection.sock is not None:
            connection.sock.settimeout(timeout_s)
        try:
            with translated(self.cluster):
                return self._finish(connection, self._ask(connection, method, path, body, headers or {}))
        except BaseException:
            connection.close()
            raise

    def _connect(self, timeout_s: float) -> http.client.HTTPConnection:
        cluster = self.cluster
        connection: http.client.HTTPConnection
        with translated(cluster):
            if cluster.scheme == "https":
                context = ssl_context(cluster)
                connection = http.client.HTTPSConnection(cluster.host, cluster.port, timeout=timeout_s, context=context)
            else:
                connection = http.client.HTTPConnection(cluster.host, cluster.port, timeout=timeout_s)
            connection.connect()
        return connection

    def _ask(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        body: bytes | None,
        headers: Mapping[str, str],
    ) -> http.client.HTTPResponse:
        connection.request(
            method, self.cluster.prefix + path, body=body, headers={**base_headers(self.cluster), **headers}
        )
        return connection.getresponse()

    def _finish(self, connection: http.client.HTTPConnection, response: http.client.HTTPResponse) -> Answer:
        body = response.read()
        if response.will_close or self._kept is not None:
            connection.close()
        else:
            self._kept = connection
        if response.status >= 300:
            raise refusal(response.status, body, dict(response.headers))
        return Answer(response.status, body, {name.lower(): value for name, value in response.headers.items()})


def base_headers(cluster: Cluster) -> dict[str, str]:
    """The headers of every request, websocket handshakes included."""
    headers = {"User-Agent": f"rik/{rik.__version__}", "Accept": "application/json, */*"}
    if cluster.token:
        headers["Authorization"] = f"Bearer {cluster.token}"
    return headers


def ssl_context(cluster: Cluster) -> ssl.SSLContext:
    """Trusts the configured authority alone when there is one, else the system's. Raises Unreachable."""
    try:
        return ssl.create_default_context(cafile=cluster.ca or None)
    except (OSError, ssl.SSLError) as error:
        raise Unreachable(
            f"the authority's certificate {cluster.ca} cannot be used: {error}",
            next_step="set `cluster.ca` in the configuration file to the PEM file of the server's authority",
        ) from error


class translated:  # noqa: N801  (reads as a verb at the place of use)
    """A with-block in which what the network and http.client raise becomes Unreachable."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError | http.client.HTTPException):
            raise unreachable(self._cluster, error) from error


def unreachable(cluster: Cluster, error: BaseException) -> Unreachable:
    """The sentence for a server that did not answer, by what went wrong."""
    url = cluster.url
    if isinstance(error, ConnectionRefusedError):
        return Unreachable(f"nothing listens at {url} (connection refused)", next_step=START_ONE)
    if isinstance(error, socket.gaierror):
        return Unreachable(
            f"the server's name {cluster.host!r} is unknown: {error.strerror or error}", next_step="check --server"
        )
    if isinstance(error, ssl.SSLCertVerificationError):
        return Unreachable(
            f"the certificate of {url} is not trusted: {error.verify_message}",
            next_step="set `cluster.ca` in the configuration file to the PEM file of the server's authority",
        )
    if isinstance(error, ssl.SSLError):
        return Unreachable(
            f"no TLS connection with {url}: {error.reason or error}", next_step="is it http rather than https?"
        )
    if isinstance(error, TimeoutError):
        return Unreachable(
            f"the server at {url} did not answer in time", next_step="check the address, or look at the server's log"
        )
    if isinstance(error, http.client.RemoteDisconnected | ConnectionResetError | BrokenPipeError):
        return Unreachable(
            f"the server at {url} closed the connection without an answer", next_step="try again; is it shutting down?"
        )
    if isinstance(error, http.client.IncompleteRead):
        return Unreachable(
            f"the server at {url} closed the connection in the middle of its answer",
            next_step="try again; is it shutting down?",
        )
    if isinstance(error, http.client.HTTPException):
        return Unreachable(
            f"what listens at {url} does not speak HTTP as RIK does: {type(error).__name__} {error}".rstrip(),
            next_step="check --server (https rather than http?)",
        )
    return Unreachable(f"the server at {url} cannot be reached: {error}", next_step=START_ONE)


def refusal(status: int, body: bytes, headers: Mapping[str, str] | None = None) -> RequestRefused:
    """The error that an answer of `status` stands for: its problem document in full, or as much as can be said."""
    try:
        problem = json.loads(body)
    except ValueError:
        problem = None
    if not isinstance(problem, dict):
        text = http.client.responses.get(status, "")
        return RequestRefused(
            f"the server answered {status} {text}".rstrip() + ", and not in the way RIK does",
            status=status,
            next_step="check --server: is it RIK that listens there?",
        )
    details = tuple(
        f"{item.get('pointer') or '/'}: {item.get('message', '')}"
        for item in problem.get("errors") or ()
        if isinstance(item, dict)
    )
    title, detail = str(problem.get("title") or ""), str(problem.get("detail") or "")
    message = detail or title or f"the server answered {status}"
    if details and title:
        message = title[:1].lower() + title[1:]  # the detail only sums up what the list says in full
    return RequestRefused(
        message,
        status=status,
        reason=str(problem.get("reason") or ""),
        details=details,
        next_step=str(problem.get("next") or "") or _next_step(status, headers or {}, bool(details)),
    )


def _next_step(status: int, headers: Mapping[str, str], several: bool) -> str:
    if several:
        return "correct what is listed; nothing was done"
    if status == 401:
        return "give a token: --token, RIK_CLUSTER_TOKEN, or `cluster.token` in the configuration file"
    if status == 403:
        return "ask the cluster's administrator for the right to do this"
    if status == 503:
        wait = headers.get("Retry-After")
        return f"try again in {wait} s" if wait else "try again in a moment"
    if status >= 500:
        return "look at the server's log: this is a fault of RIK"
    return ""

"""The table of operations as an application: parsing, problem documents, metrics, and who may ask at all."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, cast

import trio
from quart import Response, Websocket, has_request_context, request, websocket
from quart.wrappers.response import ResponseBody
from quart_trio import QuartTrio
from quart_trio.wrappers.request import TrioBody, TrioRequest
from werkzeug.exceptions import RequestEntityTooLarge

import rik
from rik.api import problem
from rik.api.connections import Connections, Sending
from rik.api.gate import Gate
from rik.api.metrics import Metrics
from rik.api.openapi import openapi_document
from rik.api.operations import WEBSOCKET, Call, Chunks, Operation, Reply, encode, parse_query
from rik.api.routes import cluster, health, images, instances, streams, workloads
from rik.api.service import Service
from rik.api.streams import CLOSE_FAILED

# What is still read (and thrown away) of a body that is too large, so that its sender hears the refusal.
DRAIN_BYTES = 8 * 2**20
BODY_DEADLINE_S = 30.0
_SENDING = "rik.sending"
_OPERATION = "rik.operation"


def operations_of(metrics: Metrics) -> tuple[Operation, ...]:
    """The whole table."""

    async def show_metrics(service: Service, call: Call) -> Reply:
        return Reply(200, metrics.text(), health.METRICS_TEXT)

    async def show_openapi(service: Service, call: Call) -> Reply:
        return Reply(200, document)

    table = (
        *workloads.OPERATIONS,
        *instances.OPERATIONS,
        *streams.OPERATIONS,
        *cluster.OPERATIONS,
        *images.OPERATIONS,
        *health.operations(show_metrics, show_openapi),
    )
    described = encode(openapi_document(table)).body
    assert isinstance(described, bytes)
    document = described
    return table


class Application:
    """The ASGI application that hypercorn serves."""

    def __init__(self, service: Service, metrics: Metrics, gate: Gate, connections: Connections) -> None:
        self._service = service
        self._metrics = metrics
        self._gate = gate
        self._connections = connections
        self._quart = _quart(service.settings.max_body_bytes)
        self._quart.register_error_handler(Exception, self._failed)
        for operation in operations_of(metrics):
            self._route(operation)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self._quart(scope, receive, send)
            return
        sending = self._connections.open(scope)
        scope[_SENDING] = sending
        started = trio.current_time()

        async def timed_send(message: Any) -> None:
            kind = message["type"]
            if kind in ("http.response.start", "websocket.http.response.start"):
                operation = scope.get(_OPERATION, "")
                self._metrics.count(operation, message["status"], trio.current_time() - started)
            elif kind == "websocket.accept":
                self._metrics.count(scope.get(_OPERATION, ""), 101, trio.current_time() - started)
            sending.begin(len(message.get("body") or message.get("text") or b""))
            try:
                # The last message makes hypercorn wait for the connection's next request, with a timeout and an ear for
                # the end; Quart cancels whoever sends it in the middle of that.
                if kind == "http.response.body" and not message.get("more_body", False):
                    with trio.CancelScope(shield=True):
                        await send(message)
                else:
                    await send(message)
            finally:
                sending.end()

        try:
            refusal = self._gate.refusal(scope)
            if refusal is None:
                await self._quart(scope, receive, timed_send)
            else:
                await _refuse(scope, timed_send, refusal)
        finally:
            self._connections.close(sending)

    def _route(self, operation: Operation) -> None:
        rule = operation.path.replace("{", "<").replace("}", ">")
        if operation.method == WEBSOCKET:
            self._quart.add_websocket(rule, operation.id, self._socket_endpoint(operation))
        else:
            self._quart.add_url_rule(
                rule,
                operation.id,
                self._endpoint(operation),
                methods=[operation.method],
                provide_automatic_options=False,
            )

    def _endpoint(self, operation: Operation) -> Any:
        service, handler = self._service, operation.handler
        assert handler is not None

        async def endpoint(**path: str) -> Response:
            scope = cast("dict[str, Any]", request.scope)
            _begin(scope, operation)
            query = parse_query(operation.parameters, request.args.getlist, service.environment.now())
            reply = await handler(service, Call(path, query, request.content_type or "", _read_body))
            return await _response(reply, head=request.method == "HEAD")

        return endpoint

    def _socket_endpoint(self, operation: Operation) -> Any:
        service, handler = self._service, operation.socket
        assert handler is not None

        async def endpoint(**path: str) -> Response | None:
            scope = cast("dict[str, Any]", websocket.scope)
            _begin(scope, operation)
            socket = _Socket(websocket)
            try:
                query = parse_query(operation.parameters, websocket.args.getlist, service.environment.now())
                await handler(service, Call(path, query), socket)
            except Exception as error:  # noqa: BLE001 (a bug: logged by of_bug, and told to the client)
                if not socket.accepted:
                    return await self._failed(error)
                problem.of_bug(error)
                await socket.close(CLOSE_FAILED)
            return None

        return endpoint

    async def _failed(self, error: Exception) -> Response:
        method = request.method if has_request_context() else WEBSOCKET
        return await _response(problem.of_exception(error, method, self._service.settings.max_body_bytes))


class _Socket:
    """Quart's websocket, remembering whether it was accepted."""

    def __init__(self, underlying: Websocket) -> None:
        self._underlying = underlying
        self.accepted = False

    async def accept(self) -> None:
        self.accepted = True
        await self._underlying.accept()

    async def send(self, data: str | bytes) -> None:
        await self._underlying.send(data)

    async def receive(self) -> str | bytes | None:
        return await self._underlying.receive()

    async def close(self, code: int, reason: str = "") -> None:
        await self._underlying.close(code, reason)


class _Body(TrioBody):
    """A body bounded by what was received, with or without a Content-Length; a little more is read and dropped."""

    def __init__(self, expected_content_length: int | None, max_content_length: int | None) -> None:
        super().__init__(None, None)
        self._limit = max_content_length or 0
        self._received = 0
        if expected_content_length is not None and expected_content_length > self._limit + DRAIN_BYTES:
            self._refuse()

    def append(self, data: bytes) -> None:
        self._received += len(data)
        if self._received > self._limit:
            self._data.clear()
            if self._received > self._limit + DRAIN_BYTES:
                self._refuse()
            return
        super().append(data)

    def set_complete(self) -> None:
        if self._received > self._limit:
            self._must_raise = RequestEntityTooLarge()
        super().set_complete()

    def _refuse(self) -> None:
        self._received = max(self._received, self._limit + 1)
        self.set_complete()


class _StreamedBody(ResponseBody):
    """Chunks as Quart wants them; they are closed however the sending ends."""

    def __init__(self, chunks: Chunks) -> None:
        self._chunks = chunks

    async def __aenter__(self) -> AsyncIterator[bytes]:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._chunks.aclose()

    def __aiter__(self) -> _StreamedBody:
        return self

    async def __anext__(self) -> bytes:
        chunk = await self._chunks.chunk()
        if chunk is None:
            raise StopAsyncIteration
        return chunk


class _Request(TrioRequest):
    body_class = _Body


def _quart(max_body_bytes: int) -> QuartTrio:
    quart = QuartTrio("rik", static_folder=None)
    quart.request_class = _Request
    quart.config["MAX_CONTENT_LENGTH"] = max_body_bytes
    quart.config["BODY_TIMEOUT"] = BODY_DEADLINE_S
    quart.config["RESPONSE_TIMEOUT"] = None  # `Connections` has its own, which can end a send that is shielded
    quart.url_map.merge_slashes = False
    quart.url_map.redirect_defaults = False
    return quart


def _begin(scope: dict[str, Any], operation: Operation) -> None:
    sending = scope[_SENDING]
    assert isinstance(sending, Sending)
    sending.patient = operation.patient
    scope[_OPERATION] = operation.id


async def _read_body() -> bytes:
    data = await request.get_data(cache=True, as_text=False)
    assert isinstance(data, bytes)
    return data


async def _response(reply: Reply, *, head: bool = False) -> Response:
    headers = {"Server": f"rik/{rik.__version__}", "Cache-Control": "no-store", **reply.headers}
    body = reply.body
    if isinstance(body, bytes):
        if reply.status == 204:
            empty = Response(b"", 204, headers)
            del empty.headers["Content-Type"], empty.headers["Content-Length"]
            return empty
        return Response(body, reply.status, headers, content_type=reply.media_type)
    if head:
        await body.aclose()
        return Response(b"", reply.status, headers, content_type=reply.media_type)
    response = Response(b"", reply.status, headers, content_type=reply.media_type)
    response.response = _StreamedBody(body)
    del response.headers["Content-Length"]
    return response


async def _refuse(scope: Any, send: Any, reply: Reply) -> None:
    """Answers before any framework has looked at the request."""
    prefix = "websocket.http.response" if scope["type"] == "websocket" else "http.response"
    assert isinstance(reply.body, bytes)
    headers = {
        "content-type": reply.media_type,
        "content-length": str(len(reply.body)),
        "server": f"rik/{rik.__version__}",
        **reply.headers,
    }
    encoded = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": f"{prefix}.start", "status": reply.status, "headers": encoded})
    await send({"type": f"{prefix}.body", "body": reply.body, "more_body": False})

"""Every refusal is a problem document, and no bad request gets a 5xx."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import AsyncIterator

import httpx
import pytest
import trio
from trio_websocket import ConnectionClosed, open_websocket_url

from rik.api import app, session
from tests.api.conftest import Running, Serve
from tests.api.scheduler import DOCUMENT, instance

PROBLEM = "application/problem+json"


async def raw(running: Running, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the answer to bytes written by hand."""
    with trio.fail_after(10):
        stream = await trio.open_tcp_stream("127.0.0.1", running.port)
        async with stream:
            received = b""
            try:
                await stream.send_all(request)
                async for chunk in stream:
                    received += chunk
                    if received.startswith(b"HTTP/1.1 101"):
                        break
            except trio.BrokenResourceError:
                pass
    head, _, body = received.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return int(first.split()[1]), headers, body


@pytest.mark.parametrize(
    "path",
    ["/", "/nope", "/api/v0", "/api/v0/", "/api/v0/nodes.join", "/api/v0/nodes.cordon", "/api/v0/tenants.list",
     "/api/v1/instances.list", "/api/v0/instances.get/", "/api/v0/instances.list/",
     "/static/x", "/api/v0/instances.get/a/b"],
)  # fmt: skip
async def test_unknown_routes_are_404(running: Running, path: str) -> None:
    """A route that is not there, or not yet, is a 404 problem; there are no stubs."""
    for method in ("GET", "POST"):
        answer = await running.client.request(method, running.client.url + path)
        assert answer.status_code == 404 and answer.headers["content-type"] == PROBLEM


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("POST", "/api/v0/instances.list", "GET, HEAD"), ("GET", "/api/v0/workloads.create", "POST"),
     ("DELETE", "/healthz", "GET, HEAD"), ("PUT", "/api/v0/instances.delete", "POST"),
     ("OPTIONS", "/api/v0/instances.list", "GET, HEAD")],
)  # fmt: skip
async def test_a_wrong_method_names_the_right_one(running: Running, method: str, path: str, allowed: str) -> None:
    """The wrong method is 405 with Allow."""
    answer = await running.client.request(method, path)
    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)


@pytest.mark.parametrize(
    ("path", "parameter"),
    [("instances.list?limit=abc", "limit"), ("instances.list?limit=0", "limit"), ("instances.list?limit=-1", "limit"),
     ("instances.list?limit=1&limit=2", "limit"), ("instances.list?limit=9999999999999999999999", "limit"),
     ("instances.list?limit=%D9%A3", "limit"), ("instances.list?status=Sleeping", "status"),
     ("instances.list?continue=!!!", "continue"), ("instances.list?continue=YWJj", "continue"),
     ("events.list?since=-1", "since"), ("events.list?since=", "since"), ("events.list?limit=10001", "limit"),
     ("instances.logs/instance-1?tail=x", "tail"), ("instances.logs/instance-1?tail=-1", "tail"),
     ("instances.logs/instance-1?since=yesterday", "since"), ("instances.logs/instance-1?since=5x", "since"),
     ("instances.logs/instance-1?follow=maybe", "follow"), ("instances.logs/instance-1?timestamps=2", "timestamps")],
)  # fmt: skip
async def test_a_bad_query_parameter_is_named(running: Running, path: str, parameter: str) -> None:
    """A query parameter that makes no sense is 400 and named."""
    await running.scheduler.put(instance(1))
    answer = await running.client.get(f"/api/v0/{path}")
    assert answer.status_code == 400 and f"`{parameter}`" in answer.json()["detail"]


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"nonsense", b"[" * 100_000, b'{"a":' * 50_000, b"\xff\xfe\x00", b'{"id": "\xff"}', b'{"id": NaN}',
     b"\x00", b'{"id": 1}', b'{"id": {}}', b'{"id": "\\ud800"}', b'"x"', b"{}{}"],
)  # fmt: skip
async def test_malformed_json_is_400(running: Running, body: bytes) -> None:
    """A body that is not JSON, or not of the right shape, is 400 for every call that takes one."""
    for call in ("workloads.create", "workloads.delete", "instances.create", "instances.delete"):
        answer = await running.client.post(f"/api/v0/{call}", content=body)
        assert answer.status_code == 400, (call, body[:20], answer.text)


async def test_a_large_body_is_413(running: Running) -> None:
    """A body over 1 MiB is 413, whether it says so in advance or comes in chunks; one byte less is not."""

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield b" " * 65_536

    for content in (b" " * (2**20 + 1), chunks()):
        answer = await running.client.post("/api/v0/workloads.create", content=content)
        assert answer.status_code == 413, answer.text
    padded = json.dumps(DOCUMENT).encode()
    padded += b" " * (2**20 - len(padded))
    assert (await running.client.post("/api/v0/workloads.create", content=padded)).status_code == 200
    assert (await running.client.get("/healthz")).status_code == 200


async def test_an_endless_body_is_cut_off(running: Running) -> None:
    """A client that never stops sending is refused all the same, and not kept in memory."""
    head = b"POST /api/v0/workloads.create HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"10000\r\n" + b"x" * 65_536 + b"\r\n"
    received = b""
    with trio.fail_after(15):
        stream = await trio.open_tcp_stream("127.0.0.1", running.port)
        async with stream:
            try:
                await stream.send_all(head)
                for _ in range(2_000):
                    await stream.send_all(chunk)
            except trio.BrokenResourceError:
                pass
            else:
                raise AssertionError("125 MiB were taken")
            try:
                received = await stream.receive_some()
            except trio.BrokenResourceError:
                pass  # the reset overtook the answer
    assert not received or received.startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize("host", ["evil.example", "evil.example:5000", "", "localhost.evil.example", "127.0.0.1.evil"])
async def test_an_unknown_host_is_403(running: Running, host: str) -> None:
    """A Host that is no name of this server is refused: it may be a rebound name of somebody's web page."""
    status, headers, body = await raw(
        running, f"GET /healthz HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
    )
    assert status == 403 and headers["content-type"] == PROBLEM
    assert json.loads(body)["reason"] == "UnknownHost"


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:1", "127.0.0.1", "127.0.0.1:{port}", "[::1]:{port}", "rik.test"]
)
async def test_known_hosts_may_ask(serve: Serve, host: str) -> None:
    """localhost, loopback addresses, the listening address and the allowed names are good Hosts."""
    async with serve(allowed_hosts=("rik.test",)) as running:
        headers = {"Host": host.format(port=running.port)}
        assert (await running.client.get("/healthz", headers=headers)).status_code == 200


@pytest.mark.parametrize(
    ("origin", "status"),
    [("http://evil.example", 403), ("null", 403), ("http://localhost:1", 403), ("file://", 403), ("http://[", 403),
     ("https://127.0.0.1:{port}", 200), ("http://127.0.0.1:{port}", 200), ("http://rik.test", 200), ("", 403)],
)  # fmt: skip
async def test_a_foreign_origin_is_403(serve: Serve, origin: str, status: int) -> None:
    """What a web page of another origin has its visitor's browser send is refused, websockets too."""
    async with serve(allowed_hosts=("rik.test",)) as running:
        origin = origin.format(port=running.port)
        answer = await running.client.get("/healthz", headers={"Origin": origin})
        assert answer.status_code == status, answer.text
        url = f"ws://127.0.0.1:{running.port}/api/v0/instances.watch"
        if status == 200:
            async with open_websocket_url(url, extra_headers=[(b"Origin", origin.encode())]) as socket:
                await socket.get_message()
        else:
            given, _, body = await rejection(running, "instances.watch", origin)
            assert (given, json.loads(body)["reason"]) == (403, "ForeignOrigin")


async def rejection(
    running: Running, call: str, origin: str | None = None, prefix: str = "/api/v0/"
) -> tuple[int, dict[str, str], bytes]:
    """How the server refuses to open a websocket."""
    request = (
        f"GET {prefix}{call} HTTP/1.1\r\nHost: 127.0.0.1:{running.port}\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n"
    )
    if origin is not None:
        request += f"Origin: {origin}\r\n"
    return await raw(running, f"{request}\r\n".encode())


@pytest.mark.parametrize(
    ("path", "status"),
    [("nope", 404), ("nodes.join", 404), ("instances.watch?since=-1", 400), ("instances.watch?since=x", 400),
     ("instances.watch?status=Asleep", 400), ("instances.exec/nope?command=sh", 404), ("instances.attach/nope", 404),
     ("instances.logs/nope", 404), ("instances.exec/instance-1", 400), ("instances.list", 400)],
)  # fmt: skip
async def test_a_websocket_is_refused_with_a_problem(running: Running, path: str, status: int) -> None:
    """What is wrong with a websocket's request is said in an HTTP answer, before anything is opened."""
    given, headers, body = await rejection(running, path)
    assert given == status and headers["content-type"] == PROBLEM
    assert json.loads(body)["status"] == status


async def test_a_plain_request_for_a_websocket_is_426(running: Running) -> None:
    """A call that is a websocket says so to a plain GET."""
    answer = await running.client.get("/api/v0/instances.watch")
    assert (answer.status_code, answer.headers["upgrade"]) == (426, "websocket")


async def test_a_store_that_refuses_is_503(running: Running) -> None:
    """When nothing can be made durable a change is 503 with Retry-After, and reading goes on."""
    running.scheduler.store.refuse("No space left on device")
    answer = await running.client.post("/api/v0/workloads.create", json=DOCUMENT)
    assert answer.status_code == 503 and "No space left on device" in answer.json()["detail"]
    assert int(answer.headers["retry-after"]) >= 1
    assert await running.client.call("workloads.list") == []


async def test_a_scheduler_that_does_not_answer_is_503(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request waits for the scheduler no longer than its deadline."""
    monkeypatch.setattr(session, "ANSWER_DEADLINE_S", 0.2)
    running.scheduler.deaf = True
    answer = await running.client.post("/api/v0/workloads.create", json=DOCUMENT)
    assert answer.status_code == 503 and "did not answer" in answer.json()["detail"]


async def test_a_bug_is_500_without_its_traceback(
    running: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A bug of RIK's is told with an incident number, under which the log has the traceback."""

    def broken(*_: object) -> None:
        raise RuntimeError("a secret of the inside")

    monkeypatch.setattr(running.scheduler.store, "events", broken)
    with caplog.at_level(logging.ERROR, "rik.api"):
        answer = await running.client.get("/api/v0/events.list")
    assert answer.status_code == 500 and "secret" not in answer.text
    incident = answer.json()["detail"].split()[-1]
    assert any(incident in entry.getMessage() and entry.exc_info for entry in caplog.records)


async def test_garbage_instead_of_http_ends_one_connection_only(running: Running) -> None:
    """What is not HTTP is cut off, and others do not notice."""
    for garbage in (b"\x16\x03\x01\x02\x00\x01", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"x" * 100_000):
        with socket.create_connection(("127.0.0.1", running.port)) as client:
            client.sendall(garbage)
    assert (await running.client.get("/healthz")).status_code == 200


async def test_clients_that_leave_do_no_harm(running: Running) -> None:
    """A client that hangs up in the middle of its request, or before its answer, leaves nothing behind."""
    running.scheduler.deaf = True
    for _ in range(5):
        with trio.move_on_after(0.05):
            await running.client.post("/api/v0/workloads.create", json=DOCUMENT)
        with socket.create_connection(("127.0.0.1", running.port)) as client:
            client.sendall(b"POST /api/v0/workloads.create HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n{")
    running.scheduler.deaf = False
    async with httpx.AsyncClient(base_url=running.client.url) as other:
        assert (await other.get("/healthz")).status_code == 200


async def test_a_body_that_does_not_come_is_408(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that promises a body and does not send it is refused after a while."""
    monkeypatch.setattr(app, "BODY_DEADLINE_S", 0.2)
    async with serve() as running:
        head = b"POST /api/v0/instances.delete HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n{"
        status, headers, _ = await raw(running, head)
    assert (status, headers["content-type"]) == (408, PROBLEM)


async def test_a_bug_in_an_open_websocket_is_1011(
    running: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A bug in what is under way closes that websocket with 1011, is logged, and harms nobody else."""

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a secret of the inside")

    async with running.client.watch() as frames:
        await frames.next()
        monkeypatch.setattr(running.api._service.hub, "rest_s", broken)
        await running.scheduler.put(instance(1))
        with pytest.raises(ConnectionClosed) as closed:
            while True:
                await frames.next()
    assert closed.value.reason is not None and closed.value.reason.code == 1011
    assert "incident" in caplog.text
    assert (await running.client.get("/healthz")).status_code == 200


async def test_no_request_gets_a_5xx(running: Running) -> None:
    """Every path with every method, with odd queries and bodies, plain or as a websocket: never a 5xx but 503."""
    await running.scheduler.put(instance(1))
    document = (await running.client.get("/openapi.json")).json()
    queries = ("", "?", "?a=b&a", "?since=1&limit=1&tail=1", "?command=%ff%00&status=%F0", "?" + "x" * 2_000, "?&&==&%")
    for path in document["paths"]:
        path = path.replace("{instance}", "instance-1").replace("{workload}", "%e2%82").replace("{node}", "%2e%2e")
        for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"):
            for query in queries if method in ("GET", "POST") else ("",):
                content = b'{"id": ""}' if method in ("POST", "PUT", "PATCH") else None
                answer = await running.client.request(method, path + query, content=content)
                assert answer.status_code < 500 or answer.status_code == 503, (method, path, query, answer.text)
        for query in queries:
            status, _, body = await rejection(running, path + query, prefix="")
            assert status < 500 or status == 503, (path, query, body)

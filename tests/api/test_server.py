"""The role as a whole: how it starts, how it ends, and that its document describes it."""

from __future__ import annotations

import socket
from typing import Any

import httpx
import pytest
import trio

from rik.api.server import Api, ClusterInfo
from rik.environment import SystemEnvironment
from rik.errors import StartupError, Unavailable
from rik.link.base import Link
from rik.link.switchboard import Switchboard
from rik.messages import ToApi, ToScheduler
from rik.settings import ApiSettings
from tests.api.client import ApiClient
from tests.api.conftest import ENDS_WITHIN_S, Running, Serve
from tests.api.scheduler import DOCUMENT, Scheduler, instance


def api_on(scheduler: Scheduler, connect: Any = None, **settings: Any) -> Api:
    return Api(
        SystemEnvironment(),
        ApiSettings(**{"port": 0, **settings}),
        ClusterInfo("cluster-id", "node-a", "memory"),
        scheduler.store,
        connect or scheduler.connect,
        Switchboard(),
    )


@pytest.mark.parametrize("host", ["127.0.0.1", "192.0.2.1", "no such name", "127.0.0.1.5"])
async def test_an_address_that_cannot_be_had_is_one_line(host: str) -> None:
    """A port in use, or an address that is not here, is a StartupError naming the address."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(StartupError) as refused:
            await api_on(Scheduler(), host=host, port=port).run()
    assert f"{host}:{port}" in refused.value.message and "\n" not in str(refused.value)


async def test_nothing_is_accepted_before_the_view_is_filled() -> None:
    """The server listens only once it has its first snapshot, and is then really there."""
    scheduler = Scheduler()
    may_connect = trio.Event()

    async def connect() -> Link[ToScheduler, ToApi]:
        await may_connect.wait()
        return await scheduler.connect()

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            await nursery.start(scheduler.run)
            await scheduler.put(instance(1))
            nursery.start_soon(nursery.start, api_on(scheduler, connect, port=port).run)
            await trio.sleep(0.1)
            with pytest.raises(OSError):
                await trio.open_tcp_stream("127.0.0.1", port)
            may_connect.set()
            async with ApiClient(f"http://127.0.0.1:{port}") as client:
                while True:
                    try:
                        listed = await client.call("instances.list")
                        break
                    except httpx.ConnectError:
                        await trio.sleep(0.02)
            assert len(listed) == 1
            nursery.cancel_scope.cancel()


async def test_a_scheduler_that_is_not_there_yet_is_asked_again() -> None:
    """Failing to connect is no end: it is tried again until it works."""
    scheduler = Scheduler()
    failures = 3

    async def connect() -> Link[ToScheduler, ToApi]:
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise Unavailable("not yet")
        return await scheduler.connect()

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            await nursery.start(scheduler.run)
            url = await nursery.start(api_on(scheduler, connect).run)
            assert url.startswith("http://127.0.0.1:")
            nursery.cancel_scope.cancel()


async def test_without_its_scheduler_the_api_is_not_ready(serve: Serve) -> None:
    """While the scheduler is gone reading goes on, changes are 503 with Retry-After, and so is /readyz."""
    scheduler = Scheduler()
    refuse = False
    real = scheduler.connect

    async def connect() -> Link[ToScheduler, ToApi]:
        if refuse:
            raise Unavailable("gone")
        return await real()

    scheduler.connect = connect  # type: ignore[method-assign]
    async with serve(scheduler) as running:
        await scheduler.put(instance(1))
        refuse = True
        scheduler.hang_up()
        await trio.sleep(0.05)
        assert (await running.client.get("/healthz")).status_code == 200
        assert (await running.client.get("/readyz")).status_code == 503
        assert len(await running.client.call("instances.list")) == 1
        answer = await running.client.post("/api/v0/workloads.create", json=DOCUMENT)
        assert answer.status_code == 503 and "Retry-After" in answer.headers
        refuse = False
        with trio.fail_after(10):
            while (await running.client.get("/readyz")).status_code != 200:
                await trio.sleep(0.05)
        await running.client.do("workloads.create", DOCUMENT)


async def test_a_request_in_flight_is_told_when_the_scheduler_goes(serve: Serve) -> None:
    """A request whose answer was lost says that its effect is unknown."""
    async with serve() as running:
        running.scheduler.deaf = True
        async with trio.open_nursery() as nursery:

            async def hang_up() -> None:
                await trio.sleep(0.1)
                running.scheduler.deaf = False
                running.scheduler.hang_up()

            nursery.start_soon(hang_up)
            answer = await running.client.post("/api/v0/workloads.create", json=DOCUMENT)
        assert answer.status_code == 503 and "unknown" in answer.json()["detail"]


async def test_idle_connections_do_not_delay_the_end(serve: Serve) -> None:
    """Kept-alive connections are closed at once when the server ends."""
    async with serve() as running:
        await running.client.get("/healthz")
        started = trio.current_time()
        running.api.shutdown()
        await running.ended.wait()
        assert trio.current_time() - started < ENDS_WITHIN_S
        with pytest.raises(OSError):
            await trio.open_tcp_stream("127.0.0.1", running.port)


async def test_a_client_that_reads_no_answer_does_not_delay_the_end(serve: Serve) -> None:
    """A request whose large answer nobody reads neither holds up the shutdown nor a cancellation."""
    for orderly in (True, False):
        async with serve(shutdown_s=1.0) as running:
            records = [instance(number, enforced={"padding": "x" * 10_000}) for number in range(1_500)]
            await running.scheduler.put(*records)
            with socket.socket() as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
                client.connect(("127.0.0.1", running.port))
                client.sendall(b"GET /api/v0/instances.list HTTP/1.1\r\nHost: localhost\r\n\r\n")
                await trio.sleep(0.5)
                started = trio.current_time()
                if orderly:
                    running.api.shutdown()
                    await running.ended.wait()
                    assert trio.current_time() - started < ENDS_WITHIN_S
                else:
                    running.nursery.cancel_scope.cancel()
        assert trio.current_time() - started < ENDS_WITHIN_S


async def test_the_document_describes_every_call_of_the_contract(serve: Serve) -> None:
    """`/openapi.json` is 3.1, has every call of this issue and none of those to come."""
    async with serve() as running:
        document = (await running.client.get("/openapi.json")).json()
    assert document["openapi"] == "3.1.0"
    calls = {path.removeprefix("/api/v0/").partition("/")[0] for path in document["paths"] if "/api/v0/" in path}
    assert calls == {
        "workloads.list", "workloads.create", "workloads.delete", "workloads.instances", "workloads",
        "instances.list", "instances.get", "instances.create", "instances.delete", "instances.logs", "instances.exec",
        "instances.attach", "instances.stats", "instances.explain", "instances.watch",
        "nodes.list", "nodes.get", "nodes.audit", "nodes.doctor", "events.list", "cluster.info",
        "images.list", "images.pull", "images.prune",
    }  # fmt: skip
    assert {"/healthz", "/readyz", "/metrics", "/openapi.json", "/workloads/schema-v1.json"} <= set(document["paths"])
    names = [operation["operationId"] for path in document["paths"].values() for operation in path.values()]
    assert len(names) == len(set(names))


async def test_a_client_that_leaves_takes_its_connection_with_it(running: Running) -> None:
    """A connection that its client has closed is closed here too, at once and not when keep-alive has run out."""
    stream = await trio.open_tcp_stream("127.0.0.1", running.port)
    await stream.send_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert (await stream.receive_some()).startswith(b"HTTP/1.1 200")
    await stream.send_eof()
    with trio.fail_after(5):
        while await stream.receive_some():
            pass
    await stream.aclose()

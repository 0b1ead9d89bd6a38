"""What follows something live: websockets to the server, with reconnects that lose and repeat nothing. Loads Trio."""

from __future__ import annotations

import json
import math
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar, TypeVarTuple

import trio
from trio_websocket import (
    ConnectionClosed,
    ConnectionRejected,
    ConnectionTimeout,
    DisconnectionTimeout,
    HandshakeError,
    WebSocketConnection,
    open_websocket_url,
)

from rik.cli.client import CONNECT_TIMEOUT_S, Query, base_headers, path_of, refusal, ssl_context, unreachable
from rik.cli.config import Cluster
from rik.cli.errors import CommandError, RequestRefused, Unreachable

CLOSE_TIMEOUT_S = 1.0  # a server that is going away does not hold up our own end
SILENCE_S = 30.0  # the server says `sync` at least every 10 s; three missed ones mean that the connection is dead
RETRY_FIRST_S = 0.2
RETRY_MOST_S = 5.0
MESSAGES_AHEAD = 256  # frames taken from the socket before the consumer has read them
MESSAGE_MAX_BYTES = 256 * 2**20  # a snapshot of a large cluster is one message
NORMAL_CLOSURE = 1000
FAILED_CLOSURE = 1011

Frame = Mapping[str, Any]
T = TypeVar("T")
Ts = TypeVarTuple("Ts")


def run_live(main: Callable[[*Ts], Awaitable[T]], *args: *Ts) -> T:
    """Runs `main` on Trio; of a group of errors the one that matters to the user is raised alone."""
    try:
        return trio.run(main, *args)
    except BaseExceptionGroup as group:
        raise _telling(group) from group


def _telling(group: BaseExceptionGroup[BaseException]) -> BaseException:
    leaves: list[BaseException] = []
    waiting: list[BaseException] = [group]
    while waiting:
        error = waiting.pop(0)
        if isinstance(error, BaseExceptionGroup):
            waiting.extend(error.exceptions)
        else:
            leaves.append(error)
    for kind in (KeyboardInterrupt, CommandError, BrokenPipeError):
        for leaf in leaves:
            if isinstance(leaf, kind):
                return leaf
    return leaves[0]


@asynccontextmanager
async def websocket(
    cluster: Cluster, call: str, *names: str, query: Query | None = None
) -> AsyncIterator[WebSocketConnection]:
    """An open websocket. Raises RequestRefused when the server does not want it and Unreachable when there is none."""
    secure = cluster.scheme == "https"
    url = f"{'wss' if secure else 'ws'}://{cluster.authority}{cluster.prefix}{path_of(call, *names, query=query)}"
    headers = [(name.encode(), value.encode()) for name, value in base_headers(cluster).items()]
    try:
        async with open_websocket_url(
            url,
            ssl_context=ssl_context(cluster) if secure else None,
            extra_headers=headers,
            message_queue_size=MESSAGES_AHEAD,
            max_message_size=MESSAGE_MAX_BYTES,
            connect_timeout=CONNECT_TIMEOUT_S,
            disconnect_timeout=CLOSE_TIMEOUT_S,
        ) as connection:
            yield connection
    except DisconnectionTimeout:
        pass  # we were done with it anyway
    except ConnectionRejected as error:
        sent = {name.decode().title(): value.decode() for name, value in error.headers or ()}
        raise refusal(error.status_code, error.body or b"", sent) from error
    except ConnectionTimeout as error:
        raise unreachable(cluster, TimeoutError()) from error
    except HandshakeError as error:
        raise unreachable(cluster, _root(error)) from error


def _root(error: BaseException) -> BaseException:
    """The error of the operating system below a failed handshake, as far as there is one."""
    while True:
        if isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        elif isinstance(error.__cause__, BaseException) and not isinstance(error, ConnectionRefusedError):
            error = error.__cause__
        else:
            return error


@asynccontextmanager
async def watching(
    cluster: Cluster, query: Query | None = None, *, since: int | None = None, patience_s: float = math.inf
) -> AsyncIterator[trio.MemoryReceiveChannel[Frame]]:
    """The frames of `instances.watch`, across reconnects: each revision once, or a `gap` frame and a snapshot.

    Beside the server's own frames there are two of ours: `{"type": "lost", "error"}` when the connection broke, and
    `{"type": "resumed", "revision"}` when it is there again. An outage longer than `patience_s` raises Unreachable; so
    does a first connection that fails.
    """
    send, receive = trio.open_memory_channel[Frame](0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_pump, cluster, dict(query or {}), since, patience_s, send)
        async with receive:
            yield receive
        nursery.cancel_scope.cancel()


async def _pump(
    cluster: Cluster,
    query: dict[str, Any],
    since: int | None,
    patience_s: float,
    send: trio.MemorySendChannel[Frame],
) -> None:
    revision, lost_at, wait_s = since, -1.0, RETRY_FIRST_S
    connected_once = False
    async with send:
        while True:
            try:
                async with websocket(cluster, "instances.watch", query={**query, "since": revision}) as connection:
                    if lost_at >= 0:
                        await send.send({"type": "resumed", "revision": revision})
                    connected_once, lost_at, wait_s = True, -1.0, RETRY_FIRST_S
                    while True:
                        with trio.fail_after(SILENCE_S):
                            message = await connection.get_message()
                        frame = json.loads(message)
                        if frame.get("type") == "bye":
                            raise Unreachable("the server is shutting down")
                        revision = _further(revision, frame)
                        await send.send(frame)
            except RequestRefused as error:
                if error.status < 500 or not connected_once:
                    raise
                trouble = error.message
            except Unreachable as error:
                if not connected_once:
                    raise
                trouble = error.message
            except ConnectionClosed as error:
                code = error.reason.code if error.reason is not None else None
                trouble = f"the server closed the connection{f' (code {code})' if code else ''}"
            except trio.TooSlowError:
                trouble = f"nothing was heard from the server for {SILENCE_S:.0f} s"
            if lost_at < 0:
                lost_at = trio.current_time()
                await send.send({"type": "lost", "error": trouble})
            if trio.current_time() - lost_at > patience_s:
                raise Unreachable(f"the connection was lost and did not come back: {trouble}")
            await trio.sleep(wait_s * random.uniform(0.8, 1.2))
            wait_s = min(2 * wait_s, RETRY_MOST_S)


def _further(revision: int | None, frame: Frame) -> int | None:
    """The revision to resume after, once `frame` has been seen."""
    if frame.get("type") in ("snapshot", "instance", "sync"):
        return int(frame["revision"])
    return revision

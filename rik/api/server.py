"""`Api`, the role: binds, connects to the scheduler, serves, and comes to an end whatever its clients do."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from functools import partial

import h11
import hypercorn.trio.run
import trio
from hypercorn.config import Config, Sockets
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio import serve
from hypercorn.trio.tcp_server import TCPServer

from rik.api.app import Application
from rik.api.connections import Address, Connections, end_all, listening_socket
from rik.api.gate import Gate
from rik.api.metrics import Metrics
from rik.api.service import ClusterInfo, Service
from rik.api.session import Connect, Session
from rik.api.view import View
from rik.environment import Environment
from rik.errors import StartupError
from rik.link.switchboard import Switchboard
from rik.settings import ApiSettings
from rik.store.base import Store

__all__ = ["Api", "ClusterInfo"]

log = logging.getLogger("rik.api")

# Connections that may wait to be accepted; 500 creates at once are nothing unusual.
BACKLOG = 1_024
REQUESTS_A_CONNECTION = 1_000_000
# One frame of exec's input; the queue of received messages before its reader holds ten.
MAX_WEBSOCKET_MESSAGE_BYTES = 2**20
# Of the time to shut down, the part that clients have to read their goodbye before their connections are ended.
PATIENCE = 0.6
HOUSEKEEPING_INTERVAL_S = 5.0


class Api:
    """The api of one host. `store` is only read. `connect` opens a session with the scheduler, again and again."""

    def __init__(
        self,
        environment: Environment,
        settings: ApiSettings,
        info: ClusterInfo,
        store: Store,
        connect: Connect,
        switchboard: Switchboard,
    ) -> None:
        view = View(settings.watch_queue)
        self._settings = settings
        self._session = Session(environment, connect, view)
        self._service = Service(environment, settings, info, view, self._session, store, switchboard)
        self._connections = Connections()
        metrics = Metrics(view, self._service.hub, self._session)
        self._application = Application(self._service, metrics, Gate(settings), self._connections)

    @property
    def watchers(self) -> int:
        """How many clients are watching."""
        return self._service.hub.watchers

    def shutdown(self) -> None:
        """Begins an orderly end: nothing new is accepted, watchers are told; `run` returns within a few seconds."""
        self._service.closing.set()
        self._service.view.wake()

    async def run(self, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        """Started with the URL once requests are accepted and the view is filled. Raises StartupError."""
        with _listen(self._settings) as listener:
            address = listener.getsockname()
            async with trio.open_nursery() as nursery:
                await nursery.start(self._session.run)
                nursery.start_soon(self._connections.run, address)
                nursery.start_soon(self._publish_progress)
                nursery.start_soon(self._keep_house)
                nursery.start_soon(self._end_connections, address)
                async with trio.open_nursery() as serving:
                    urls = await serving.start(
                        partial(
                            serve,
                            self._application,
                            _config(self._settings, listener),
                            shutdown_trigger=self._service.closing.wait,
                            mode="asgi",
                        )
                    )
                    task_status.started(urls[0])
                nursery.cancel_scope.cancel()

    async def _publish_progress(self) -> None:
        """At most one frame an instance and interval; what comes between is superseded."""
        while True:
            fresh = await self._session.fresh_progress()
            self._service.hub.publish_progress(sorted(fresh))
            await trio.sleep(self._settings.progress_interval_s)

    async def _keep_house(self) -> None:
        while True:
            await trio.sleep(HOUSEKEEPING_INTERVAL_S)
            self._service.hub.forget_snapshot()

    async def _end_connections(self, address: Address) -> None:
        await self._service.closing.wait()
        await trio.sleep(self._settings.shutdown_s * PATIENCE)
        end_all(address)


def _listen(settings: ApiSettings) -> socket.socket:
    try:
        return listening_socket(settings.host, settings.port)
    except (OSError, OverflowError) as error:
        text = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise StartupError(
            f"cannot listen on {settings.host}:{settings.port}: {text}",
            next_step="choose another address with --listen HOST:PORT, or port 0 for any free one",
        ) from None


class _Connection(TCPServer):
    """Hypercorn's connection, which ends when its client has gone, and whose faults are its own.

    Hypercorn 0.18 waits for the keep-alive timer first, with the socket open: a loop of short calls, each with a
    connection of its own, would use up the descriptors. And whatever its protocols raise (when frames follow a
    handshake that was refused) would end the listener, and with it the whole host.
    """

    async def run(self) -> None:
        try:
            await super().run()
        except* Exception as group:
            reasons = ", ".join(f"{type(error).__name__}: {str(error)[:200]!r}" for error in _leaves(group))
            log.warning("a connection was ended by a fault in its protocol: %s", reasons)
            log.debug("the fault", exc_info=group)

    async def _read_data(self) -> None:
        await super()._read_data()
        await self.idle_task.stop()


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


async def _stay_with_http1(protocol: H11Protocol, request: h11.Request) -> None:
    """Instead of Hypercorn's turning to HTTP/2, which no client here needs: a stream whose client resets it leaves its
    handler waiting to send for ever, and with it the shutdown."""


hypercorn.trio.run.TCPServer = _Connection  # type: ignore[attr-defined]  # it has no settings for these two
H11Protocol._check_protocol = _stay_with_http1  # type: ignore[assignment]


class _Config(Config):
    """Hypercorn's settings, with a socket that is bound already; whoever bound it closes it."""

    def __init__(self, listener: socket.socket) -> None:
        super().__init__()
        self._listener = listener

    def create_sockets(self) -> Sockets:
        return Sockets(secure_sockets=[], insecure_sockets=[self._listener], quic_sockets=[])


def _config(settings: ApiSettings, listener: socket.socket) -> Config:
    config = _Config(listener)
    config.backlog = BACKLOG
    config.graceful_timeout = settings.shutdown_s
    config.keep_alive_timeout = settings.keep_alive_s
    config.keep_alive_max_requests = REQUESTS_A_CONNECTION
    config.websocket_max_message_size = MAX_WEBSOCKET_MESSAGE_BYTES
    config.include_server_header = False
    config.accesslog = None
    config.errorlog = logging.getLogger("hypercorn.error")
    return config

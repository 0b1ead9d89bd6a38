"""The worker's end of the link to the scheduler: hello, heartbeats, reports, streams; again whenever the link ends."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import trio

from rik.environment import Environment
from rik.errors import RikError
from rik.link.base import Link, LinkClosed
from rik.messages import (
    FromWorker,
    Heartbeat,
    Hello,
    Order,
    Orders,
    Rejected,
    ReportsAcknowledged,
    Run,
    Stop,
    ToWorker,
    Welcome,
)
from rik.worker.reporter import Reporter
from rik.worker.streams import Streams

log = logging.getLogger(__name__)

# Between two tries to reach the scheduler: from the first to the last, doubling, each shortened at random by up to
# half.
FIRST_RECONNECT_S = 0.5
LAST_RECONNECT_S = 15.0
# A node that was rejected asks again: whoever has its name may have gone.
REJECTED_PAUSE_S = 60.0

Connect = Callable[[], Awaitable[Link[FromWorker, ToWorker]]]


class Holder(Protocol):
    """Who holds the instances: what a session asks of the worker."""

    def uids(self) -> frozenset[str]: ...

    def hello(self) -> Hello: ...

    async def metrics(self) -> dict[str, Any]: ...

    def obey(self, order: Order) -> None: ...

    def release(self, uid: str) -> None:
        """The scheduler knows how it ended."""


class Sessions:
    """One session after the other, for as long as `run` does. `joined` is set once a scheduler has welcomed it."""

    def __init__(
        self,
        environment: Environment,
        holder: Holder,
        reporter: Reporter,
        streams: Streams,
        *,
        heartbeat_interval_s: float,
        joined: trio.Event,
    ) -> None:
        self._environment = environment
        self._holder = holder
        self._reporter = reporter
        self._streams = streams
        self._heartbeat_interval_s = heartbeat_interval_s
        self._joined = joined
        self._welcomed = False

    async def run(self, connect: Connect) -> None:
        """Until cancelled. Neither a scheduler that is gone nor a fault of RIK's own ends it."""
        pause_s = FIRST_RECONNECT_S
        while True:
            self._welcomed = False
            refusal = ""
            try:
                link = await connect()
                try:
                    refusal = await self._session(link)
                finally:
                    link.close()
            except (OSError, LinkClosed, RikError) as error:
                log.warning("the scheduler cannot be reached: %s", error or "the link was closed")
            except Exception:
                log.exception("the session with the scheduler met a fault in RIK, and is begun anew")
            if refusal:
                log.error("this node may not take part: %s", refusal)
                await trio.sleep(REJECTED_PAUSE_S)
                continue
            if self._welcomed:
                pause_s = FIRST_RECONNECT_S
            await trio.sleep(self._environment.jitter(pause_s))
            pause_s = min(LAST_RECONNECT_S, pause_s * 2)

    async def _session(self, link: Link[FromWorker, ToWorker]) -> str:
        """From hello to the end of the link; returns why the node was rejected, "" when it was not."""
        refusal = ""
        held = self._holder.uids()
        try:
            await link.send(self._holder.hello())
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._beat, link)
                nursery.start_soon(self._accept_streams, link)
                nursery.start_soon(self._reporter.run, link)
                while True:
                    message = await link.receive()
                    if isinstance(message, Rejected):
                        refusal = message.message
                        nursery.cancel_scope.cancel()
                        break
                    self._handle(message, held)
        except* LinkClosed:
            log.info("the link to the scheduler was closed")
        return refusal

    def _handle(self, message: Welcome | Orders | ReportsAcknowledged, held: frozenset[str]) -> None:
        match message:
            case Welcome():
                named = {_uid(order) for order in message.orders}
                for order in message.orders:
                    self._holder.obey(order)
                for uid in held - named:  # nobody wants it any more
                    self._holder.obey(Stop(uid, message="the scheduler does not know it"))
                self._welcomed = True
                self._joined.set()
            case Orders():
                for order in message.orders:
                    self._holder.obey(order)
            case ReportsAcknowledged():
                for uid in self._reporter.acknowledge(message.sequences):
                    self._holder.release(uid)

    async def _beat(self, link: Link[FromWorker, ToWorker]) -> None:
        sequence = 0
        while True:
            sequence += 1
            await link.send(Heartbeat(sequence, await self._holder.metrics()))
            await trio.sleep(self._heartbeat_interval_s)

    async def _accept_streams(self, link: Link[FromWorker, ToWorker]) -> None:
        async with trio.open_nursery() as nursery:
            while True:
                request, stream = await link.accept_stream()
                nursery.start_soon(self._streams.serve, request, stream)


def _uid(order: Order) -> str:
    return order.assignment.uid if isinstance(order, Run) else order.uid

"""Everybody who is connected: takes in what they say, and tells them what has become durable. Never waits for them."""

from __future__ import annotations

import msgspec
import trio

from rik.environment import Environment
from rik.link.base import Link, LinkClosed
from rik.link.switchboard import Switchboard
from rik.messages import (
    Committed,
    FromWorker,
    Heartbeat,
    Hello,
    LiveNode,
    LiveProgress,
    ProgressReport,
    Reports,
    Request,
    ToApi,
    ToScheduler,
    ToWorker,
)
from rik.model.change import DELETE, NODE
from rik.model.instance import Instance, Progress, Status
from rik.model.node import NodeStatus
from rik.scheduler.leases import Leases
from rik.scheduler.ledger import Batch
from rik.scheduler.sessions import ApiSession, NodeSession, uid_of
from rik.scheduler.state import State


class Tick:
    """Time has passed."""


class Arrived(msgspec.Struct, frozen=True):
    """An api has connected."""

    session: ApiSession


class Asked(msgspec.Struct, frozen=True):
    session: ApiSession
    request: Request


class Said(msgspec.Struct, frozen=True):
    session: NodeSession
    message: FromWorker


Item = Tick | Arrived | Asked | Said


class Reception:
    """`state` is what the scheduler decides upon, set by it; `inbox` is where it takes what was said.

    `apis`, `sessions` (by node id), `progress` (by uid) and `leases` outlive a reload of the state.
    """

    def __init__(
        self, environment: Environment, inbox: trio.MemorySendChannel[Item], leases: Leases, switchboard: Switchboard
    ) -> None:
        self.state: State
        self.leases = leases
        self.apis: dict[ApiSession, None] = {}
        self.sessions: dict[str, NodeSession] = {}
        self.progress: dict[str, Progress] = {}
        self._live: dict[str, LiveNode] = {}
        self._environment = environment
        self._inbox = inbox
        self._switchboard = switchboard

    async def serve_api(self, link: Link[ToApi, ToScheduler]) -> None:
        """Until the link ends: a snapshot, every change from there on, and answers."""
        session = ApiSession(link)
        try:
            await self._inbox.send(Arrived(session))
            while True:
                await self._inbox.send(Asked(session, await link.receive()))
        except (LinkClosed, trio.BrokenResourceError):
            pass
        finally:
            session.close()
            self.apis.pop(session, None)

    async def serve_node(self, link: Link[ToWorker, FromWorker]) -> None:
        """Until the link ends: welcomes the node and keeps in step with it. The end of a link is not yet the end of
        the node's lease."""
        session = NodeSession(link)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write_to_node, session, nursery.cancel_scope)
                await self._listen_to_node(session)
                nursery.cancel_scope.cancel()
        finally:
            session.close()
            if self.sessions.get(session.node_id) is session:
                del self.sessions[session.node_id]
            self._switchboard.detach(session.node_id, link)

    async def _write_to_node(self, session: NodeSession, ends: trio.CancelScope) -> None:
        try:
            await session.write()
        except LinkClosed:
            ends.cancel()

    async def _listen_to_node(self, session: NodeSession) -> None:
        try:
            while True:
                message = await session.link.receive()
                if isinstance(message, Hello):
                    session.greeted = True
                    await self._inbox.send(Said(session, message))
                elif not session.greeted:
                    session.reject("a worker must say hello first")
                elif isinstance(message, Reports):
                    if session.node_id:
                        self.leases.hear(session.node_id, trio.current_time())
                    await self._inbox.send(Said(session, message))
                elif session.node_id:
                    await self._hear_live(session, message)
        except (LinkClosed, trio.BrokenResourceError):
            pass

    async def _hear_live(self, session: NodeSession, message: Heartbeat | ProgressReport) -> None:
        """Costs no commit, unless its node had been given up on."""
        self.leases.hear(session.node_id, trio.current_time())
        if isinstance(message, ProgressReport):
            self._relay_progress(session, message)
        else:
            self._relay_heartbeat(session, message)
        if self._is_given_up(session.node_id):
            await self._inbox.send(Said(session, message))

    def _is_given_up(self, node_id: str) -> bool:
        node = self.state.nodes.get(node_id)
        return node is not None and node.status == NodeStatus.NOT_READY

    # --- what is told without a revision ---

    def _relay_progress(self, session: NodeSession, report: ProgressReport) -> None:
        for uid, progress in report.progress.items():
            instance = self.state.instances.get(uid)
            if instance is None or instance.node_id != session.node_id or instance.status != Status.CREATING:
                continue
            self.progress[uid] = progress
            for api in self.apis:
                api.tell_live(LiveProgress(uid, progress))

    def _relay_heartbeat(self, session: NodeSession, heartbeat: Heartbeat) -> None:
        live = LiveNode(session.node_id, self._environment.now(), heartbeat.metrics)
        self._live[session.node_id] = live
        for api in self.apis:
            api.tell_live(live)

    # --- what is durable ---

    def tell(self, batch: Batch) -> list[str]:
        """Everything that may now be known. Returns the instances that are to be stopped and whose worker never heard
        of them."""
        unheard: list[str] = []
        committed = Committed(tuple(batch.changes))
        for api in list(self.apis):
            api.tell(committed)
        for api, snapshot in batch.newcomers:
            api.begin(snapshot)
            api.tell(committed)
            for live in self._live.values():
                api.tell_live(live)
            for uid, progress in self.progress.items():
                api.tell_live(LiveProgress(uid, progress))
        for change in batch.changes:
            if isinstance(change.value, Instance) and change.value.status != Status.CREATING:
                self.progress.pop(change.key, None)
            elif change.kind == NODE and change.op == DELETE:
                self._live.pop(change.key, None)
        if batch.changes:
            self._environment.step("scheduler.announced")
        for api, answer in batch.answers:
            api.answer(answer)
            self._environment.step("scheduler.answered")
        for session, message in batch.rejections:
            session.reject(message)
        for session, welcome in batch.welcomes:
            session.welcome(welcome)
            if not session.closed:
                self._switchboard.attach(session.node_id, session.link)
        for session, sequences in batch.acknowledgements:
            session.acknowledge(sequences)
            self._environment.step("scheduler.acknowledged")
        for node_id, order in batch.orders:
            node = self.sessions.get(node_id)
            if node is None or not node.welcomed:
                continue  # its welcome will hold what is then to be done
            if not node.order(order):
                unheard.append(uid_of(order))
            self._environment.step("scheduler.ordered")
        return unheard

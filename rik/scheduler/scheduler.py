"""The scheduler: one loop that decides, one that commits, and a session for everybody who is connected.

    inbox -> decide (state runs ahead, the next batch fills) -> commit (one batch at a time) -> frames, answers, orders

While a batch is being made durable the next one fills; nothing of a batch leaves before the store has it. When a commit
fails, everything decided since is void: who asked is answered `unavailable`, the state is loaded again, apis begin anew
with a snapshot, and the workers whose messages are lost are disconnected, so that they say hello and send them again.
"""

from __future__ import annotations

import logging
import math

import trio

from rik.environment import Environment
from rik.errors import BadRequest, Conflict, NotFound, Refused, StoreUnavailable
from rik.link.base import Link
from rik.link.switchboard import Switchboard
from rik.messages import (
    Answer,
    FromWorker,
    Hello,
    Reports,
    Request,
    ToApi,
    ToScheduler,
    ToWorker,
)
from rik.scheduler import lifecycle
from rik.scheduler.commands import Commands
from rik.scheduler.leases import Leases
from rik.scheduler.ledger import Batch, Ledger
from rik.scheduler.nodes import Nodes
from rik.scheduler.pending import MESSAGE_INTERVAL_S, Placer
from rik.scheduler.reception import Arrived, Asked, Item, Reception, Said, Tick
from rik.scheduler.sessions import NodeSession
from rik.scheduler.state import State
from rik.settings import SchedulerSettings
from rik.store.base import Store

log = logging.getLogger("rik.scheduler")

# Messages that wait to be decided upon; then those who send them have to wait.
INBOX_MESSAGES = 1_000
# Changes that a filling batch may hold while another is being committed; then no more is decided.
BATCH_CHANGES = 5_000
# Pause before what nobody waits for (deadlines, leases) is tried again after the store refused a batch.
STORE_RETRY_S = 2.0
# How often finished instances and post-mortems are looked through, and how many are removed at a time.
PURGE_INTERVAL_S = 30.0
PURGE_AT_ONCE = 500

_KINDS: tuple[tuple[type[Refused], str], ...] = (
    (BadRequest, "bad-request"),
    (NotFound, "not-found"),
    (Conflict, "conflict"),
)


class Scheduler:
    """The only writer of cluster state. `run` first; `serve_api` and `serve_node` once for every link."""

    def __init__(
        self, environment: Environment, store: Store, settings: SchedulerSettings, switchboard: Switchboard
    ) -> None:
        self._environment = environment
        self._store = store
        self._settings = settings
        self._send, self._inbox = trio.open_memory_channel[Item](INBOX_MESSAGES)
        self._leases = Leases(settings.lease_s, settings.lost_after_s)
        self._reception = Reception(environment, self._send, self._leases, switchboard)
        self._work = trio.Event()
        self._room = trio.Event()
        self._sound = False
        self._committing: Batch | None = None
        self._quiet_until = -math.inf
        self._renew_messages_at = 0.0

    # --- life ---

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Loads the state, then serves until cancelled; ready when it can."""
        await self._load()
        for node_id in self._ledger.state.nodes:
            self._leases.hear(node_id, trio.current_time())
        self._sound = True
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._decide)
                nursery.start_soon(self._commit)
                nursery.start_soon(self._tick)
                nursery.start_soon(self._purge_postmortems)
                task_status.started()
        finally:
            self._inbox.close()

    async def serve_api(self, link: Link[ToApi, ToScheduler]) -> None:
        """Until the link ends: a snapshot, every change from there on, and answers."""
        await self._reception.serve_api(link)

    async def serve_node(self, link: Link[ToWorker, FromWorker]) -> None:
        """Until the link ends: welcomes the node and keeps in step with it. The end of a link is not yet the end of
        the node's lease."""
        await self._reception.serve_node(link)

    # --- deciding ---

    async def _decide(self) -> None:
        while True:
            if self._may_place():
                await trio.lowlevel.checkpoint()
                try:
                    item: Item | None = self._inbox.receive_nowait()
                except trio.WouldBlock:
                    item = None
            else:
                item = await self._inbox.receive()
            if not self._sound:
                await self._turn_away(item)
                continue
            try:
                if item is not None:
                    self._handle(item)
                if self._may_place():
                    self._placer.turn()
            except Exception as error:
                # A bug: what was decided so far cannot be trusted, what is stored can.
                log.exception("the scheduler could not handle %s; it starts over from the store", type(item).__name__)
                if isinstance(item, Asked):
                    item.session.answer(_unavailable(item.request, f"an internal error: {error!r}"))
                elif isinstance(item, Said):
                    item.session.close()
                self._sound = False
            self._work.set()
            while len(self._ledger.batch.changes) > BATCH_CHANGES and self._committing is not None:
                self._room = trio.Event()
                await self._room.wait()

    def _may_place(self) -> bool:
        wanted = self._placer.busy or self._ledger.room_appeared
        return wanted and self._sound and trio.current_time() >= self._quiet_until

    def _handle(self, item: Item) -> None:
        match item:
            case Tick():
                self._pass_time()
            case Arrived(session=session) if not session.closed:
                self._reception.apis[session] = None
                self._ledger.batch.newcomers.append((session, self._ledger.snapshot()))
            case Asked(session=session, request=request):
                self._environment.step("scheduler.command")
                self._ledger.batch.answers.append((session, self._run(request)))
            case Said(session=session, message=message) if not session.closed:
                self._hear(session, message)

    def _hear(self, session: NodeSession, message: FromWorker) -> None:
        self._ledger.batch.nodes[session] = None
        if isinstance(message, Hello):
            self._nodes.greet(session, message, trio.current_time())
            return
        if not session.node_id:
            return  # its hello was not taken in: it will be told so
        self._nodes.heard(session.node_id)
        if isinstance(message, Reports):
            self._environment.step("scheduler.report")
            self._nodes.hear_reports(session, message)

    def _run(self, request: Request) -> Answer:
        try:
            return Answer(request.id, self._commands.run(request.command))
        except Refused as refusal:
            kind = next((word for error, word in _KINDS if isinstance(refusal, error)), "bad-request")
            return Answer(request.id, None, kind, refusal.message, refusal.next_step)

    def _pass_time(self) -> None:
        clock = trio.current_time()
        if clock < self._quiet_until:
            return
        self._nodes.check(clock)
        self._nodes.expire()
        self._purge_finished()
        if self._ledger.state.pending and clock >= self._renew_messages_at:
            self._renew_messages_at = clock + MESSAGE_INTERVAL_S
            self._placer.wanted = True

    def _purge_finished(self) -> None:
        state = self._ledger.state
        oldest_kept = self._ledger.now - lifecycle.millis(self._settings.keep_finished_s)
        excess = len(state.finished) - self._settings.keep_finished
        gone: list[str] = []
        for uid in state.finished:
            if len(gone) >= PURGE_AT_ONCE or (len(gone) >= excess and state.instances[uid].updated_at >= oldest_kept):
                break
            gone.append(uid)
        for uid in gone:
            self._ledger.take(lifecycle.remove(state.instances[uid]))

    async def _turn_away(self, item: Item | None) -> None:
        """There is no state to decide upon just now."""
        match item:
            case Asked(session=session, request=request):
                session.answer(_unavailable(request, "the store does not answer"))
            case Arrived() | Said():
                item.session.close()
            case _:
                await trio.sleep(self._settings.tick_s / 10)

    async def _tick(self) -> None:
        last = trio.current_time()
        while True:
            await trio.sleep(self._settings.tick_s)
            now = trio.current_time()
            if now - last > self._settings.lease_s / 2:
                # The process itself stood still (a suspended machine, a blocked loop): nobody else is to blame.
                self._leases.forgive(now - last)
            last = now
            await self._send.send(Tick())

    async def _purge_postmortems(self) -> None:
        settings = self._settings
        while True:
            await trio.sleep(PURGE_INTERVAL_S)
            before = self._environment.now() - lifecycle.millis(2 * settings.keep_finished_s)
            try:
                await self._store.purge_postmortems(before, 2 * settings.keep_finished)
            except StoreUnavailable as error:
                log.warning("old post-mortems are kept for now: %s", error)

    # --- committing ---

    async def _commit(self) -> None:
        while True:
            await self._work.wait()
            self._work = trio.Event()
            if not self._sound:
                await self._start_over(None, "the scheduler is starting over")
            batch = self._ledger.batch
            if batch.empty:
                continue
            self._ledger.batch = Batch()
            self._committing = batch
            try:
                await self._make_durable(batch)
            except StoreUnavailable as error:
                await self._start_over(batch, str(error))
            except Exception as error:
                log.exception("a batch was refused by the store as senseless")
                await self._start_over(batch, f"an internal error: {error!r}")
            else:
                for uid in self._reception.tell(batch):
                    self._nodes.never_reached(uid)
            finally:
                self._committing = None
                self._room.set()
            if not self._ledger.batch.empty:
                self._work.set()

    async def _make_durable(self, batch: Batch) -> None:
        if not batch.changes:
            return
        self._environment.step("scheduler.before-commit")
        last = await self._store.commit(batch.changes)
        self._environment.step("scheduler.after-commit")
        if last != batch.changes[-1].revision:
            raise StoreUnavailable(
                f"the store went on to revision {last}, not {batch.changes[-1].revision}: somebody else writes to it"
            )

    async def _start_over(self, failed: Batch | None, cause: str) -> None:
        """Voids everything decided since the last durable batch."""
        log.error("a batch could not be made durable, and is void: %s", cause)
        self._sound = False
        self._quiet_until = trio.current_time() + STORE_RETRY_S
        for batch in (failed, self._ledger.batch):
            if batch is not None:
                self._void(batch, cause)
        self._ledger.batch = Batch()
        while True:
            try:
                await self._load()
                break
            except StoreUnavailable as error:
                log.error("the store cannot be read either: %s", error)
                await trio.sleep(STORE_RETRY_S)
        self._sound = True
        snapshot = self._ledger.snapshot()
        for api in list(self._reception.apis):
            api.begin(snapshot)

    def _void(self, batch: Batch, cause: str) -> None:
        for api, answer in batch.answers:
            api.answer(Answer(answer.id, None, "unavailable", cause, "try again when the store is well"))
        for node in batch.nodes:
            node.close()

    async def _load(self) -> None:
        settings = self._settings
        loaded = await self._store.load()
        state = State(loaded, settings.creating_margin_s, settings.destroying_margin_s)
        self._ledger = Ledger(self._environment, state)
        self._reception.state = state
        self._placer = Placer(self._ledger, settings.placement)
        self._commands = Commands(self._ledger, self._placer)
        self._nodes = Nodes(self._ledger, self._reception.sessions, self._leases, self._reception.progress)


def _unavailable(request: Request, cause: str) -> Answer:
    return Answer(request.id, None, "unavailable", cause, "try again in a moment")

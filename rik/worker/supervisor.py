"""The life of one instance on this host, from the order to the final report: one task, one `Supervisor`.

What it does is in `_create` (order to Running), `_watch` (Running to its own end), `_conclude` (stopping what runs,
and making the outcome durable) and `_remove` (what it leaves on the host, and the last report). What the workload or
the host does wrong becomes a final status with its reason; a fault of RIK's own becomes InternalError, for this
instance alone."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import trio
from msgspec.structs import replace

from rik.errors import InstanceFailure, StoreUnavailable
from rik.messages import Stop
from rik.model.instance import Port, Progress, Reason, Status
from rik.network.publisher import CLUSTER_IP, Target
from rik.runtime.base import Failure, Observed, Pod, Runtime
from rik.worker.account import Account
from rik.worker.journal import Entry, Phase
from rik.worker.logtail import log_tail
from rik.worker.plan import Action, Ending, Plan, Site, fault_text, seconds
from rik.worker.turn import Turn

log = logging.getLogger(__name__)

# A runtime ends `stop` by itself with DestroyFailed; this much later its supervisor stops waiting for it.
STOP_MARGIN_S = 5.0
# Between two tries to destroy what would not die, growing from the first to the second.
FIRST_RETRY_S = 1.0
LAST_RETRY_S = 60.0
# Between two tries to have back a port that somebody took while RIK was down.
REPUBLISH_S = 5.0


class Supervisor:
    """`settled` is set once it runs or has ended, `ended` with its final report; `over` is true when nothing of it is
    left to be done, `forgettable` when the scheduler knows its end."""

    def __init__(self, site: Site, runtime: Runtime, entry: Entry) -> None:
        self.runtime = runtime
        self.settled = trio.Event()
        self.ended = trio.Event()
        self.over = False
        self.forgettable = False
        self._site = site
        self._pod = Pod.of(entry.assignment)
        self._account = Account(site, entry)
        self._scope = trio.CancelScope()
        self._wish = entry.stop
        self._failure: Failure | None = None
        self._begun = False  # something of it may be running
        self._remains = ""  # what would not go away, in words

    @property
    def uid(self) -> str:
        return self._pod.uid

    @property
    def name(self) -> str:
        return self._pod.assignment.name

    @property
    def status(self) -> Status:
        return self._account.status

    @property
    def grace_s(self) -> float:
        """How long it may take to end by itself when it is stopped."""
        return self._pod.spec.stop_grace_s

    def request_stop(self, order: Stop) -> None:
        """Takes effect at once, or never when its end has already begun. Repeating it changes nothing."""
        if self._wish is None:
            self._wish = order
            self._scope.cancel()

    async def run(self, plan: Plan) -> None:
        """To the final report, and on until what would not die has died. Cancelling it leaves the instance running."""
        try:
            await self._run(plan)
        except Exception as fault:
            log.exception("the supervisor of instance %s (%s) failed", self._pod.assignment.name, self.uid)
            await self._abandon(fault)
        self.settled.set()
        self.ended.set()
        self.over = True

    async def _abandon(self, fault: Exception) -> None:
        """Ends it as far as that is possible when the supervisor itself is at fault."""
        try:
            await self._conclude(Ending(Status.FAILED, Reason.INTERNAL_ERROR, fault_text(fault)))
            await self._remove()
        except Exception:
            log.exception("instance %s is given up; `rik audit` names what is left of it", self.uid)
            self._account.set(Status.FAILED, Reason.INTERNAL_ERROR, fault_text(fault))
            self._account.tell()

    async def _run(self, plan: Plan) -> None:
        if plan.action is not Action.REMOVE:
            ending = plan.ending
            if plan.action in (Action.CREATE, Action.WATCH):
                if self._wish is not None:
                    self._scope.cancel()
                with self._scope:
                    ending = await self._live(plan)
            else:
                self._begun = plan.action is Action.STOP
            if ending is None:
                ending = await self._begin_stop()
            await self._conclude(ending)
        await self._remove()

    # --- from the order to its own end -------------------------------------------------------------------------------

    async def _live(self, plan: Plan) -> Ending:
        """How it ends by itself; whatever goes wrong is one of the ways."""
        try:
            if plan.action is Action.CREATE:
                observed = await self._create()
            else:
                self._begun = True
                observed = plan.observed
                self._republish()
            return await self._watch(observed)
        except InstanceFailure as failure:
            return Ending.failed(failure)
        except StoreUnavailable as error:
            return Ending(Status.FAILED, Reason.CREATE_FAILED, f"it could not be created: {error}")
        except Exception as fault:
            log.exception("instance %s (%s) met a fault in RIK", self._pod.assignment.name, self.uid)
            return Ending(Status.FAILED, Reason.INTERNAL_ERROR, fault_text(fault))

    async def _create(self) -> Observed:
        environment, assignment = self._site.environment, self._pod.assignment
        environment.step("worker.accept.before-journal")
        await self._account.write(Phase.ACCEPTED)
        environment.step("worker.accept.journaled")
        self._account.tell()
        left_s = (assignment.creating_deadline_at - environment.now()) / 1000
        with trio.move_on_after(max(0.0, left_s)):
            async with Turn(self._site.starts, self._account.advance) as turn:
                await self._prepare(turn)
                return await self._start()
        message = f"it was not running within {seconds(self._pod.spec.creating_s)}; {self._account.doing()}"
        raise InstanceFailure(Reason.DEADLINE_EXCEEDED, message, next_step="see spec.deadlines.creatingSeconds")

    async def _prepare(self, turn: Turn) -> None:
        self._site.environment.step("worker.prepare.before")
        self._account.use(await self.runtime.prepare(self._pod, turn.report))
        self._site.environment.step("worker.prepare.done")
        await turn.take()
        self._account.advance(Progress("network"))
        self._account.publish(await self._publish(self._pod.spec.ports))

    async def _start(self) -> Observed:
        environment, start_s = self._site.environment, self._site.settings.start_s
        self._account.advance(Progress("start"))
        await self._account.write(Phase.STARTING)
        environment.step("worker.start.journaled")
        self._begun = True
        with trio.move_on_after(start_s) as limit:
            try:
                observed = await self.runtime.start(self._pod)
            except InstanceFailure:
                self._begun = False  # the runtime's promise
                raise
        if limit.cancelled_caught:
            message = f"its commands were not executed within {seconds(start_s)}; the step was start"
            raise InstanceFailure(Reason.DEADLINE_EXCEEDED, message)
        environment.step("worker.start.done")
        return observed

    async def _watch(self, observed: Observed) -> Ending:
        if observed.phase == "running":
            if self.status is Status.CREATING:
                self._account.set(Status.RUNNING)
            self._account.observe(observed)
            self._account.tell()
            self.settled.set()
            self._site.environment.step("worker.running.reported")
            await self._account.write_if_possible(Phase.RUNNING)
            self._site.environment.step("worker.running.journaled")
        elif observed.phase == "failing":
            self._changed(observed)
        if observed.phase != "ended":
            observed = await self.runtime.wait(self.uid, self._changed)
        self._begun = False
        self._account.observe(observed)
        failure = observed.failure or self._failure
        if failure is not None:
            return Ending.failed(failure)
        if observed.phase != "ended":
            return Ending(Status.FAILED, Reason.STOPPED_WITHOUT_STATUS, "it vanished while it was running")
        return Ending(Status.TERMINATED, message="every container exited with code 0")

    def _changed(self, observed: Observed) -> None:
        """Called by the runtime whenever a container's state changes."""
        self._account.observe(observed)
        if observed.phase == "failing" and observed.failure is not None and self._failure is None:
            self._failure = observed.failure
            self._account.set(Status.DESTROYING, observed.failure.reason, observed.failure.message)
        self._account.tell()

    # --- from the end to the final report ----------------------------------------------------------------------------

    async def _begin_stop(self) -> Ending:
        """Somebody asked for it. What had already failed by itself stays a failure."""
        wish = self._wish
        assert wish is not None, "only a wish interrupts an instance's life"
        self._account.wish(wish)
        message = wish.message or "stopped on request"
        self._account.set(Status.DESTROYING, wish.reason, message)
        await self._account.write_if_possible(Phase.STOPPING)
        self._site.environment.step("worker.stop.journaled")
        self._account.tell()
        if self._failure is not None:
            return Ending.failed(self._failure)
        return Ending(Status.FAILED if wish.reason else Status.TERMINATED, wish.reason, message)

    async def _conclude(self, ending: Ending) -> None:
        """Nothing of it runs afterwards, or the ending says what does; the outcome is durable before it is removed."""
        if self._begun:
            if self.status is not Status.DESTROYING:
                self._account.set(Status.DESTROYING, ending.reason, ending.message)
                self._account.tell()
            await self._stop()
            self._site.environment.step("worker.stop.done")
        self._site.publisher.withdraw(self.uid)
        try:
            observed = await self.runtime.observe(self.uid)
        except InstanceFailure as failure:
            log.warning("instance %s cannot be looked at: %s", self.uid, failure)
        else:
            self._account.observe(observed)
        self._account.keep_lines(await log_tail(self.runtime, self.uid))
        self._end(ending)
        self._site.environment.step("worker.outcome.before-journal")
        await self._account.write_if_possible(Phase.REMOVING)
        self._site.environment.step("worker.outcome.journaled")

    async def _stop(self) -> None:
        grace_s = self._pod.spec.stop_grace_s
        limit_s = grace_s + self._site.settings.destroy_s + STOP_MARGIN_S
        await self._try(lambda: self.runtime.stop(self.uid, grace_s), limit_s, "it could not be stopped")

    async def _remove_once(self) -> None:
        limit_s = self._site.settings.destroy_s
        await self._try(lambda: self.runtime.remove(self.uid), limit_s, "its remains could not be removed")

    async def _try(self, verb: Callable[[], Awaitable[None]], limit_s: float, failing: str) -> None:
        """What keeps it from being done is left in `_remains`; `failing` begins the sentence."""
        try:
            with trio.move_on_after(limit_s) as limit:
                await verb()
            if limit.cancelled_caught:
                self._remains = f"{failing} within {seconds(limit_s)}"
        except InstanceFailure as failure:
            self._remains = str(failure)
        except Exception as fault:
            log.exception("instance %s: %s", self.uid, failing)
            self._remains = f"{failing}: {fault_text(fault)}"

    def _end(self, ending: Ending) -> None:
        if not self._remains:
            self._account.set(ending.status, ending.reason, ending.message)
        else:
            message = f"{self._remains}; it was being stopped because: {ending.message}"
            self._account.set(Status.FAILED, Reason.DESTROY_FAILED, message)

    async def _remove(self) -> None:
        """Removes what is left, says the final word, and keeps trying where it was not possible."""
        if not self._remains:
            await self._remove_once()
            if self._remains:
                self._end(Ending(self.status, self._account.report.reason, self._account.report.message))
                await self._account.write_if_possible(Phase.REMOVING)
        self._site.environment.step("worker.remove.done")
        self._account.tell()
        self._site.environment.step("worker.final.reported")
        self.settled.set()
        self.ended.set()
        pause_s = FIRST_RETRY_S
        while self._remains:
            await trio.sleep(pause_s)
            pause_s = min(LAST_RETRY_S, pause_s * 2)
            self._remains = ""
            await self._stop()
            if not self._remains:
                await self._remove_once()
            if not self._remains:
                log.info("instance %s (%s) is gone at last", self._pod.assignment.name, self.uid)

    # --- ports -------------------------------------------------------------------------------------------------------

    async def _publish(self, ports: tuple[Port, ...]) -> tuple[Port, ...]:
        if self._pod.spec.host_network:  # its own sockets are the node's
            return tuple(port if port.type == CLUSTER_IP else replace(port, port=port.target_port) for port in ports)
        if not ports:
            return ()
        uid, runtime = self.uid, self.runtime
        target = Target(lambda port: runtime.connect(uid, port), lambda port: runtime.datagrams(uid, port))
        return await self._site.publisher.publish(uid, self._pod.assignment.name, ports, target)

    def _republish(self) -> None:
        """After a restart: the same ports again."""
        if self._account.report.ports and not self._pod.spec.host_network:
            self._site.background.start_soon(self._keep_republishing)

    async def _keep_republishing(self) -> None:
        while not self._account.report.status.final and self._begun:
            try:
                await self._publish(self._account.report.ports)
                if not self._begun:  # it ended meanwhile
                    self._site.publisher.withdraw(self.uid)
                return
            except InstanceFailure as failure:
                log.warning("instance %s runs, but its ports do not: %s", self._pod.assignment.name, failure)
            await trio.sleep(REPUBLISH_S)

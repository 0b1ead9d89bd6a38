"""The worker's actor: opens what it needs, adopts what lives, and then does what the scheduler orders.

Instances do not notice whether there is a link: orders come over it and reports go over it when it is there.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
import trio
from msgspec.structs import replace

import rik
from rik.environment import Environment
from rik.errors import InstanceFailure, StoreUnavailable, Unavailable
from rik.messages import Assignment, Forget, Hello, NodeDescription, Order, Report, Run, Stop
from rik.model.instance import ContainerState, Reason, Status, Transition
from rik.model.node import Capability
from rik.model.workload import parse_spec
from rik.network.publisher import Publisher
from rik.runtime.base import Runtime
from rik.settings import WorkerSettings
from rik.worker.adopt import adopt
from rik.worker.audit import Audited, audit
from rik.worker.doctor import examine
from rik.worker.images import NodeImages
from rik.worker.journal import Entry, Journal
from rik.worker.logkeeping import keep_logs
from rik.worker.node import Host
from rik.worker.plan import Action, Ending, Plan, Site, fault_text
from rik.worker.reporter import Reporter
from rik.worker.session import Connect, Sessions
from rik.worker.streams import Streams
from rik.worker.supervisor import Supervisor

log = logging.getLogger(__name__)

# At an orderly end that stops the instances: what is waited for their stops beyond grace, and for the scheduler's
# answers.
STOP_ALL_MARGIN_S = 10.0
ACKNOWLEDGE_S = 3.0


class Worker:
    """One host's worker. `connect` makes a new link to the scheduler, or raises OSError, LinkClosed or RikError.

    `data_dir` None (simulations): no logs to keep and nothing of the file system in audits and doctor's rounds;
    `images` None: its runtimes use none.
    `joined` is set once a scheduler has welcomed it.
    """

    def __init__(
        self,
        environment: Environment,
        settings: WorkerSettings,
        runtimes: Sequence[Runtime],
        journal: Journal,
        connect: Connect,
        *,
        publisher: Publisher,
        host: Host,
        roles: tuple[str, ...] = ("worker",),
        data_dir: Path | None = None,
        images: NodeImages | None = None,
    ) -> None:
        self.joined = trio.Event()
        self._environment = environment
        self._settings = settings
        self._runtimes = {runtime.name: runtime for runtime in runtimes}
        self._journal = journal
        self._connect = connect
        self._publisher = publisher
        self._host = host
        self._roles = roles
        self._data_dir = data_dir
        self._images = images
        self._capabilities: tuple[Capability, ...] = ()
        self._supervisors: dict[str, Supervisor] = {}
        self._rounds = trio.Lock()  # a doctor's round makes things that an audit would take for orphans
        self._closing = trio.Event()
        self._closed = trio.Event()
        self._running = False

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until `shutdown` or cancelled; instances run on, but for `stop_instances` at a shutdown.

        Ready when everything in the journal was adopted and the rest was swept; a link is not waited for. Raises
        StartupError when the journal cannot be used.
        """
        self._running = True
        try:
            async with AsyncExitStack() as stack:
                for runtime in self._runtimes.values():
                    await stack.enter_async_context(runtime.open())
                await stack.enter_async_context(self._publisher.open())
                stack.push_async_callback(self._journal.aclose)
                await self._work(task_status)
        finally:
            self._closed.set()

    async def shutdown(self) -> None:
        """Asks for an orderly end and waits for it."""
        self._closing.set()
        if self._running:
            await self._closed.wait()

    def supervisor(self, uid: str) -> Supervisor | None:
        """Who looks after that instance."""
        return self._supervisors.get(uid)

    def uids(self) -> frozenset[str]:
        """Every instance that this worker owns."""
        return frozenset(self._supervisors)

    async def _work(self, task_status: trio.TaskStatus[None]) -> None:
        opened = await self._journal.open(self._host.boot_id)
        self._environment.step("worker.journal.opened")
        self._id = opened.id
        self._epoch = opened.epoch
        self._reporter = Reporter(opened.epoch)
        self._streams = Streams(
            self._environment,
            list(self._runtimes.values()),
            self._supervisors.get,
            self.audit,
            self.examine,
            self._images,
        )
        self._capabilities = tuple([await _probe(runtime) for runtime in self._runtimes.values()])
        async with trio.open_nursery() as nursery:
            self._site = Site(
                self._environment,
                self._settings,
                self._journal,
                self._reporter,
                self._publisher,
                trio.CapacityLimiter(self._settings.parallel_starts),
                nursery,
            )
            for supervisor, plan in await adopt(self._site, self._runtimes, opened.entries, opened.rebooted):
                self._begin(supervisor, plan)
            await self._sweep()
            await self._journal.settle(self._host.boot_id)
            self._environment.step("worker.adopt.done")
            nursery.start_soon(self._sessions().run, self._connect)
            if self._data_dir is not None:
                logs = self._data_dir / "logs"
                nursery.start_soon(keep_logs, logs, self._settings.log_retention_bytes, self.uids)
            if self._images is not None:
                nursery.start_soon(self._images.keep_pruned)
            task_status.started()
            await self._closing.wait()
            if self._settings.stop_instances:
                await self._stop_all()
            nursery.cancel_scope.cancel()

    def _sessions(self) -> Sessions:
        return Sessions(
            self._environment,
            self,
            self._reporter,
            self._streams,
            heartbeat_interval_s=self._settings.heartbeat_interval_s,
            joined=self.joined,
        )

    async def _sweep(self) -> None:
        for runtime in self._runtimes.values():
            try:
                for resource in await runtime.sweep(self.uids()):
                    log.info("swept %s %s, which belonged to nobody", resource.kind, resource.name)
            except (InstanceFailure, OSError) as failure:  # the audit names it, and the next start tries again
                log.error("something that belongs to nobody cannot be swept: %s", failure)

    # --- what a session asks for -------------------------------------------------------------------------------------

    def hello(self) -> Hello:
        """Who this is, and everything it holds."""
        node = NodeDescription(
            name=self._settings.node,
            roles=self._roles,
            labels=self._settings.labels,
            capabilities=self._capabilities,
            capacity=self._host.capacity,
            version=rik.__version__,
            boot_id=self._host.boot_id,
        )
        return Hello(self._id, self._epoch, node, self._reporter.inventory())

    async def metrics(self) -> dict[str, Any]:
        """The host's numbers at this moment."""
        return {**await self._host.metrics(), "instances": len(self._supervisors)}

    # --- orders ------------------------------------------------------------------------------------------------------

    def obey(self, order: Order) -> None:
        match order:
            case Run():
                self._accept(order.assignment)
            case Stop():
                self._stop(order)
            case Forget():
                if order.uid in self._supervisors:
                    self._stop(Stop(order.uid, message="the scheduler has given it up"))
                self.release(order.uid)

    def _accept(self, assignment: Assignment) -> None:
        if assignment.uid in self._supervisors or self._closing.is_set():
            return
        if assignment.node_id != self._id:
            log.warning("ignoring an order for instance %s, which is addressed to another journal", assignment.uid)
            return
        now = self._environment.now()
        report = Report(assignment.uid, 0, 0, Status.CREATING, (Transition(Status.CREATING, now),), step="queued")
        runtime = self._runtime_for(assignment.kind)
        plan = Plan(Action.CREATE)
        if runtime is None:
            runtime = next(iter(self._runtimes.values()))
            ending = Ending(Status.FAILED, Reason.NO_CAPABLE_NODE, self._why_not(assignment.kind))
            plan = Plan(Action.END, ending=ending)
        try:
            spec = parse_spec(assignment.kind, assignment.spec)
            waiting = tuple(ContainerState(container.name, container.image) for container in spec.containers)
            entry = Entry(assignment, runtime.name, replace(report, containers=waiting))
            supervisor = Supervisor(self._site, runtime, entry)
        except (KeyError, TypeError, ValueError) as fault:  # a document that this version of RIK cannot read
            log.exception("the order for instance %s cannot be read", assignment.uid)
            transitions = (*report.transitions, Transition(Status.FAILED, now, fault_text(fault)))
            report = replace(report, status=Status.FAILED, transitions=transitions)
            self._reporter.tell(replace(report, reason=Reason.INTERNAL_ERROR, message=fault_text(fault)))
            return
        self._begin(supervisor, plan)

    def _stop(self, order: Stop) -> None:
        supervisor = self._supervisors.get(order.uid)
        if supervisor is not None:
            supervisor.request_stop(order)
            return
        if self._reporter.latest(order.uid) is None:  # its order to run never came: there is nothing to stop
            status = Status.FAILED if order.reason else Status.TERMINATED
            message = order.message or "stopped before anything of it was begun"
            transition = Transition(status, self._environment.now(), message)
            self._reporter.tell(Report(order.uid, 0, 0, status, (transition,), order.reason, message))

    def _begin(self, supervisor: Supervisor, plan: Plan) -> None:
        self._supervisors[supervisor.uid] = supervisor
        self._site.background.start_soon(self._supervise, supervisor, plan)

    async def _supervise(self, supervisor: Supervisor, plan: Plan) -> None:
        await supervisor.run(plan)
        if supervisor.forgettable:
            await self._forget(supervisor.uid)

    def release(self, uid: str) -> None:
        """The scheduler knows how it ended: as soon as nothing is left of it here, the journal may drop it."""
        self._reporter.forget(uid)
        supervisor = self._supervisors.get(uid)
        if supervisor is None or supervisor.forgettable:
            return
        supervisor.forgettable = True
        if supervisor.over:
            self._site.background.start_soon(self._forget, uid)

    async def _forget(self, uid: str) -> None:
        self._environment.step("worker.forget.before-journal")
        try:
            await self._journal.forget(uid)
        except StoreUnavailable as error:
            log.error("the journal still holds instance %s, which is over: %s", uid, error)
        self._environment.step("worker.forget.journaled")
        self._reporter.forget(uid)
        self._supervisors.pop(uid, None)

    def _runtime_for(self, kind: str) -> Runtime | None:
        capable = (entry for entry in self._capabilities if entry.ok and kind in entry.kinds)
        return next((self._runtimes[entry.runtime] for entry in capable), None)

    def _why_not(self, kind: str) -> str:
        reasons = "; ".join(f"{entry.runtime}: {entry.reason}" for entry in self._capabilities)
        return f"no runtime of node {self._settings.node} runs {kind}s ({reasons or 'it has none'})"

    async def _stop_all(self) -> None:
        """The orderly end of a host that takes its instances with it."""
        log.info("stopping %d instances", len(self._supervisors))
        supervisors = list(self._supervisors.values())
        for supervisor in supervisors:
            supervisor.request_stop(Stop(supervisor.uid, message="the host was shut down"))
        grace_s = max((supervisor.grace_s for supervisor in supervisors), default=0.0)
        with trio.move_on_after(grace_s + self._settings.destroy_s + STOP_ALL_MARGIN_S):
            for supervisor in supervisors:
                await supervisor.ended.wait()
        with trio.move_on_after(ACKNOWLEDGE_S if self.joined.is_set() else 0):
            while self._supervisors or self._reporter.unacknowledged():
                await trio.sleep(0.02)

    # --- rounds ------------------------------------------------------------------------------------------------------

    async def audit(self) -> Audited:
        """Every resource of this host's RIK, and those that nobody owns. Raises Unavailable when the disk refuses."""
        runtimes = list(self._runtimes.values())
        async with self._rounds:
            sockets = self._publisher.listening()
            try:
                return await audit(runtimes, self.uids, data_dir=self._data_dir, sockets=sockets)
            except OSError as error:
                raise Unavailable(f"this host's resources cannot be looked at: {error}") from error

    async def examine(self) -> list[dict[str, Any]]:
        """The doctor's checks, ready for JSON."""
        if self._data_dir is None:
            return []
        async with self._rounds:
            capabilities = [await _probe(runtime) for runtime in self._runtimes.values()]
            # Without trying cgroups again: that ends by removing the ones of this host, which the runtime relies on.
            checks = await examine(capabilities, self._data_dir, self._settings.publish_address, images=self._images)
        return [msgspec.structs.asdict(check) for check in checks]


async def _probe(runtime: Runtime) -> Capability:
    try:
        return await runtime.probe()
    except (InstanceFailure, OSError) as error:
        return Capability(runtime.name, False, f"it could not be tried: {error}")

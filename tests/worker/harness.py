"""A worker with the fake runtime, and the scheduler's end of its link, speaking the real messages by hand."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trio

from rik.link.base import Link, LinkClosed, Stream
from rik.link.local import LocalLink, link_pair
from rik.messages import (
    Assignment,
    Forget,
    FromWorker,
    Heartbeat,
    Hello,
    Order,
    Orders,
    ProgressReport,
    Report,
    Reports,
    ReportsAcknowledged,
    Run,
    Stop,
    StreamRequest,
    ToWorker,
    Welcome,
)
from rik.model.instance import Progress, Status
from rik.model.workload import POD
from rik.network.publisher import Publisher
from rik.runtime.base import Runtime
from rik.runtime.fake import FakeMachine, FakeRuntime
from rik.settings import WorkerSettings
from rik.worker.journal import Journal, MemoryJournal
from rik.worker.node import PretendedHost
from rik.worker.worker import Worker
from tests.worker.pretend import PretendedEnvironment, PretendedPublisher

JOURNAL_ID = "journal-1"
FAR_MS = 10_000_000


class Site:
    """What outlives a worker: the machine, the journal, the clock; and what the scheduler knows."""

    def __init__(
        self,
        *,
        settings: WorkerSettings | None = None,
        journal: Journal | None = None,
        runtimes: Sequence[Runtime] | None = None,
        publisher: Publisher | None = None,
        **worker: Any,
    ) -> None:
        self.environment = PretendedEnvironment()
        self.machine = FakeMachine()
        self.memory = MemoryJournal(JOURNAL_ID)
        self.journal: Journal = journal or self.memory
        self.settings = settings or WorkerSettings(node="n1")
        self.publisher = publisher
        self.boot_id = "boot-1"
        self.scheduler = SchedulerEnd()
        self.worker: Worker
        self.runtimes = runtimes
        self._worker = worker

    @asynccontextmanager
    async def running(self, *, welcome: bool = True) -> AsyncIterator[Worker]:
        """A worker over what is there; at the end it is killed, as far as a task can be."""
        runtimes = self.runtimes or [FakeRuntime(self.environment, self.machine)]
        self.worker = Worker(
            self.environment,
            self.settings,
            runtimes,
            self.journal,
            self.scheduler.connect,
            publisher=self.publisher or PretendedPublisher(),
            host=PretendedHost(self.boot_id),
            **self._worker,
        )
        seen = len(self.scheduler.hellos)
        async with trio.open_nursery() as nursery:
            self.scheduler.nursery = nursery
            await nursery.start(self.worker.run)
            if welcome:
                await self.scheduler.hello(seen)
                await self.scheduler.welcome(*(Run(assignment) for assignment in self.scheduler.ordered))
                await self.worker.joined.wait()
            yield self.worker
            nursery.cancel_scope.cancel()

    def assignment(self, uid: str, *envs: dict[str, str], **fields: Any) -> Assignment:
        """Of a pod with a container for each environment, named c0, c1 and so on; `fields` go into the spec."""
        deadline = fields.pop("deadline_at", self.environment.now() + FAR_MS)
        kind = fields.pop("kind", POD)
        node_id = fields.pop("node_id", JOURNAL_ID)
        containers = [
            {"name": f"c{i}", "image": "host", "env": [{"name": k, "value": v} for k, v in env.items()]}
            for i, env in enumerate(envs or ({},))
        ]
        if ports := fields.pop("ports", None):
            containers[0]["ports"] = ports
        return Assignment(
            uid, f"name-{uid}", "default", "w", kind, {"containers": containers, **fields}, deadline, node_id
        )


class SchedulerEnd:
    """The other end of the link. Acknowledges reports when `acknowledges`; remembers everything."""

    def __init__(self) -> None:
        self.nursery: trio.Nursery
        self.acknowledges = True
        self.refuses: Exception | None = None
        self.ordered: list[Assignment] = []
        self.hellos: list[Hello] = []
        self.reports: list[Report] = []
        self.latest: dict[str, Report] = {}
        self.progress: list[tuple[float, str, Progress]] = []
        self.heartbeats: list[Heartbeat] = []
        self.link: Link[ToWorker, FromWorker]
        self._news = trio.Event()

    async def connect(self) -> Link[FromWorker, ToWorker]:
        await trio.lowlevel.checkpoint()
        if self.refuses is not None:
            raise self.refuses
        ours: LocalLink[ToWorker, FromWorker]
        theirs: LocalLink[FromWorker, ToWorker]
        ours, theirs = link_pair()
        self.link = ours
        self.nursery.start_soon(self._serve, ours)
        return theirs

    async def _serve(self, link: Link[ToWorker, FromWorker]) -> None:
        try:
            while True:
                await self._hear(link, await link.receive())
                self._news.set()
                self._news = trio.Event()
        except LinkClosed:
            pass

    async def _hear(self, link: Link[ToWorker, FromWorker], message: FromWorker) -> None:
        match message:
            case Hello():
                self.hellos.append(message)
            case Reports():
                for report in message.reports:
                    self.reports.append(report)
                    self.latest[report.uid] = report
                if self.acknowledges:
                    await link.send(ReportsAcknowledged({r.uid: r.sequence for r in message.reports}))
            case ProgressReport():
                self.progress += [(trio.current_time(), uid, value) for uid, value in message.progress.items()]
            case Heartbeat():
                self.heartbeats.append(message)

    async def hello(self, number: int = 0) -> Hello:
        """The hello of that number, counted from 0, waited for."""
        with trio.fail_after(1_000):
            while len(self.hellos) <= number:
                await self._news.wait()
        return self.hellos[number]

    async def welcome(self, *orders: Order) -> None:
        await self.link.send(Welcome(JOURNAL_ID, orders))

    async def order(self, *orders: Order) -> None:
        await self.link.send(Orders(orders))

    async def run(self, assignment: Assignment) -> None:
        self.ordered.append(assignment)
        await self.order(Run(assignment))

    async def stop(self, uid: str, reason: str = "", message: str = "") -> None:
        await self.order(Stop(uid, reason, message))

    async def forget(self, uid: str) -> None:
        await self.order(Forget(uid))

    async def until(self, uid: str, *statuses: Status, limit_s: float = 5_000) -> Report:
        """The report that says one of these statuses, waited for."""
        with trio.fail_after(limit_s):
            while (report := self.latest.get(uid)) is None or report.status not in statuses:
                await self._news.wait()
        return report

    async def final(self, uid: str, limit_s: float = 5_000) -> Report:
        return await self.until(uid, Status.FAILED, Status.TERMINATED, limit_s=limit_s)

    def history(self, uid: str) -> list[str]:
        """Every status that was ever told of it, in order, repetitions dropped."""
        told: list[str] = []
        for report in self.reports:
            if report.uid == uid:
                told += [t.status.value for t in report.transitions if t.status.value not in told]
        return told

    async def stream(self, request: StreamRequest) -> Stream:
        return await self.link.open_stream(request)


async def received(stream: Stream) -> list[bytes]:
    """Every frame to the end."""
    frames = []
    while (frame := await stream.receive()) is not None:
        frames.append(frame)
    return frames

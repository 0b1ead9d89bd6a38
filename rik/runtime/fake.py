"""A runtime that runs nothing and does as it is told: for simulations, tests, and demonstrations of failure.

The script of a container is in its environment (of a Function: entries `NAME=VALUE` of `function.command`):

    FAKE_PREPARE_SECONDS=S   how long preparing takes (default 0)
    FAKE_PULL_STEPS=N        meanwhile N reports of progress are made, as of a pull of N MiB, which is then on record
    FAKE_PULL_LAYERS=N       ... in N layers (default 1)
    FAKE_START_SECONDS=S     how long starting takes (default 0)
    FAKE_RUN_SECONDS=S       exits after that time (default: never)
    FAKE_EXIT_CODE=N         ... with this code (default 0)
    FAKE_SIGNAL=SIGSEGV      ... or killed by this signal
    FAKE_OOM=1               ... or by the kernel, for want of memory
    FAKE_FAIL=REASON         fails for that reason, with FAKE_FAIL_MESSAGE=TEXT, FAKE_FAIL_TIMES=N times (default:
                             always), in the verb FAKE_FAIL_AT: prepare (the default), start, stop or remove
    FAKE_HANG=VERB           prepare (after its progress), start, stop or remove never returns
    FAKE_BUG=VERB            prepare, start, wait, stop or remove raises what only a bug raises
    FAKE_STOP_SECONDS=S      how long it takes to end after the stop signal (default 0)
    FAKE_IGNORE_STOP=1       only SIGKILL ends it
    FAKE_LOG_LINES=N         writes N lines, `FAKE_LOG_TEXT N`, FAKE_LOG_SECONDS apart (default: all at once)
    FAKE_CAT=1               what is attached to its input comes back as its output; it exits at the end of input

Commands for exec: true, false, echo, cat, sleep SECONDS, exit CODE, tty, and `sh -c` with one of these. Connections to
its ports are echoed.

What "runs" is a set of facts in a `FakeMachine`, which outlives runtimes as a host outlives RIK, in memory or also in
a directory; everything else follows from the facts and the time, in pure Trio: nothing here uses threads, processes or
sockets.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import msgspec
import trio

from rik.environment import Environment
from rik.errors import InstanceFailure
from rik.link.base import Stream
from rik.messages import Attach, Exec, ReadLogs
from rik.model.instance import ContainerState, ImageUse, LogLine, Progress, Reason
from rik.model.node import Capability, HostResource
from rik.model.workload import FUNCTION, POD, parse_spec
from rik.runtime.base import ContainerStats, Observed, Pod, ReportProgress
from rik.runtime.fakemachine import Facts, FakeMachine, Script, observe, scripts_of, timeline
from rik.runtime.fakeshell import echo_connection, run_command

__all__ = ["FakeMachine", "FakeRuntime"]

MIB = 2**20
# How often what cannot be foreseen (somebody else's kill) is looked for where nothing wakes the waiter.
POLL_S = 0.1


class FakeRuntime:
    """See the module's text for what it can be told."""

    name = "fake"

    def __init__(self, environment: Environment, machine: FakeMachine | None = None) -> None:
        self._environment = environment
        self.machine = machine or FakeMachine()
        self._input: dict[str, tuple[trio.MemorySendChannel[bytes], trio.MemoryReceiveChannel[bytes]]] = {}
        self._nursery: trio.Nursery | None = None

    def open(self) -> AbstractAsyncContextManager[None]:
        return self._open()

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                yield
            finally:
                self._nursery = None
                nursery.cancel_scope.cancel()

    async def probe(self) -> Capability:
        await trio.lowlevel.checkpoint()
        limits: dict[str, bool | str] = dict.fromkeys(("cpu", "memory", "pids", "network"), "nothing really runs")
        return Capability(self.name, True, "pretends", (POD, FUNCTION), limits)

    async def prepare(self, pod: Pod, report: ReportProgress) -> tuple[ImageUse, ...]:
        facts = self.machine.facts.get(pod.uid)
        if facts is None or facts.removed:
            self.machine.put(Facts(pod.assignment, failures=facts.failures if facts else 0))
        pulled: dict[str, ImageUse] = {}
        for script in scripts_of(pod.spec):
            if script.image in pulled:
                use = pulled[script.image]
                pulled[script.image] = msgspec.structs.replace(use, containers=(*use.containers, script.name))
            elif script.number("PULL_STEPS"):
                pulled[script.image] = await self._pull(script, report)
            else:
                report(Progress("unpack"))
                await trio.sleep(script.number("PREPARE_SECONDS"))
        await self._obey("prepare", pod.uid)
        return tuple(pulled.values())

    async def _pull(self, script: Script, report: ReportProgress) -> ImageUse:
        steps, layers = int(script.number("PULL_STEPS")), int(script.number("PULL_LAYERS", 1))
        took_s = script.number("PREPARE_SECONDS")
        for done in range(steps + 1):
            seconds = took_s * done / steps
            report(Progress("pull", done * MIB, steps * MIB, "bytes", layers * done // steps, layers, seconds))
            await trio.sleep(took_s / steps if done < steps else 0)
        return ImageUse(
            script.image,
            f"sha256:{hashlib.sha256(script.image.encode()).hexdigest()}",
            (script.name,),
            origin="nowhere, as FAKE_PULL_STEPS asked for",
            layers=layers,
            pulled_layers=layers,
            pulled_bytes=steps * MIB,
            size_bytes=steps * MIB,
            seconds=took_s,
            pulled_at=self._environment.now(),
        )

    async def start(self, pod: Pod) -> Observed:
        facts = self.machine.facts[pod.uid]
        if facts.started_at is None:
            for script in scripts_of(pod.spec):
                await trio.sleep(script.number("START_SECONDS"))
            await self._obey("start", pod.uid)
            self.machine.put(msgspec.structs.replace(facts, started_at=self._environment.now()))
        return observe(self.machine.facts[pod.uid], self._environment.now())

    async def observe(self, uid: str) -> Observed:
        await trio.lowlevel.checkpoint()
        return observe(self.machine.facts.get(uid), self._environment.now())

    async def wait(self, uid: str, changed: Callable[[Observed], None]) -> Observed:
        await self._obey("wait", uid)
        last: Observed | None = None
        while True:
            observed, next_at = timeline(self.machine.facts.get(uid), self._environment.now())
            if observed.phase in ("ended", "absent"):
                return observed
            if last is not None and observed != last:
                changed(observed)
            last = observed
            await self.machine.change(uid, self._trio_time(next_at))

    async def stop(self, uid: str, grace_s: float) -> None:
        facts = self.machine.facts.get(uid)
        if facts is None or facts.removed or facts.started_at is None:
            return
        now = self._environment.now()
        term_at = now if facts.term_at is None else facts.term_at
        kill_at = now + int(grace_s * 1000)
        kill_at = kill_at if facts.kill_at is None else min(kill_at, facts.kill_at)
        await self._obey("stop", uid)
        facts = self.machine.facts.get(uid, facts)  # a failure may have been counted
        self.machine.put(msgspec.structs.replace(facts, term_at=term_at, kill_at=kill_at))
        while True:
            observed, next_at = timeline(self.machine.facts.get(uid), self._environment.now())
            if observed.phase in ("ended", "absent"):
                return
            await self.machine.change(uid, self._trio_time(next_at))

    async def remove(self, uid: str) -> None:
        facts = self.machine.facts.get(uid)
        if facts is None or facts.removed:
            return
        await self._obey("remove", uid)
        facts = self.machine.facts.get(uid, facts)
        if facts.started_at is None:
            self.machine.drop(uid)
            return
        now = self._environment.now()
        kill_at = now if facts.kill_at is None else min(now, facts.kill_at)
        self.machine.retire(msgspec.structs.replace(facts, kill_at=kill_at, removed=True))

    async def logs(self, query: ReadLogs) -> AsyncGenerator[list[LogLine], None]:
        sent = 0
        first = True
        while True:
            facts = self.machine.facts.get(query.uid)
            now = self._environment.now()
            lines = [line for line in self._lines(facts, now, query.container) if line.at >= query.since_ms]
            if first and query.tail >= 0:
                sent = max(0, len(lines) - query.tail)
            first = False
            if lines[sent:]:
                yield lines[sent:]
                sent = len(lines)
            state = timeline(facts, now)[0]
            if not query.follow or state.phase in ("ended", "absent"):
                return
            await trio.sleep(POLL_S)

    async def exec(self, request: Exec, stream: Stream) -> None:
        states = self._running(request.uid)
        name = request.container or states[0].name
        if not any(state.name == name and state.state == "running" for state in states):
            raise InstanceFailure(Reason.CREATE_FAILED, f"container `{name}` is not running")
        code = await run_command(list(request.command), stream, tty=request.tty)
        await stream.send(b"\x03" + json.dumps({"exit": code}).encode())

    async def attach(self, request: Attach, stream: Stream) -> None:
        states = self._running(request.uid)
        name = request.container or states[0].name
        script = next((script for script in self._script_list(request.uid) if script.name == name), None)
        if script is None:
            raise InstanceFailure(Reason.CREATE_FAILED, f"there is no container `{name}`")
        async with trio.open_nursery() as nursery:
            if script.text("CAT"):
                nursery.start_soon(self._cat, request.uid, name, stream)
            final = await self.wait_container(request.uid, name)
            if final is not None:
                await stream.send(b"\x03" + json.dumps({"exit": final.exit_code}).encode())
            nursery.cancel_scope.cancel()

    async def wait_container(self, uid: str, name: str) -> ContainerState | None:
        """Its state once it has ended; None when it is gone."""
        while True:
            observed, next_at = timeline(self.machine.facts.get(uid), self._environment.now())
            state = next((state for state in observed.containers if state.name == name), None)
            if state is None or state.state == "exited":
                return state
            await self.machine.change(uid, self._trio_time(next_at))

    async def stats(self, uid: str) -> list[ContainerStats]:
        await trio.lowlevel.checkpoint()
        return [ContainerStats(script.name, 0.0, 0, 1, 0, 0) for script in self._script_list(uid)]

    async def connect(self, uid: str, port: int) -> trio.abc.HalfCloseableStream:
        await trio.lowlevel.checkpoint()
        if self._nursery is None or observe(self.machine.facts.get(uid), self._environment.now()).phase != "running":
            raise ConnectionRefusedError(f"nothing listens on port {port}")
        return echo_connection(self._nursery)

    async def datagrams(self, uid: str, port: int) -> trio.socket.SocketType:
        await trio.lowlevel.checkpoint()
        raise OSError("fake instances have no UDP ports")

    async def inventory(self) -> list[HostResource]:
        await trio.lowlevel.checkpoint()
        return [HostResource("fake", f"fake-{uid}", uid) for uid in self.machine.live()]

    async def sweep(self, owned: frozenset[str]) -> list[HostResource]:
        removed = [resource for resource in await self.inventory() if resource.owner not in owned]
        for resource in removed:
            self.machine.drop(resource.owner)
        return removed

    def _trio_time(self, at_ms: float) -> float:
        return trio.current_time() + max(0.001, (at_ms - self._environment.now()) / 1000)

    def _script_list(self, uid: str) -> list[Script]:
        facts = self.machine.facts.get(uid)
        return scripts_of(parse_spec(facts.assignment.kind, facts.assignment.spec)) if facts else []

    def _running(self, uid: str) -> tuple[ContainerState, ...]:
        observed = observe(self.machine.facts.get(uid), self._environment.now())
        if observed.phase not in ("running", "failing"):
            raise InstanceFailure(Reason.CREATE_FAILED, "the instance is not running")
        return observed.containers

    def _lines(self, facts: Facts | None, now: float, container: str) -> list[LogLine]:
        if facts is None or facts.started_at is None:
            return []
        states = {state.name: state for state in observe(msgspec.structs.replace(facts, removed=False), now).containers}
        found: list[LogLine] = []
        for script in self._script_list(facts.assignment.uid):
            if container in ("", script.name):
                found += script.lines(facts.started_at, min(now, states[script.name].ended_at or now))
        return sorted(found, key=lambda line: line.at)

    async def _obey(self, verb: str, uid: str) -> None:
        """Fails, hangs or breaks where the script says so."""
        await trio.lowlevel.checkpoint()
        facts = self.machine.facts.get(uid)
        for script in self._script_list(uid):
            if script.text("HANG") == verb:
                await trio.sleep_forever()
            if script.text("BUG") == verb:
                raise RuntimeError(f"a bug in {verb}, as FAKE_BUG asked for")
            reason = script.text("FAIL")
            if (
                facts
                and reason
                and script.text("FAIL_AT", "prepare") == verb
                and facts.failures < script.number("FAIL_TIMES", math.inf)
            ):
                self.machine.put(msgspec.structs.replace(facts, failures=facts.failures + 1))
                message = script.text(
                    "FAIL_MESSAGE", f"container `{script.name}`: {verb} fails, as FAKE_FAIL asked for"
                )
                raise InstanceFailure(reason, message, container=script.name)

    async def _cat(self, uid: str, container: str, stream: Stream) -> None:
        while (frame := await stream.receive()) is not None:
            if frame[:1] != b"\x00":
                continue
            if len(frame) == 1:
                self.machine.end(uid, container, 0, self._environment.now())
                return
            await stream.send(b"\x01" + frame[1:])

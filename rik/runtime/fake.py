"""A runtime that runs nothing and does as it is told: for simulations, tests, and demonstrations of failure.

The script of a container is in its environment (of a Function: entries `NAME=VALUE` of `function.command`):

    FAKE_PREPARE_SECONDS=S   how long preparing takes (default 0)
    FAKE_PULL_STEPS=N        meanwhile N reports of progress are made, as of a pull of N MiB
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

import json
import math
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import msgspec
import trio

from rik.environment import Environment
from rik.errors import InstanceFailure
from rik.link.base import Stream
from rik.messages import Assignment, Attach, Exec, ReadLogs
from rik.model.instance import ContainerState, LogLine, Progress, Reason, Record
from rik.model.node import Capability, HostResource
from rik.model.workload import FUNCTION, POD, Spec, parse_spec
from rik.runtime.base import ContainerStats, Failure, Observed, Pod, ReportProgress
from rik.runtime.exits import failure_of
from rik.runtime.fakeshell import echo_connection, run_command

_SIGNALS = {"SIGHUP": 1, "SIGINT": 2, "SIGABRT": 6, "SIGKILL": 9, "SIGSEGV": 11, "SIGTERM": 15}
MIB = 2**20
# Ended instances whose output can still be read.
KEPT_LOGS = 1_000
# How often what cannot be foreseen (somebody else's kill) is looked for where nothing wakes the waiter.
POLL_S = 0.1


class Facts(Record, frozen=True):
    """All that happened to one instance. Times in milliseconds; `ends` are ends brought about from outside: container
    -> (time, code).
    """

    assignment: Assignment
    started_at: int | None = None
    term_at: int | None = None
    kill_at: int | None = None
    ends: dict[str, tuple[int, int]] = {}
    removed: bool = False
    failures: int = 0


class FakeMachine:
    """The host of fake instances. With a `directory` its facts are files, found again by the next process."""

    def __init__(self, directory: Path | None = None) -> None:
        self._directory = directory
        self.facts: dict[str, Facts] = {}
        self._changed: dict[str, trio.Event] = {}
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)
            for path in sorted(directory.glob("*.json")):
                self.facts[path.stem] = msgspec.json.decode(path.read_bytes(), type=Facts)

    def put(self, facts: Facts) -> None:
        """Replaces what is known of an instance and wakes who waits for it."""
        uid = facts.assignment.uid
        self.facts[uid] = facts
        if self._directory is not None:
            draft = self._directory / f"{uid}.draft"
            draft.write_bytes(msgspec.json.encode(facts))
            draft.replace(self._directory / f"{uid}.json")
        event = self._changed.pop(uid, None)
        if event is not None:
            event.set()

    def drop(self, uid: str) -> None:
        """As if it had never been."""
        self.facts.pop(uid, None)
        if self._directory is not None:
            (self._directory / f"{uid}.json").unlink(missing_ok=True)

    def live(self) -> list[str]:
        """The uids of everything that was not removed."""
        return [uid for uid, facts in self.facts.items() if not facts.removed]

    def end(self, uid: str, container: str, code: int, at: int) -> None:
        """Ends a container from outside; a code above 128 is a signal."""
        facts = self.facts[uid]
        self.put(msgspec.structs.replace(facts, ends={**facts.ends, container: (at, code)}))

    def reboot(self) -> None:
        """Nothing that ran is left, and nobody knows how it ended."""
        for uid in self.live():
            self.drop(uid)

    async def change(self, uid: str, until: float) -> None:
        """Waits for the next change of that instance, at most until that Trio time."""
        event = self._changed.setdefault(uid, trio.Event())
        with trio.move_on_at(until):
            await event.wait()


class _Script:
    """The environment of one container, read."""

    def __init__(self, name: str, image: str, settings: dict[str, str]) -> None:
        self.name = name
        self.image = image
        self._settings = settings

    def text(self, key: str, default: str = "") -> str:
        return self._settings.get(f"FAKE_{key}", default)

    def number(self, key: str, default: float = 0.0) -> float:
        value = self.text(key)
        return float(value) if value else default

    def end(
        self, started_at: int, term_at: float, kill_at: float, forced: tuple[int, int] | None
    ) -> tuple[float, int, bool]:
        """When it ends, its code (above 128: a signal), and whether that is by order of `stop`."""
        code = 137 if self.text("OOM") else int(self.number("EXIT_CODE"))
        if self.text("SIGNAL"):
            code = 128 + _SIGNALS[self.text("SIGNAL")]
        ends = [(started_at + self.number("RUN_SECONDS", math.inf) * 1000, code, False)]
        if forced is not None:
            ends.append((forced[0], forced[1], False))
        if not self.text("IGNORE_STOP"):
            ends.append((term_at + self.number("STOP_SECONDS") * 1000, 143, True))
        ends.append((kill_at, 137, True))
        return min(ends)

    def lines(self, started_at: int, until: float) -> list[LogLine]:
        step_ms = self.number("LOG_SECONDS") * 1000
        count = int(self.number("LOG_LINES"))
        if step_ms:
            count = min(count, int((until - started_at) / step_ms) + 1)
        text = self.text("LOG_TEXT", "line")
        return [LogLine(self.name, "stdout", int(started_at + i * step_ms), f"{text} {i}") for i in range(count)]


def _scripts(spec: Spec) -> list[_Script]:
    if spec.kind == FUNCTION:
        function = spec.function
        entries = (entry.partition("=") for entry in (function.command if function else None) or ())
        return [_Script("function", function.rootfs if function else "", {key: value for key, _, value in entries})]
    return [_Script(container.name, container.image, dict(container.env)) for container in spec.containers]


def observe(facts: Facts | None, now: float) -> Observed:
    """What follows from the facts at the time `now` (milliseconds)."""
    return _timeline(facts, now)[0]


def _timeline(facts: Facts | None, now: float) -> tuple[Observed, float]:
    """Also: when it will next change by itself."""
    if facts is None or facts.removed or facts.started_at is None:
        return Observed("absent"), math.inf
    spec = parse_spec(facts.assignment.kind, facts.assignment.spec)
    scripts = _scripts(spec)
    start = facts.started_at
    term = math.inf if facts.term_at is None else facts.term_at
    kill = math.inf if facts.kill_at is None else facts.kill_at
    ends = [script.end(start, term, kill, facts.ends.get(script.name)) for script in scripts]
    failing = [
        (end, index) for index, (end, code, ordered) in enumerate(ends) if code and not ordered and end < math.inf
    ]
    failed_at, culprit = min(failing, default=(math.inf, -1))
    if failed_at < math.inf:  # the first to fail ends its siblings, at once or as soon as it comes to that
        siblings_term, siblings_kill = min(term, failed_at), min(kill, failed_at + spec.stop_grace_s * 1000)
        for index, script in enumerate(scripts):
            if index != culprit:
                ends[index] = script.end(start, siblings_term, siblings_kill, facts.ends.get(script.name))
    states = tuple(_state(script, start, end, code, now) for script, (end, code, _) in zip(scripts, ends, strict=True))
    failure: Failure | None = None
    if failed_at <= now:
        failure = failure_of(states[culprit], spec.resources.memory_bytes)
    phase = "ended" if all(end <= now for end, _, _ in ends) else "failing" if failure else "running"
    observed = Observed(
        phase, states, failure, "", {"cpu": "fake", "memory": "fake", "pids": "fake", "network": "fake"}
    )
    return observed, min((time for time in [*(end for end, _, _ in ends), failed_at] if time > now), default=math.inf)


def _state(script: _Script, start: int, end: float, code: int, now: float) -> ContainerState:
    if end > now:
        return ContainerState(script.name, script.image, "running", started_at=start)
    signal = next((name for name, number in _SIGNALS.items() if code == 128 + number), None)
    oom = bool(script.text("OOM")) and code == 137
    return ContainerState(script.name, script.image, "exited", code, signal, oom, start, int(end))


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

    async def prepare(self, pod: Pod, report: ReportProgress) -> None:
        facts = self.machine.facts.get(pod.uid)
        if facts is None or facts.removed:
            self.machine.put(Facts(pod.assignment, failures=facts.failures if facts else 0))
        for script in _scripts(pod.spec):
            steps = int(script.number("PULL_STEPS"))
            for done in range(steps):
                report(Progress("pull", done * MIB, steps * MIB, "bytes"))
                await trio.sleep(script.number("PREPARE_SECONDS") / steps)
            if not steps:
                report(Progress("unpack"))
                await trio.sleep(script.number("PREPARE_SECONDS"))
        await self._obey("prepare", pod.uid)

    async def start(self, pod: Pod) -> Observed:
        facts = self.machine.facts[pod.uid]
        if facts.started_at is None:
            for script in _scripts(pod.spec):
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
            observed, next_at = _timeline(self.machine.facts.get(uid), self._environment.now())
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
            observed, next_at = _timeline(self.machine.facts.get(uid), self._environment.now())
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
        self.machine.put(msgspec.structs.replace(facts, kill_at=kill_at, removed=True))
        kept = [key for key, value in self.machine.facts.items() if value.removed]
        for key in kept[: max(0, len(kept) - KEPT_LOGS)]:
            self.machine.drop(key)

    async def logs(self, query: ReadLogs) -> AsyncIterator[list[LogLine]]:
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
            state = _timeline(facts, now)[0]
            if not query.follow or state.phase in ("ended", "absent"):
                return
            await trio.sleep(POLL_S)

    async def exec(self, request: Exec, stream: Stream) -> None:
        states = self._running(request.uid)
        name = request.container or states[0].name
        if not any(state.name == name and state.state == "running" for state in states):
            raise InstanceFailure(Reason.CREATE_FAILED, f'container "{name}" is not running')
        code = await run_command(list(request.command), stream, tty=request.tty)
        await stream.send(b"\x03" + json.dumps({"exit": code}).encode())

    async def attach(self, request: Attach, stream: Stream) -> None:
        states = self._running(request.uid)
        name = request.container or states[0].name
        script = next((script for script in self._script_list(request.uid) if script.name == name), None)
        if script is None:
            raise InstanceFailure(Reason.CREATE_FAILED, f'there is no container "{name}"')
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
            observed, next_at = _timeline(self.machine.facts.get(uid), self._environment.now())
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

    def _script_list(self, uid: str) -> list[_Script]:
        facts = self.machine.facts.get(uid)
        return _scripts(parse_spec(facts.assignment.kind, facts.assignment.spec)) if facts else []

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
                    "FAIL_MESSAGE", f'container "{script.name}": {verb} fails, as FAKE_FAIL asked for'
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

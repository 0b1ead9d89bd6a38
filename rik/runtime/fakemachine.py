"""The host of fake instances: what happened to them, their scripts, and what follows from both at a given time."""

from __future__ import annotations

import math
from collections import deque
from pathlib import Path

import msgspec
import trio

from rik.messages import Assignment
from rik.model.instance import ContainerState, LogLine, Record
from rik.model.workload import FUNCTION, Spec, parse_spec
from rik.runtime.base import Failure, Observed
from rik.runtime.exits import failure_of

_SIGNALS = {"SIGHUP": 1, "SIGINT": 2, "SIGABRT": 6, "SIGKILL": 9, "SIGSEGV": 11, "SIGTERM": 15}
# Removed instances whose output can still be read.
KEPT_LOGS = 1_000


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
        self._retired = deque(uid for uid, facts in self.facts.items() if facts.removed)

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

    def retire(self, facts: Facts) -> None:
        """Nothing is left of it but its output, and that not for ever."""
        self.put(facts)
        self._retired.append(facts.assignment.uid)
        if len(self._retired) > KEPT_LOGS:
            self.drop(self._retired.popleft())

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


class Script:
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


def scripts_of(spec: Spec) -> list[Script]:
    if spec.kind == FUNCTION:
        function = spec.function
        entries = (entry.partition("=") for entry in (function.command if function else None) or ())
        return [Script("function", function.rootfs if function else "", {key: value for key, _, value in entries})]
    return [Script(container.name, container.image, dict(container.env)) for container in spec.containers]


def observe(facts: Facts | None, now: float) -> Observed:
    """What follows from the facts at the time `now` (milliseconds)."""
    return timeline(facts, now)[0]


def timeline(facts: Facts | None, now: float) -> tuple[Observed, float]:
    """Also: when it will next change by itself."""
    if facts is None or facts.removed or facts.started_at is None:
        return Observed("absent"), math.inf
    spec = parse_spec(facts.assignment.kind, facts.assignment.spec)
    scripts = scripts_of(spec)
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


def _state(script: Script, start: int, end: float, code: int, now: float) -> ContainerState:
    if end > now:
        return ContainerState(script.name, script.image, "running", started_at=start)
    signal = next((name for name, number in _SIGNALS.items() if code == 128 + number), None)
    oom = bool(script.text("OOM")) and code == 137
    return ContainerState(script.name, script.image, "exited", code, signal, oom, start, int(end))

"""Time, randomness, identities and crash points: everything by which one run differs from another.

Roles take an `Environment` and never ask the operating system themselves, so that a whole cluster can be simulated
exactly. Durations are measured with `trio.current_time()`, which a simulation replaces by Trio's mock clock.
"""

from __future__ import annotations

import os
import random
import signal
import time
from typing import Protocol

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
UID_LENGTH = 20
CRASH_VARIABLE = "RIK_CRASH_AT"
STEPS_VARIABLE = "RIK_STEP_LOG"


class Environment(Protocol):
    """What every actor is given."""

    def now(self) -> int:
        """Wall-clock time: milliseconds since the Unix epoch, UTC."""
        ...

    def uid(self) -> str:
        """A new identity, never used before: 20 characters of 0-9 a-z."""
        ...

    def name(self) -> str:
        """A new readable name: two words and four digits (`cobra-citer-1923`); it may be taken already."""
        ...

    def jitter(self, seconds: float) -> float:
        """A random duration between half of `seconds` and `seconds`."""
        ...

    def step(self, name: str) -> None:
        """Marks a boundary at which the process may die; `name` is a literal, so that tests can list them all."""
        ...


class SystemEnvironment:
    """The real one.

    `RIK_CRASH_AT=STEP` or `STEP:N` makes the process kill itself (SIGKILL) the N-th time it comes to that step: the
    tests that prove that nothing is lost or leaked by a crash use it. `RIK_STEP_LOG=FILE` appends every step passed.
    """

    def __init__(self) -> None:
        self._random = random.SystemRandom()
        wanted, _, count = os.environ.get(CRASH_VARIABLE, "").partition(":")
        self._crash_at = wanted
        self._crash_in = int(count) if count.isdigit() else 1
        log = os.environ.get(STEPS_VARIABLE, "")
        self._step_log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600) if log else -1

    def now(self) -> int:
        return time.time_ns() // 1_000_000

    def uid(self) -> str:
        return "".join(self._random.choice(_ALPHABET) for _ in range(UID_LENGTH))

    def name(self) -> str:
        from coolname import generate  # 20 ms: only once a name is wanted

        while True:
            words = "-".join(generate(2))
            if words.replace("-", "").isalnum() and words.isascii() and len(words) <= 50:
                return f"{words.lower()}-{self._random.randrange(1000, 10_000)}"

    def jitter(self, seconds: float) -> float:
        return seconds * (0.5 + self._random.random() / 2)

    def step(self, name: str) -> None:
        if self._step_log >= 0:
            os.write(self._step_log, f"{name}\n".encode())
        if name == self._crash_at:
            self._crash_in -= 1
            if self._crash_in == 0:
                os.kill(os.getpid(), signal.SIGKILL)

"""Stand-ins without threads, sockets or clocks, for tests under the mock clock."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import msgspec
import trio

from rik.errors import InstanceFailure
from rik.model.instance import Port, Reason
from rik.model.node import HostResource
from rik.network.publisher import Target

START_MS = 1_750_000_000_000


class PretendedEnvironment:
    """Trio's clock as the wall clock; remembers the steps that were passed."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self._number = 0

    def now(self) -> int:
        return START_MS + round(trio.current_time() * 1000)

    def uid(self) -> str:
        self._number += 1
        return f"uid{self._number:017d}"

    def name(self) -> str:
        self._number += 1
        return f"some-name-{self._number}"

    def jitter(self, seconds: float) -> float:
        return seconds * 0.75

    def step(self, name: str) -> None:
        self.steps.append(name)


class PretendedPublisher:
    """Gives ports and listens nowhere; those in `held` are taken."""

    def __init__(self) -> None:
        self.held: dict[int, str] = {}
        self.published: dict[str, tuple[Port, ...]] = {}
        self._next = 30_000

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        yield

    async def publish(self, uid: str, name: str, ports: Sequence[Port], target: Target) -> tuple[Port, ...]:
        await trio.lowlevel.checkpoint()
        for port in ports:
            if port.port in self.held:
                message = f"port {port.port}/{port.protocol} is held by {self.held[port.port]}"
                raise InstanceFailure(Reason.PORT_CONFLICT, message)
        chosen = []
        for port in ports:
            if not port.port:
                self._next += 1
            number = port.port or self._next
            chosen.append(msgspec.structs.replace(port, port=number, address="127.0.0.1"))
        self.published[uid] = tuple(chosen)
        return tuple(chosen)

    def withdraw(self, uid: str) -> None:
        self.published.pop(uid, None)

    def listening(self) -> list[HostResource]:
        return []

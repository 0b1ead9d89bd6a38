"""How long each of those who wait for one download goes on waiting when too little arrives, and in which order
downloads get a connection."""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

import trio


class _Waiting:
    """Somebody with `left_s` of patience (counted while the clock is held), who has seen `arrived` bytes of late."""

    def __init__(self, left_s: float) -> None:
        self.scope = trio.CancelScope()
        self.left_s = left_s
        self.arrived = 0


class Patience:
    """Ends the waiting of everybody who has not seen `least_bytes` arrive in `idle_s` seconds."""

    def __init__(self, least_bytes: int, idle_s: float) -> None:
        self._least_bytes = least_bytes
        self._idle_s = idle_s
        self._waiting: list[_Waiting] = []
        self._held = False

    @contextmanager
    def waiting(self) -> Iterator[_Waiting]:
        """Its scope has `cancelled_caught` when the patience was at an end; `arrived` says how much came of late."""
        one = _Waiting(self._idle_s)
        if not self._held:
            one.scope.deadline = trio.current_time() + one.left_s
        self._waiting.append(one)
        try:
            with one.scope:
                yield one
        finally:
            self._waiting.remove(one)

    def arrived(self, count: int) -> None:
        for one in self._waiting:
            one.arrived += count
            if one.arrived >= self._least_bytes:
                one.arrived, one.left_s = 0, self._idle_s
                if not self._held:
                    one.scope.deadline = trio.current_time() + self._idle_s

    @contextmanager
    def held(self) -> Iterator[None]:
        """Meanwhile it is nobody's fault that nothing arrives: the clock stands still."""
        for one in self._waiting:
            one.left_s = max(0.0, one.scope.deadline - trio.current_time())
            one.scope.deadline = float("inf")
        self._held = True
        try:
            yield
        finally:
            self._held = False
            for one in self._waiting:
                one.scope.deadline = trio.current_time() + one.left_s


class Turns:
    """At most `at_once` at a time; of those who wait the lowest rank comes first, then who came first.

    One more may go, however many there are, for each origin (a registry) that has none: a registry which delivers next
    to nothing, on every connection that there is, holds up nobody but those who want something of it.
    """

    def __init__(self, at_once: int) -> None:
        self._free = at_once  # below zero while origins have their one beyond
        self._queue: list[tuple[int, int, str, trio.Event]] = []
        self._arrival = count()
        self._served: Counter[str] = Counter()

    async def take(self, rank: int, origin: str) -> None:
        """Whoever has a turn gives it back."""
        served = trio.Event()
        entry = (rank, next(self._arrival), origin, served)
        insort(self._queue, entry)
        try:
            # Whoever comes at the same moment is in the queue before anybody is served.
            await trio.lowlevel.checkpoint()
            self._serve()
            await served.wait()
        except trio.Cancelled:
            if served.is_set():
                self.give(origin)
            else:
                self._queue.remove(entry)
            raise

    def give(self, origin: str) -> None:
        self._free += 1
        self._served[origin] -= 1
        if not self._served[origin]:
            del self._served[origin]
        self._serve()

    def _serve(self) -> None:
        left: list[tuple[int, int, str, trio.Event]] = []
        for entry in self._queue:
            _, _, origin, served = entry
            if self._free > 0 or origin not in self._served:
                self._free -= 1
                self._served[origin] += 1
                served.set()
            else:
                left.append(entry)
        self._queue = left

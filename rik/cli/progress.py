"""How far bringing an image has come, in words, and when that is worth another line. Pure but for the clock."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from rik.cli.amounts import decimal_bytes, duration
from rik.model.sizes import format_share

FIELDS = ("done", "total", "unit", "layers", "seconds")
QUIET_S = 5.0  # plain output that says nothing for longer than this looks dead
QUIET_SHARE = 0.1  # of the time that it has lasted: what takes hours is not told every few seconds
SPEED_WINDOW_S = 5.0

Clock = Callable[[], float]


def fields_of(frame: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """A record's `progress` from a frame of the watch; the unit of the last one when this one names none."""
    return {name: frame[name] for name in FIELDS if name in frame} | {"unit": frame.get("unit") or before.get("unit")}


def percent(progress: Mapping[str, Any]) -> int | None:
    """0 to 100, None while the total is not known. Only what is complete is 100."""
    done, total = progress.get("done") or 0, progress.get("total") or 0
    return max(0, min(100, 100 * done // total)) if total else None


def details(progress: Mapping[str, Any]) -> tuple[str, str, str]:
    """Bytes, layers and time: `108 of 250 MB`, `2 of 6 layers`, `12 s`; "" for what is not known."""
    done, total = progress.get("done") or 0, progress.get("total") or 0
    size = ""
    if progress.get("unit") == "bytes":
        size = format_share(done, total) if total else decimal_bytes(done) if done else ""
    layers, seconds = progress.get("layers") or {}, progress.get("seconds") or 0
    count = layers.get("total") or 0
    told = f"{layers.get('done') or 0} of {count} layer{'s' if count != 1 else ''}" if count else ""
    spent = "" if seconds < 1 else f"{int(seconds)} s" if seconds < 60 else duration(seconds)
    return size, told, spent


def phrase(step: str, progress: Mapping[str, Any], room: int | None = None) -> str:
    """`pull 43 % (108 of 250 MB, 2 of 6 layers, 12 s)`, or as much of it as is known, and as has `room` characters."""
    share = percent(progress)
    head = f"{step} {share} %" if share is not None else step
    size, layers, spent = details(progress)
    for parts in ((size, layers, spent), (size, spent), (size,)):
        told = ", ".join(part for part in parts if part)
        text = f"{head} ({told})" if told else head
        if room is None or len(text) <= room:
            return text
    return head


class Milestones:
    """Which of many progress frames deserve a line of their own, for each thing that progresses.

    Those that begin another step, another tenth or another layer; and when nothing was said for `QUIET_S`, or for a
    tenth of the time since it began, if that is longer.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._said: dict[str, tuple[object, float]] = {}
        self._began: dict[str, float] = {}

    def worth_a_line(self, name: str, step: str, progress: Mapping[str, Any]) -> bool:
        """Takes note of it; True when it is to be told."""
        now = self._clock()
        share = percent(progress)
        where = step, None if share is None else share // 10, (progress.get("layers") or {}).get("done")
        before, at = self._said.get(name, (None, now))
        began = self._began.setdefault(name, now)
        if where == before and now - at < max(QUIET_S, QUIET_SHARE * (now - began)):
            return False
        self._said[name] = where, now
        return True

    def forget(self, name: str) -> None:
        """It progresses no longer."""
        self._said.pop(name, None)
        self._began.pop(name, None)


class Speed:
    """Bytes per second over the last seconds; None until that can be said."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._seen: deque[tuple[float, int]] = deque()
        self._step = ""

    def take(self, step: str, done: int) -> float | None:
        """Notes how far it is now; another step, or a step back, begins anew."""
        now = self._clock()
        if step != self._step or (self._seen and done < self._seen[-1][1]):
            self._step = step
            self._seen.clear()
        self._seen.append((now, done))
        while len(self._seen) > 2 and self._seen[1][0] <= now - SPEED_WINDOW_S:
            self._seen.popleft()
        since, before = self._seen[0]
        return (done - before) / (now - since) if now > since else None

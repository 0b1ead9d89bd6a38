"""Trying again: what may pass by itself is tried again with growing, scattered pauses, and given up in good time."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec
import trio

from rik.images.errors import ImagePullFailed

T = TypeVar("T")

MOST_TRIES = 5
# A refused connection or an unknown host seldom mends itself: say so soon.
MOST_UNREACHABLE_TRIES = 3
UNREACHABLE_S = 10.0
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 8.0
# A registry that wants more patience than this (Retry-After) is not waited for.
LONGEST_RETRY_AFTER_S = 30.0


class TransientFailure(Exception):
    """What went wrong may be well the next time. `cause` is for people, verbatim from below; `retry_after_s` is what
    the registry asked for; `unreachable`: nobody answered at all (connection refused, unknown host). `next_step` is
    what to do about it once it is given up."""

    def __init__(
        self, cause: str, *, retry_after_s: float | None = None, unreachable: bool = False, next_step: str = ""
    ) -> None:
        super().__init__(cause)
        self.cause = cause
        self.retry_after_s = retry_after_s
        self.unreachable = unreachable
        self.next_step = next_step


class Tally(msgspec.Struct, frozen=True):
    """What has failed since the last progress: how often in all, how often in a row because nobody answered, and for
    how many seconds nobody has."""

    tries: int = 0
    unreachable: int = 0
    unreachable_s: float = 0.0


class Again(msgspec.Struct, frozen=True):
    """Try again in `pause_s`; what is below `least_s` is not scattered away."""

    pause_s: float
    least_s: float = 0.0


class GiveUp(msgspec.Struct, frozen=True):
    """`why` completes the last cause, in words for people."""

    why: str


def decide(failure: TransientFailure, tally: Tally, most_tries: int = MOST_TRIES) -> Again | GiveUp:
    """What to do after `failure`, which `tally` counts already."""
    asked = failure.retry_after_s or 0.0
    tried = "tried once" if tally.tries == 1 else f"tried {tally.tries} times"
    if asked > LONGEST_RETRY_AFTER_S:
        return GiveUp(f"the registry asks to come back in {asked:,.0f} s, {tried}")
    if tally.tries >= most_tries:
        return GiveUp(tried)
    if failure.unreachable and (tally.unreachable >= MOST_UNREACHABLE_TRIES or tally.unreachable_s >= UNREACHABLE_S):
        return GiveUp(tried)
    pause_s = min(FIRST_PAUSE_S * 2 ** (tally.tries - 1), LONGEST_PAUSE_S)
    return Again(max(pause_s, asked), least_s=asked)


def scatter(seconds: float) -> float:
    """A random duration between half of `seconds` and `seconds`: many that failed together do not return together."""
    return seconds * random.uniform(0.5, 1.0)


async def persist(
    what: str,
    attempt: Callable[[], Awaitable[T]],
    *,
    progress: Callable[[], int] = lambda: 0,
    most_tries: int = MOST_TRIES,
) -> T:
    """What `attempt` returns, tried again after every TransientFailure as `decide` says.

    `progress` is a number that grows when an attempt got further: then counting starts afresh. `what` begins the
    message of the ImagePullFailed that says the last cause and how often it was tried. Other errors pass through.
    """
    tally, reached, unreachable_since = Tally(), progress(), 0.0
    while True:
        begun = trio.current_time()
        try:
            return await attempt()
        except TransientFailure as failure:
            if progress() > reached:
                tally, reached = Tally(), progress()
            now = trio.current_time()
            if failure.unreachable and not tally.unreachable:
                unreachable_since = begun
            tally = Tally(
                tries=tally.tries + 1,
                unreachable=tally.unreachable + 1 if failure.unreachable else 0,
                unreachable_s=now - unreachable_since if failure.unreachable else 0.0,
            )
            decision = decide(failure, tally, most_tries)
            if isinstance(decision, GiveUp):
                message = f"{what}: {failure.cause} ({decision.why})"
                raise ImagePullFailed(message, next_step=failure.next_step) from failure
        await trio.sleep(max(scatter(decision.pause_s), decision.least_s))

"""Trying again: how often, after which pauses, and what is said in the end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import MockClock

from rik.images.errors import ImageInvalid, ImagePullFailed
from rik.images.registry.attempts import (
    LONGEST_PAUSE_S,
    LONGEST_RETRY_AFTER_S,
    MOST_TRIES,
    MOST_UNREACHABLE_TRIES,
    UNREACHABLE_S,
    Again,
    GiveUp,
    Tally,
    TransientFailure,
    decide,
    persist,
    scatter,
)

BROKEN = TransientFailure("[Errno 104] Connection reset by peer")
REFUSED = TransientFailure("[Errno 111] Connection refused", unreachable=True, next_step="look whether it runs")


class Failing:
    """An attempt that fails as it is told, one failure each time, and then succeeds; it notes when it was made."""

    def __init__(self, *failures: Exception, takes_s: float = 0.0) -> None:
        self.failures = list(failures)
        self.takes_s = takes_s
        self.made_at: list[float] = []

    async def __call__(self) -> str:
        self.made_at.append(trio.current_time())
        await trio.sleep(self.takes_s)
        if self.failures:
            raise self.failures.pop(0)
        return "done"

    @property
    def pauses(self) -> list[float]:
        return [later - earlier for earlier, later in zip(self.made_at, self.made_at[1:], strict=False)]


async def given_up(attempt: Callable[[], Awaitable[str]]) -> ImagePullFailed:
    with pytest.raises(ImagePullFailed) as caught:
        await persist("the layer sha256:12", attempt)
    return caught.value


def test_pauses_grow_up_to_a_bound() -> None:
    """Every pause is twice the one before, until the longest."""
    decisions = [decide(BROKEN, Tally(tries=tries), most_tries=100) for tries in range(1, 12)]
    pauses = [decision.pause_s for decision in decisions if isinstance(decision, Again)]
    assert pauses[:4] == [0.5, 1.0, 2.0, 4.0]
    assert max(pauses) == pauses[-1] == LONGEST_PAUSE_S


def test_retry_after_up_to_a_bound() -> None:
    """What the registry asks for is waited for, unless it is too long: then the message says when to come back."""
    busy = TransientFailure("429 Too Many Requests", retry_after_s=LONGEST_RETRY_AFTER_S)
    assert decide(busy, Tally(tries=1)) == Again(LONGEST_RETRY_AFTER_S, LONGEST_RETRY_AFTER_S)
    assert decide(TransientFailure("429", retry_after_s=0.1), Tally(tries=1)) == Again(0.5, 0.1)
    later = decide(TransientFailure("429 Too Many Requests", retry_after_s=3600), Tally(tries=1))
    assert later == GiveUp("the registry asks to come back in 3,600 s, tried once")


def test_scatter() -> None:
    """A pause is scattered between its half and its whole."""
    scattered = [scatter(8.0) for _ in range(200)]
    assert all(4.0 <= pause <= 8.0 for pause in scattered)
    assert max(scattered) - min(scattered) > 1.0


async def test_success_after_failures(autojump_clock: MockClock) -> None:
    """What goes well at last is returned as if nothing had been."""
    attempt = Failing(BROKEN, BROKEN)
    assert await persist("it", attempt) == "done"
    assert [0.25 <= attempt.pauses[0] <= 0.5, 0.5 <= attempt.pauses[1] <= 1.0] == [True, True]


async def test_giving_up(autojump_clock: MockClock) -> None:
    """After the tries the last cause is said verbatim, and how often it was tried."""
    attempt = Failing(*[TransientFailure(f"cause {number}") for number in range(10)])
    error = await given_up(attempt)
    assert len(attempt.made_at) == MOST_TRIES
    assert error.message == "the layer sha256:12: cause 4 (tried 5 times)"


async def test_progress_starts_counting_afresh(autojump_clock: MockClock) -> None:
    """An attempt that got further makes the earlier failures forgotten, and its own pause a short one."""
    got = 0
    attempt = Failing(*[BROKEN] * 12)

    async def progressing() -> str:
        nonlocal got
        got = {4: 10, 8: 20}.get(len(attempt.made_at), got)
        return await attempt()

    assert await persist("it", progressing, progress=lambda: got) == "done"
    assert len(attempt.made_at) == 13
    assert attempt.pauses[4] <= 0.5 and attempt.pauses[8] <= 0.5


async def test_unreachable(autojump_clock: MockClock) -> None:
    """A refused connection is tried three times within ten seconds, and the next step is said."""
    attempt = Failing(*[REFUSED] * 10)
    begun = trio.current_time()
    error = await given_up(attempt)
    assert len(attempt.made_at) == MOST_UNREACHABLE_TRIES
    assert trio.current_time() - begun < UNREACHABLE_S
    assert error.message == "the layer sha256:12: [Errno 111] Connection refused (tried 3 times)"
    assert error.next_step == "look whether it runs"


async def test_slowly_unreachable(autojump_clock: MockClock) -> None:
    """When finding out that nobody answers takes long, there are fewer tries."""
    attempt = Failing(*[REFUSED] * 10, takes_s=6.0)
    await given_up(attempt)
    assert len(attempt.made_at) == 2


async def test_unreachable_in_between(autojump_clock: MockClock) -> None:
    """A registry that is away for a moment, in the midst of other failures, is not given up for that."""
    attempt = Failing(REFUSED, REFUSED, BROKEN, REFUSED)
    assert await persist("it", attempt) == "done"


async def test_retry_after_is_waited_for(autojump_clock: MockClock) -> None:
    """Never is the registry asked sooner than it said."""
    attempt = Failing(TransientFailure("503 Service Unavailable", retry_after_s=20.0))
    await persist("it", attempt)
    assert attempt.pauses[0] >= 20.0


async def test_other_errors_pass(autojump_clock: MockClock) -> None:
    """What would be no better the next time is raised at once."""
    attempt = Failing(ImageInvalid("no layer"))
    with pytest.raises(ImageInvalid, match="no layer"):
        await persist("it", attempt)
    assert len(attempt.made_at) == 1


async def test_cancelled_while_it_pauses(autojump_clock: MockClock) -> None:
    """A cancelled one does not try again."""
    attempt = Failing(*[BROKEN] * 10)
    with trio.move_on_after(0.1) as scope:
        await persist("it", attempt)
    assert scope.cancelled_caught
    assert len(attempt.made_at) == 1

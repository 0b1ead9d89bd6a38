"""Rounds that mostly wait for a server, side by side: each lane has a server and a share of the rounds of its own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import trio

# One more than CI has cores: a round also waits, for the disk and for what it kills.
LANES = 3

T = TypeVar("T")


def share(rounds: Sequence[T], lane: int) -> Sequence[T]:
    """What falls to `lane`, of 0 to LANES - 1; all shares together are `rounds`, each once."""
    return rounds[lane::LANES]


async def in_lanes(run: Callable[[int], Awaitable[None]]) -> None:
    """Runs `run(lane)` for every lane; the first failure says its lane and cancels the others.

    Raises ExceptionGroup.
    """

    async def one(lane: int) -> None:
        try:
            await run(lane)
        except Exception as error:
            error.add_note(f"in lane {lane} of 0 to {LANES - 1}")
            raise

    async with trio.open_nursery() as nursery:
        for lane in range(LANES):
            nursery.start_soon(one, lane)

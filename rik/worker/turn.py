"""How many instances are created at a time, and what does not count."""

from __future__ import annotations

from collections.abc import Callable

import trio

from rik.model.instance import Progress


class Turn:
    """One instance's turn to be created, held while its body runs: `async with Turn(…) as turn`.

    While an image is pulled the turn is somebody else's: a slow registry holds up only those who wait for it. `report`
    gives it back at the first word of a pull; `take` has it again, and says `queued` when that may take a while.
    """

    def __init__(self, turns: trio.CapacityLimiter, tell: Callable[[Progress], None]) -> None:
        self._turns = turns
        self._tell = tell
        self._held = False

    async def __aenter__(self) -> Turn:
        await self.take()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._give_back()

    async def take(self) -> None:
        """Waits for it, unless it is held already."""
        if self._held:
            return
        if self._turns.available_tokens < 1:
            self._tell(Progress("queued"))
        await self._turns.acquire_on_behalf_of(self)
        self._held = True

    def report(self, progress: Progress) -> None:
        """Tells it on."""
        if progress.step == "pull":
            self._give_back()
        self._tell(progress)

    def _give_back(self) -> None:
        if self._held:
            self._held = False
            self._turns.release_on_behalf_of(self)

"""How many unpack at a time, and who does not count."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator

import trio

from rik.images.beside import beside

# Whoever waits for bytes for longer than this is waiting for the network: meanwhile another can unpack.
LENT_AFTER_S = 0.1


class Slot:
    """One of `slots`, held while its body runs: `async with Slot(slots) as slot`."""

    def __init__(self, slots: trio.CapacityLimiter) -> None:
        self._slots = slots
        self._held = False

    async def __aenter__(self) -> Slot:
        await self._take()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._give_back()

    async def fed(self, first: bytes, rest: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        """All chunks, to the first that is empty. While one lets itself be waited for the slot is somebody else's:
        layers that trickle in hold up nobody."""
        chunk = first
        while chunk:
            yield chunk
            async with beside(self._lend):
                chunk = await anext(rest, b"")
            await self._take()

    async def _lend(self) -> None:
        await trio.sleep(LENT_AFTER_S)
        self._give_back()

    async def _take(self) -> None:
        if not self._held:
            await self._slots.acquire_on_behalf_of(self)
            self._held = True

    def _give_back(self) -> None:
        if self._held:
            self._held = False
            self._slots.release_on_behalf_of(self)

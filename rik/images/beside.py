"""A task that runs for as long as something else does."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio


@asynccontextmanager
async def beside(task: Callable[[], Awaitable[object]]) -> AsyncIterator[None]:
    """Runs `task`, which never fails, while the body runs, and cancels it then. What the body raises passes as it is:
    through a nursery it would become a group."""
    raised: Exception | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(task)
        try:
            yield
        except Exception as error:  # noqa: BLE001  # raised below
            raised = error
        nursery.cancel_scope.cancel()
    if raised is not None:
        raise raised

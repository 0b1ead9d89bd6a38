"""Work that several want at the same time is done once, and all who wait see how far it is.

The work has a task of its own, so that it does not matter who of them goes. That is a system task of Trio's, because
no nursery belongs to all of them; yet it has owners: those who wait for it. The last one to go ends it and waits for
its end, so that there is none while nobody waits. What it raises they raise; the task itself only Cancelled.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Generic, TypeVar

import trio

from rik.images.errors import ImageError
from rik.model.instance import Progress

ReportProgress = Callable[[Progress], None]
T = TypeVar("T")
Work = Callable[[ReportProgress], AbstractAsyncContextManager[T]]


class _Flight(Generic[T]):
    def __init__(self) -> None:
        self.listeners: dict[object, ReportProgress] = {}  # one for each that waits or has not left yet
        self.latest: Progress | None = None
        self.result: list[T] = []
        self.error: BaseException | None = None
        self.scope = trio.CancelScope()
        self.landed = trio.Event()  # there is a result or an error
        self.deserted = trio.Event()
        self.ended = trio.Event()

    def tell(self, progress: Progress) -> None:
        self.latest = progress
        for listener in list(self.listeners.values()):
            listener(progress)


class Flights(Generic[T]):
    """The work under way, each under a key."""

    def __init__(self) -> None:
        self._flights: dict[str, _Flight[T]] = {}

    @asynccontextmanager
    async def join(self, key: str, work: Work[T], listener: ReportProgress) -> AsyncIterator[T]:
        """Waits for what `work` yields, begun when nobody has yet; the work's context is open until all have left.

        Who comes after it has succeeded or failed begins anew. Raises what the work raises, an ImageError as one of
        everybody's own; what the end of its context raises, only the last one to leave hears. `listener` is told the
        latest progress at once, and must not raise.
        """
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = _Flight()
            trio.lowlevel.spawn_system_task(self._fly, key, work, flight, name=f"pull {key}")
        ticket = object()
        flight.listeners[ticket] = listener
        try:
            if flight.latest is not None:
                listener(flight.latest)
            await flight.landed.wait()
            if flight.error is not None:
                raise _own(flight.error)
            yield flight.result[0]
        finally:
            del flight.listeners[ticket]
            if not flight.listeners:
                await self._desert(key, flight)

    async def _desert(self, key: str, flight: _Flight[T]) -> None:
        self._remove(key, flight)
        flight.deserted.set()
        if not flight.landed.is_set():
            flight.scope.cancel()
        with trio.CancelScope(shield=True):  # what it cleans up has deadlines of its own
            await flight.ended.wait()
        if flight.result and flight.error is not None:
            raise flight.error  # of its end

    async def _fly(self, key: str, work: Work[T], flight: _Flight[T]) -> None:
        try:
            with flight.scope:
                async with work(flight.tell) as result:
                    flight.result.append(result)
                    self._land(key, flight)
                    await flight.deserted.wait()
        except trio.Cancelled:
            raise  # everything ends, those who wait included
        except BaseException as error:  # noqa: BLE001  # raised by all who wait; a system task may raise nothing
            flight.error = error
        finally:
            self._land(key, flight)
            flight.ended.set()

    def _land(self, key: str, flight: _Flight[T]) -> None:
        self._remove(key, flight)
        flight.landed.set()

    def _remove(self, key: str, flight: _Flight[T]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]


def _own(error: BaseException) -> BaseException:
    """An error of which several tasks raise one each: what they add to it does not mix."""
    if not isinstance(error, ImageError):
        return error
    copy = type(error)(error.message, next_step=error.next_step)
    copy.__cause__ = error.__cause__
    return copy

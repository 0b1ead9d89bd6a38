"""The api's session with the scheduler: feeds the view, matches answers to requests, connects again when it ends."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from rik.api.view import View
from rik.environment import Environment
from rik.errors import BadRequest, Conflict, NotFound, RikError, Unavailable
from rik.link.base import Link, LinkClosed
from rik.messages import Answer, Command, Committed, LiveNode, LiveProgress, Request, Snapshot, ToApi, ToScheduler

log = logging.getLogger("rik.api")

# How long a request may wait for the scheduler; creating 10,000 instances in one batch takes a few seconds.
ANSWER_DEADLINE_S = 30.0
# Pause before connecting again: doubled from the first to the last, jittered.
FIRST_PAUSE_S = 0.1
LAST_PAUSE_S = 2.0

Connect = Callable[[], Awaitable[Link[ToScheduler, ToApi]]]


class Session:
    """Owns the link. `run` is the only writer of the view."""

    def __init__(self, environment: Environment, connect: Connect, view: View) -> None:
        self._environment = environment
        self._connect = connect
        self._view = view
        self._link: Link[ToScheduler, ToApi] | None = None
        self._next_id = 1
        self._waiting: dict[int, _Waiting] = {}
        self._progressed = trio.Event()
        self._fresh_progress: set[str] = set()

    @property
    def connected(self) -> bool:
        """Whether the view is being fed."""
        return self._link is not None

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Ready once the view has its first snapshot; then connects again whenever the link ends."""
        pause_s = FIRST_PAUSE_S
        ready = False
        while True:
            try:
                link = await self._connect()
                try:
                    first = await link.receive()
                    if not isinstance(first, Snapshot):
                        raise RuntimeError(f"a session must begin with a Snapshot, not {type(first).__name__}")
                    self._view.reset(first)
                    self._link = link
                    pause_s = FIRST_PAUSE_S
                    if not ready:
                        ready = True
                        task_status.started()
                    await self._receive(link)
                finally:
                    self._link = None
                    link.close()
                    self._abandon()
            except (LinkClosed, Unavailable) as error:
                log.warning("the scheduler's link ended (%s); connecting again", error or "closed")
            await trio.sleep(self._environment.jitter(pause_s))
            pause_s = min(LAST_PAUSE_S, pause_s * 2)

    async def ask(self, command: Command) -> Any:
        """The answer's result; the view already holds its effects. Raises Refused or Unavailable."""
        link = self._link
        if link is None:
            raise Unavailable("the scheduler is not connected", next_step="try again in a moment")
        number, self._next_id = self._next_id, self._next_id + 1
        waiting = self._waiting[number] = _Waiting()
        try:
            with trio.move_on_after(ANSWER_DEADLINE_S) as deadline:
                await link.send(Request(number, command))
                await waiting.done.wait()
        except LinkClosed:
            raise Unavailable("the scheduler has just gone away; nothing was asked of it") from None
        finally:
            del self._waiting[number]
        if deadline.cancelled_caught:
            raise Unavailable(
                f"the scheduler did not answer within {ANSWER_DEADLINE_S:.0f} s; "
                "whether the request took effect is unknown",
                next_step="look before asking again",
            )
        if waiting.answer is None:
            raise Unavailable(
                "the scheduler went away before it answered; whether the request took effect is unknown",
                next_step="look before asking again",
            )
        return _result(waiting.answer)

    async def fresh_progress(self) -> set[str]:
        """The uids whose progress has changed since the last call; waits until there is one."""
        while not self._fresh_progress:
            self._progressed = trio.Event()
            await self._progressed.wait()
        fresh, self._fresh_progress = self._fresh_progress, set()
        return fresh

    async def _receive(self, link: Link[ToScheduler, ToApi]) -> None:
        view = self._view
        while True:
            message = await link.receive()
            match message:
                case Committed():
                    view.apply(message)
                case Answer(id=number):
                    waiting = self._waiting.get(number)  # None: whoever asked has left
                    if waiting is not None:
                        waiting.answer = message
                        waiting.done.set()
                case LiveProgress(uid=uid):
                    if view.take_progress(message):
                        self._fresh_progress.add(uid)
                        self._progressed.set()
                case LiveNode():
                    view.take_heartbeat(message)
                case Snapshot():
                    view.reset(message)

    def _abandon(self) -> None:
        for waiting in self._waiting.values():
            waiting.done.set()


class _Waiting:
    __slots__ = ("answer", "done")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.answer: Answer | None = None


def _result(answer: Answer) -> Any:
    if not answer.error:
        return answer.result
    error: RikError
    match answer.error:
        case "bad-request":
            error = BadRequest(answer.message, next_step=answer.next_step)
        case "not-found":
            error = NotFound(answer.message, next_step=answer.next_step)
        case "conflict":
            error = Conflict(answer.message, next_step=answer.next_step)
        case "unavailable":
            error = Unavailable(answer.message, next_step=answer.next_step)
        case kind:
            raise RuntimeError(f"the scheduler answered with an unknown kind of error {kind!r}: {answer.message}")
    raise error

"""RIK's end of the conversation with supervisors: asking, following, and telling who has gone from who is stuck."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from rik.errors import InstanceFailure
from rik.model.instance import Reason
from rik.runtime.process import states
from rik.runtime.process.channel import Channel, Gone, Refusal, request
from rik.runtime.process.layout import Layout, is_supervised, take_lock

State = dict[str, Any]

# A supervisor that does not answer a connection for so long is stuck.
ANSWER_S = 10.0
# How long an instance that was adopted in the middle of its start is given before it is spoken of.
ADOPT_S = 10.0
# Connections into pods that are asked for at a time; each takes a third of a millisecond.
ENTRANCES = 32
_PAUSE_S = 0.005


class Supervision:
    """Nothing is remembered that could not be read again, but for the tokens."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._tokens: dict[str, str] = {}
        self._entrances = trio.CapacityLimiter(ENTRANCES)

    def forget(self, uid: str) -> None:
        """There is no such pod any more."""
        self._tokens.pop(uid, None)

    @asynccontextmanager
    async def ask(self, uid: str, op: str, **arguments: Any) -> AsyncIterator[Channel]:
        """A connection on which `op` has been asked. Raises Gone when there is no supervisor."""
        token = self._tokens.get(uid)
        if token is None:
            spec = states.read_json(self._layout.pod(uid) / "pod.json")
            if spec is None:
                raise Gone("there is no such pod")
            token = self._tokens[uid] = str(spec["token"])
        async with request(self._layout.socket(uid), token, op, **arguments) as channel:
            yield channel

    async def follow(
        self, uid: str, enough: Callable[[State], bool], tell: Callable[[State], None] = lambda state: None
    ) -> State | None:
        """Tells every state until one is `enough`, and returns that one; or the recorded end; None when the supervisor
        was lost. Raises InstanceFailure SupervisorLost when it lives and cannot be talked with."""
        try:
            async with self.ask(uid, "watch") as channel:
                with trio.fail_after(ANSWER_S):
                    message, _ = await channel.message()
                while True:
                    tell(message["state"])
                    if enough(message["state"]):
                        return dict(message["state"])
                    message, _ = await channel.message()
        except Gone:
            await self.until_unsupervised(uid)
            return states.final_record(self._layout.pod(uid))
        except Refusal as error:
            text = f"the supervisor of the pod cannot be asked: {error}"
            raise InstanceFailure(Reason.SUPERVISOR_LOST, text) from None
        except trio.TooSlowError:
            text = f"the supervisor of the pod does not answer within {ANSWER_S:g} s"
            raise InstanceFailure(Reason.SUPERVISOR_LOST, text) from None

    async def present_state(self, uid: str) -> State | None:
        """What its supervisor says now, if there is one; an instance that is being started is waited for a little."""
        if not is_supervised(self._layout.pod(uid)):
            return None
        latest: list[State] = []
        with trio.move_on_after(ADOPT_S):
            return await self.follow(uid, is_begun, latest.append)
        return latest[-1] if latest else None

    async def until_unsupervised(self, uid: str) -> None:
        """A supervisor's last word is said a moment before it has gone."""
        directory = self._layout.pod(uid)
        while is_supervised(directory):
            await trio.sleep(_PAUSE_S)

    async def entrance(self, uid: str, kind: str, family: int) -> trio.socket.SocketType:
        """An unconnected socket (`kind` tcp or udp, `family` 4 or 6) in the pod's network. Raises OSError."""
        try:
            async with self._entrances, self.ask(uid, "socket", type=kind, family=family) as channel:
                with trio.fail_after(ANSWER_S):
                    _, fds = await channel.message()
        except (Gone, Refusal, trio.TooSlowError) as error:
            raise ConnectionRefusedError(f"instance {uid} is not running: {error}") from None
        return trio.socket.from_stdlib_socket(socket.socket(fileno=fds[0]))


async def lock(directory: Path) -> int | None:
    """The lock of a pod without supervisor, to be closed; None when it has one. Raises FileNotFoundError.

    A mere look at the lock, by whoever wants to know, holds it for a moment.
    """
    for _ in range(3):
        fd = take_lock(directory)
        if fd is not None or states.supervisor(directory) is not None:
            return fd
        await trio.sleep(_PAUSE_S)
    return None


def is_begun(state: State) -> bool:
    """Every command was executed, or something went wrong before."""
    return bool(state["phase"] != "starting")


def is_over(state: State) -> bool:
    """Nothing of it runs any more."""
    return bool(state["phase"] == "ended")

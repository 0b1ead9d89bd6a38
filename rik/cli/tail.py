"""Following what instances write, across reconnects: nothing is lost and nothing shown twice. Loads Trio."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import trio
from trio_websocket import ConnectionClosed, WebSocketConnection

from rik.cli.client import Client
from rik.cli.errors import CommandError, RequestRefused, Unreachable
from rik.cli.follow import PATIENCE_S
from rik.cli.output import note
from rik.cli.stream import FAILED_CLOSURE, NORMAL_CLOSURE, RETRY_FIRST_S, RETRY_MOST_S, websocket

REFUSALS_MAX = 3  # in a row, without a line between them: the node has the instance and cannot read its logs
BATCH_ENTRIES = 2_000  # written at once: a thread's hop for every line would be most of the work

Entry = Mapping[str, Any]
Write = Callable[[Sequence[Entry]], None]


async def follow_logs(client: Client, instance: str, query: Mapping[str, Any], write: Write) -> None:
    """Hands the entries of the instance's logs to `write`, in a thread, until its output has ended.

    Raises Unreachable when the server stays away for longer than `PATIENCE_S`, and CommandError when the logs cannot
    be read.
    """
    cursor = LogCursor()
    asked: dict[str, Any] = {**query, "follow": "true"}
    lost_at, wait_s, refusals = -1.0, 0.0, 0
    while True:
        before = cursor.count
        try:
            async with websocket(client.cluster, "instances.logs", instance, query=asked) as connection:
                lost_at = -1.0
                code, why = await _drain(connection, cursor, write)
            if code == NORMAL_CLOSURE:
                return
            refusals = refusals + 1 if code == FAILED_CLOSURE and cursor.count == before else 0
            if refusals >= REFUSALS_MAX:
                raise CommandError(f"the output of {instance} cannot be read: {why or 'no reason was given'}")
        except Unreachable:
            if not wait_s or (lost_at >= 0 and trio.current_time() - lost_at > PATIENCE_S):
                raise
        except RequestRefused as error:
            if error.status < 500 or not wait_s:
                raise  # 503: the server is there again, and the node not yet
        if lost_at < 0:
            lost_at = trio.current_time()
            note("the stream of output was cut off; trying again")
        cursor.reconnected()
        if cursor.since is not None:
            asked = {**asked, "since": cursor.since, "tail": None}
        wait_s = RETRY_FIRST_S if cursor.count > before else min(2 * wait_s or RETRY_FIRST_S, RETRY_MOST_S)
        await trio.sleep(wait_s)


async def _drain(connection: WebSocketConnection, cursor: LogCursor, write: Write) -> tuple[int, str]:
    """Writes everything new until the connection ends; the code and reason with which the server closed it.

    Whoever reads our output may take their time, the server's pings may not: reading goes on while `write` waits.
    """
    closed: tuple[int, str] = (0, "")
    send, receive = trio.open_memory_channel[str | bytes](BATCH_ENTRIES)

    async def read() -> None:
        nonlocal closed
        async with send:
            while True:
                try:
                    await send.send(await connection.get_message())
                except ConnectionClosed as error:
                    if error.reason is not None:
                        closed = error.reason.code, error.reason.reason or ""
                    return

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        async for message in receive:
            messages = [message]
            while len(messages) < BATCH_ENTRIES:
                try:
                    messages.append(receive.receive_nowait())
                except (trio.WouldBlock, trio.EndOfChannel):
                    break
            entries = [entry for each in messages for entry in decode_entries(each) if cursor.is_new(entry)]
            if entries:
                await trio.to_thread.run_sync(write, entries, abandon_on_cancel=True)
    return closed


def decode_entries(message: str | bytes) -> list[Entry]:
    """The entries of one message: a JSON object per line."""
    text = message.decode("utf-8", "replace") if isinstance(message, bytes) else message
    return [json.loads(line) for line in text.split("\n") if line]


class LogCursor:
    """Where in the logs we are, so that after a reconnect nothing is lost and nothing shown twice.

    Times are not unique: how many entries of a container carry its latest time is counted, and as many are skipped when
    the stream starts again from that time. `count` is how many entries were new so far.
    """

    def __init__(self) -> None:
        self._latest: dict[str, str] = {}
        self._at_latest: dict[str, int] = {}
        self._until: dict[str, str] = {}
        self._to_skip: dict[str, int] = {}
        self.count = 0

    @property
    def since(self) -> str | None:
        """The time to ask for again: the earliest of the containers' latest ones."""
        return min(self._latest.values(), default=None)

    def reconnected(self) -> None:
        self._until = dict(self._latest)
        self._to_skip = dict(self._at_latest)

    def is_new(self, entry: Entry) -> bool:
        """Takes note of the entry; False when it was seen before the reconnect."""
        container, at = str(entry.get("container")), str(entry.get("at"))
        until = self._until.get(container)
        if until is not None:
            if at < until:
                return False
            if at == until and self._to_skip.get(container, 0) > 0:
                self._to_skip[container] -= 1
                return False
        self.count += 1
        if at == self._latest.get(container):
            self._at_latest[container] += 1
        else:
            self._latest[container], self._at_latest[container] = at, 1
        return True

"""The far ends of the scheduler's links. Nothing here ever makes the scheduler wait."""

from __future__ import annotations

import logging

import trio

from rik.link.base import Link, LinkClosed, Mailbox
from rik.messages import (
    Answer,
    Committed,
    FromWorker,
    LiveNode,
    LiveProgress,
    Order,
    Orders,
    Rejected,
    ReportsAcknowledged,
    Run,
    Snapshot,
    Stop,
    ToApi,
    ToScheduler,
    ToWorker,
    Welcome,
)

log = logging.getLogger("rik.scheduler")

# Orders in one message; a message over a websocket stays far below its size limit.
ORDERS_PER_MESSAGE = 500


def uid_of(order: Order) -> str:
    """The instance that an order is about."""
    return order.assignment.uid if isinstance(order, Run) else order.uid


class ApiSession:
    """An api that is being told everything. One that does not keep up is cut off: it reconnects to a new snapshot."""

    def __init__(self, link: Link[ToApi, ToScheduler]) -> None:
        self.link = link
        self.closed = False
        self.revision = -1

    def begin(self, snapshot: Snapshot) -> None:
        self._send(snapshot)
        self.revision = snapshot.revision

    def tell(self, committed: Committed) -> None:
        """Sends what it has not been told yet, by its snapshot or before."""
        changes = committed.changes
        if not changes or self.revision < 0:
            return
        if changes[0].revision <= self.revision:
            changes = tuple(change for change in changes if change.revision > self.revision)
            if not changes:
                return
            committed = Committed(changes)
        self._send(committed)
        self.revision = changes[-1].revision

    def answer(self, answer: Answer) -> None:
        self._send(answer)

    def tell_live(self, message: LiveProgress | LiveNode) -> None:
        """May be dropped on the way: the next one is the better one."""
        if self.closed or self.revision < 0:
            return
        try:
            self.link.send_nowait(message)
        except (trio.WouldBlock, LinkClosed):
            pass

    def _send(self, message: ToApi) -> None:
        if self.closed:
            return
        try:
            self.link.send_nowait(message)
        except LinkClosed:
            self.close()
        except trio.WouldBlock:
            log.warning("an api does not keep up with changes; its session is ended, so that it begins anew")
            self.close()

    def close(self) -> None:
        self.closed = True
        self.link.close()


class NodeSession:
    """A worker's link: what it is to be told waits in a mailbox, latest wins, until `write` takes it.

    `greeted` once a hello was received, `node_id` is known once it was taken in, `welcomed` once the welcome is on its
    way. `held` are the instances that the worker has, or may have, heard of.
    """

    def __init__(self, link: Link[ToWorker, FromWorker]) -> None:
        self.link = link
        self.node_id = ""
        self.epoch = 0
        self.greeted = False
        self.welcomed = False
        self.closed = False
        self.held: set[str] = set()
        self._mailbox: Mailbox[tuple[str, str], Welcome | Order | ReportsAcknowledged | Rejected] = Mailbox()

    def welcome(self, welcome: Welcome) -> None:
        self.welcomed = True
        self._mailbox.put(("welcome", ""), welcome)

    def reject(self, message: str) -> None:
        """The session ends once it was said."""
        self._mailbox.put(("rejected", ""), Rejected(message))

    def order(self, order: Order) -> bool:
        """False when this takes the place of a Run that the worker never got: it knows nothing of the instance."""
        uid = uid_of(order)
        unheard = isinstance(order, Stop) and uid not in self.held and self._is_unsent_run(uid)
        self._mailbox.put(("order", uid), order)
        return not unheard

    def acknowledge(self, sequences: dict[str, int]) -> None:
        waiting = self._mailbox.peek(("acknowledged", ""))
        before = waiting.sequences if isinstance(waiting, ReportsAcknowledged) else {}
        self._mailbox.put(("acknowledged", ""), ReportsAcknowledged({**before, **sequences}))

    def close(self) -> None:
        self.closed = True
        self.link.close()

    async def write(self) -> None:
        """Sends what waits until the link ends; raises LinkClosed."""
        while True:
            orders: list[Order] = []
            for message in await self._mailbox.take(ORDERS_PER_MESSAGE):
                if isinstance(message, Welcome | ReportsAcknowledged | Rejected):
                    await self._send_orders(orders)
                    if isinstance(message, Welcome):
                        self._note(message.orders)
                    await self.link.send(message)
                    if isinstance(message, Rejected):
                        self.close()
                        raise LinkClosed
                else:
                    orders.append(message)
                    self._note((message,))
            await self._send_orders(orders)

    def _note(self, orders: tuple[Order, ...]) -> None:
        self.held.update(order.assignment.uid for order in orders if isinstance(order, Run))

    async def _send_orders(self, orders: list[Order]) -> None:
        if orders:
            await self.link.send(Orders(tuple(orders)))
            orders.clear()

    def _is_unsent_run(self, uid: str) -> bool:
        return isinstance(self._mailbox.peek(("order", uid)), Run)

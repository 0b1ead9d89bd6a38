"""What the scheduler is told of instances: the latest state wins, no status is lost, and telling never waits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec
import trio

from rik.link.base import Link, Mailbox
from rik.messages import FromWorker, ProgressReport, Report, Reports, ToWorker
from rik.model.instance import Progress

# Reports that share a message.
BATCH_REPORTS = 500
# Progress is told at most twice a second.
PROGRESS_INTERVAL_S = 0.5
# A report that was not acknowledged by then is sent again on the same link: the scheduler may have failed to commit it.
RESEND_S = 10.0


class _Held:
    """The state of one instance, and how much of its history the scheduler has made durable."""

    __slots__ = ("acknowledged", "fresh", "marks", "report", "sent_at", "sequence")

    def __init__(self) -> None:
        self.report: Report | None = None
        self.sequence = 0
        self.acknowledged = 0  # transitions
        self.marks: list[tuple[int, int]] = []  # (first sequence with so many transitions, how many)
        self.fresh = True  # not sent yet
        self.sent_at: float | None = None  # None: nothing that was sent waits to be acknowledged


class Reporter:
    """Keeps the reports of one worker from when they are told until they are forgotten."""

    def __init__(self, epoch: int) -> None:
        self._epoch = epoch
        self._sequence = 0
        self._held: dict[str, _Held] = {}
        self._fresh: Mailbox[str, str] = Mailbox()
        self._progress: Mailbox[str, tuple[str, Progress]] = Mailbox()

    def tell(self, report: Report) -> None:
        """`report` carries all statuses that the instance ever went through; only the unknown ones will be sent."""
        held = self._held.setdefault(report.uid, _Held())
        self._sequence += 1
        held.report = report
        held.sequence = self._sequence
        held.fresh = True
        if not held.marks or held.marks[-1][1] < len(report.transitions):
            held.marks.append((self._sequence, len(report.transitions)))
        self._fresh.put(report.uid, report.uid)

    def tell_progress(self, uid: str, progress: Progress) -> None:
        """May be replaced by a later one before it is sent."""
        self._progress.put(uid, (uid, progress))

    def latest(self, uid: str) -> Report | None:
        """What was last told."""
        held = self._held.get(uid)
        return held.report if held else None

    def forget(self, uid: str) -> None:
        """Nothing more is said of it."""
        self._held.pop(uid, None)

    def acknowledge(self, sequences: Mapping[str, int]) -> list[str]:
        """Takes note; returns the instances whose final report is now durable with the scheduler."""
        final = []
        for uid, sequence in sequences.items():
            held = self._held.get(uid)
            if held is None or held.report is None:
                continue
            held.acknowledged = max([held.acknowledged, *(count for first, count in held.marks if first <= sequence)])
            if sequence >= held.sequence:
                held.sent_at = None
                if held.report.status.final:
                    final.append(uid)
        return final

    def unacknowledged(self) -> bool:
        """Whether the scheduler may not know the latest of some instance."""
        return any(held.sent_at is not None or held.fresh for held in self._held.values())

    def inventory(self) -> tuple[Report, ...]:
        """Everything held, for a hello; it need not be sent again before it changes."""
        self._fresh = Mailbox()
        return tuple(self._take(self._held))

    async def run(self, link: Link[FromWorker, ToWorker]) -> None:
        """Sends over that link until cancelled. Raises LinkClosed."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send_progress, link)
            nursery.start_soon(self._resend)
            while True:
                uids = await self._fresh.take(BATCH_REPORTS)
                reports = tuple(self._take(uids))
                if reports:
                    await link.send(Reports(reports))

    def _take(self, uids: Iterable[str]) -> list[Report]:
        now = trio.current_time()
        found = []
        for uid in uids:
            held = self._held.get(uid)
            if held is None or held.report is None:
                continue
            held.sent_at = now
            held.fresh = False
            found.append(
                msgspec.structs.replace(
                    held.report,
                    epoch=self._epoch,
                    sequence=held.sequence,
                    transitions=held.report.transitions[held.acknowledged :],
                )
            )
        return found

    async def _send_progress(self, link: Link[FromWorker, ToWorker]) -> None:
        while True:
            latest = dict(await self._progress.take())
            latest = {uid: progress for uid, progress in latest.items() if uid in self._held}
            if latest:
                await link.send(ProgressReport(latest))
            await trio.sleep(PROGRESS_INTERVAL_S)

    async def _resend(self) -> None:
        while True:
            await trio.sleep(RESEND_S)
            late = trio.current_time() - RESEND_S
            for uid, held in self._held.items():
                if held.sent_at is not None and held.sent_at <= late:
                    self._fresh.put(uid, uid)

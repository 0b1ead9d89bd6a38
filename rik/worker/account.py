"""What is said and written of one instance: its report for the scheduler, and its entry in the journal."""

from __future__ import annotations

import logging

import msgspec

from rik.errors import StoreUnavailable
from rik.messages import Report, Stop
from rik.model.instance import ImageUse, LogLine, Port, Progress, Status, Transition
from rik.model.sizes import format_share
from rik.model.spans import format_span
from rik.runtime.base import Observed
from rik.worker.journal import Entry, Phase
from rik.worker.plan import Site

log = logging.getLogger(__name__)
_replace = msgspec.structs.replace


class Account:
    """`entry` is what the journal holds or is about to hold, `report` what will be told and written next."""

    __slots__ = ("_site", "entry", "progress", "report")

    def __init__(self, site: Site, entry: Entry) -> None:
        self._site = site
        self.entry = entry
        self.report: Report = entry.report
        self.progress = Progress("queued")

    @property
    def status(self) -> Status:
        return self.report.status

    def set(self, status: Status, reason: str = "", message: str = "") -> None:
        """A final status that was not told yet may be replaced by another one."""
        report = self.report
        transitions = report.transitions
        if report.status.final:
            transitions = transitions[:-1]
        if status is not report.status or report.status.final:
            transitions = (*transitions, Transition(status, self._site.environment.now(), message))
        self.report = _replace(report, status=status, reason=reason, message=message, transitions=transitions)

    def observe(self, observed: Observed) -> None:
        """Takes over what was seen; what a runtime no longer tells stays as it was."""
        report = self.report
        self.report = _replace(
            report,
            containers=observed.containers or report.containers,
            ip=observed.ip or report.ip,
            enforced=observed.enforced or report.enforced,
        )

    def use(self, images: tuple[ImageUse, ...]) -> None:
        """What is known already stays when there are none: a runtime tells them once."""
        self.report = _replace(self.report, images=images or self.report.images)

    def publish(self, ports: tuple[Port, ...]) -> None:
        self.report = _replace(self.report, ports=ports)

    def keep_lines(self, lines: tuple[LogLine, ...]) -> None:
        self.report = _replace(self.report, log_tail=lines or self.report.log_tail)

    def advance(self, progress: Progress) -> None:
        """The step it is at, told as live progress."""
        self.progress = progress
        self.report = _replace(self.report, step=progress.step)
        self._site.reporter.tell_progress(self.entry.uid, progress)

    def tell(self) -> None:
        """Never waits."""
        self._site.reporter.tell(self.report)

    def wish(self, order: Stop) -> None:
        self.entry = _replace(self.entry, stop=order)

    async def write(self, phase: Phase) -> None:
        """Durable when it returns. Raises StoreUnavailable."""
        self.entry = _replace(self.entry, phase=phase, report=self.report)
        await self._site.journal.put(self.entry)

    async def write_if_possible(self, phase: Phase) -> None:
        """Where going on is safer than not: after a crash the runtime still knows what the journal does not."""
        try:
            await self.write(phase)
        except StoreUnavailable as error:
            log.error("instance %s goes on although %s", self.entry.uid, error)

    def doing(self) -> str:
        """The step it is at, in words."""
        return f"the step was {self.progress.step}" + (f" ({self.how_far()})" if self.how_far() else "")

    def how_far(self) -> str:
        """The figures of the present step, "" when it has none: `3 of 10 MB, 2 of 6 layers, after 12 s`."""
        progress = self.progress
        if not progress.total:
            return ""
        parts = [f"{progress.done} of {progress.total} {progress.unit}".rstrip()]
        if progress.unit == "bytes":
            parts = [format_share(progress.done, progress.total)]
        if progress.layers_total:
            plural = "s" if progress.layers_total > 1 else ""
            parts.append(f"{progress.layers_done} of {progress.layers_total} layer{plural}")
        if progress.seconds:
            parts.append(f"after {format_span(progress.seconds)}")
        return ", ".join(parts)

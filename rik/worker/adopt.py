"""What a restart makes of the journal: what lives is adopted, what died is explained, what was begun is carried on.

The decision is a pure function of what the journal says and what the runtime sees.
"""

from __future__ import annotations

import logging

import msgspec
import trio

from rik.errors import InstanceFailure, StartupError
from rik.messages import Report
from rik.model.instance import Reason, Status
from rik.runtime.base import Observed, Runtime
from rik.worker.journal import Entry, Phase
from rik.worker.plan import Action, Ending, Plan, Site, fault_text
from rik.worker.supervisor import Supervisor

log = logging.getLogger(__name__)

# Instances looked at at a time: each look may read files or start a program.
PARALLEL_LOOKS = 8


def plan(entry: Entry, observed: Observed, rebooted: bool) -> Plan:
    """Where the supervisor of an instance begins after a restart."""
    if entry.phase is Phase.REMOVING:
        return Plan(Action.REMOVE)
    if rebooted:
        message = "the host was restarted while the instance was there; nothing of it runs any more"
        return Plan(Action.END, observed, Ending(Status.FAILED, Reason.NODE_RESTARTED, message))
    if entry.stop is not None:
        return Plan(Action.STOP, observed)
    if observed.phase != "absent":
        return Plan(Action.WATCH, observed)
    if entry.phase is Phase.ACCEPTED:
        return Plan(Action.CREATE)
    if entry.phase is Phase.STARTING:
        message = (
            "RIK ended while it was starting the instance, and nothing of it is left: whether its commands were "
            "executed is not known, so they are not executed again"
        )
    else:
        message = "it was running when RIK ended; nothing of it is left, and how it ended was not recorded"
    return Plan(Action.END, observed, Ending(Status.FAILED, Reason.STOPPED_WITHOUT_STATUS, message))


def first_report(entry: Entry) -> Report:
    """What to say of it until its supervisor says more: never a final status before nothing is left of it."""
    report = entry.report
    if not report.status.final or len(report.transitions) < 2:
        return report
    before = report.transitions[-2]
    return msgspec.structs.replace(
        report,
        status=before.status,
        reason=report.reason if before.status is Status.DESTROYING else "",
        message=before.message,
        transitions=report.transitions[:-1],
    )


async def adopt(
    site: Site, runtimes: dict[str, Runtime], entries: tuple[Entry, ...], rebooted: bool
) -> list[tuple[Supervisor, Plan]]:
    """The supervisors of everything in the journal, not started yet; their first reports have been told.

    Raises StartupError when the runtime of an instance is not among those of this process.
    """
    _check_runtimes(runtimes, entries)
    looks = trio.CapacityLimiter(PARALLEL_LOOKS)
    found: dict[str, tuple[Supervisor, Plan]] = {}

    async def look(entry: Entry) -> None:
        runtime = runtimes[entry.runtime]
        async with looks:
            try:
                observed = await runtime.observe(entry.uid)
                if entry.phase is Phase.ACCEPTED and observed.phase == "absent" and not rebooted:
                    await runtime.remove(entry.uid)  # what was half made; it is made again
                decided = plan(entry, observed, rebooted)
            except InstanceFailure as failure:
                decided = Plan(Action.END, ending=Ending.failed(failure))
            except Exception as fault:
                log.exception("instance %s (%s) cannot be adopted", entry.assignment.name, entry.uid)
                ending = Ending(Status.FAILED, Reason.INTERNAL_ERROR, fault_text(fault))
                decided = Plan(Action.END, ending=ending)
        found[entry.uid] = Supervisor(site, runtime, entry), decided

    async with trio.open_nursery() as nursery:
        for entry in entries:
            site.reporter.tell(first_report(entry))
            nursery.start_soon(look, entry)
    site.environment.step("worker.adopt.decided")
    return [found[entry.uid] for entry in entries]


def _check_runtimes(runtimes: dict[str, Runtime], entries: tuple[Entry, ...]) -> None:
    missing = sorted({entry.runtime for entry in entries} - set(runtimes))
    if missing:
        count = sum(entry.runtime in missing for entry in entries)
        raise StartupError(
            f"the worker's journal holds {count} instance(s) of a runtime that is not there: {', '.join(missing)}",
            next_step=f"start with --runtime {missing[0]} and delete them first, or use another --data-dir",
        )

"""What supervisors share, begin with, and end with."""

from __future__ import annotations

from enum import StrEnum

import msgspec
import trio

from rik.environment import Environment
from rik.errors import InstanceFailure
from rik.model.instance import Status
from rik.network.publisher import Publisher
from rik.runtime.base import Failure, Observed
from rik.settings import WorkerSettings
from rik.worker.journal import Journal
from rik.worker.reporter import Reporter


class Site(msgspec.Struct, frozen=True):
    """What all supervisors of a worker share. `starts` bounds how many instances are created at a time; `background`
    is where tasks go that outlive a step."""

    environment: Environment
    settings: WorkerSettings
    journal: Journal
    reporter: Reporter
    publisher: Publisher
    starts: trio.CapacityLimiter
    background: trio.Nursery


class Action(StrEnum):
    """Where a supervisor begins: with an order (`create`), with what already runs (`watch`), with a stop that was asked
    for, with an end that is already known, or with the removal that follows it."""

    CREATE = "create"
    WATCH = "watch"
    STOP = "stop"
    END = "end"
    REMOVE = "remove"


class Ending(msgspec.Struct, frozen=True):
    """How an instance ends, before it is tried: stopping it may still turn it into DestroyFailed."""

    status: Status
    reason: str = ""
    message: str = ""

    @classmethod
    def failed(cls, failure: InstanceFailure | Failure) -> Ending:
        message = str(failure) if isinstance(failure, InstanceFailure) else failure.message
        return cls(Status.FAILED, failure.reason, message)


class Plan(msgspec.Struct, frozen=True):
    """What a supervisor begins with; `observed` goes with WATCH, `ending` with END."""

    action: Action
    observed: Observed = Observed("absent")
    ending: Ending | None = None


def fault_text(fault: Exception) -> str:
    """How an InternalError is put to a user."""
    return f"a fault in RIK itself, not in the workload: {type(fault).__name__}: {fault}"


def seconds(amount: float) -> str:
    """`30.0` as `30 s`."""
    return f"{amount:g} s"

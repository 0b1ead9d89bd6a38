"""The contract of a runtime: the same verbs for containers and microVMs.

Every verb is idempotent, and legal after any other was cut off at any point, also by a `kill -9` of RIK: `prepare`
after half a `prepare`, `remove` after nothing at all. A runtime raises `InstanceFailure` (with one of `Reason`) for
what is the workload's or the host's fault, and anything else only for a bug.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import msgspec
import trio

from rik.link.base import Stream
from rik.messages import Assignment, Attach, Exec, ReadLogs
from rik.model.instance import ContainerState, ImageUse, LogLine, Progress
from rik.model.node import Capability, HostResource
from rik.model.workload import Spec, parse_spec

ReportProgress = Callable[[Progress], None]


class Pod(msgspec.Struct, frozen=True):
    """An assignment with its spec in typed form: what a runtime is given to prepare (a Pod or a Function)."""

    assignment: Assignment
    spec: Spec

    @classmethod
    def of(cls, assignment: Assignment) -> Pod:
        return cls(assignment, parse_spec(assignment.kind, assignment.spec))

    @property
    def uid(self) -> str:
        return self.assignment.uid


class Failure(msgspec.Struct, frozen=True):
    """Why an instance cannot go on: `reason` is one of `Reason`, `message` a sentence with the cause verbatim."""

    reason: str
    message: str
    container: str = ""


class Observed(msgspec.Struct, frozen=True):
    """What a runtime sees of an instance now.

    `phase` is running, failing (what is left is being stopped, because of `failure`), ended (nothing is left;
    `failure` None: every container exited 0) or absent (the runtime knows nothing of it).
    """

    phase: str
    containers: tuple[ContainerState, ...] = ()
    failure: Failure | None = None
    ip: str = ""
    enforced: dict[str, bool | str] = {}


class ContainerStats(msgspec.Struct, frozen=True):
    """Use of one container; None is unknown."""

    name: str
    cpu_seconds: float | None = None
    memory_bytes: int | None = None
    pids: int | None = None
    network_rx_bytes: int | None = None
    network_tx_bytes: int | None = None


class Runtime(Protocol):
    """One way to run instances on this host. Opened once by the worker; `name` is what `--runtime` calls it."""

    name: str

    def open(self) -> AbstractAsyncContextManager[None]:
        """Owns the runtime's background tasks. Leaving it does not stop instances."""
        ...

    async def probe(self) -> Capability:
        """Tries it for real (a container is started) and says what works here and why the rest does not."""
        ...

    async def prepare(self, pod: Pod, report: ReportProgress) -> tuple[ImageUse, ...]:
        """Everything up to, but not including, executing a command: images, disks, limits. Returns the images that it
        was given, each once. A pull that stalls is the runtime's to end. Raises InstanceFailure."""
        ...

    async def start(self, pod: Pod) -> Observed:
        """Executes every container's command; returns when each was executed (phase running, or failing or ended when
        one has already exited). Raises InstanceFailure; then nothing of it runs any more. A second call does not
        start anything twice."""
        ...

    async def observe(self, uid: str) -> Observed:
        """What there is of it now, also of one that was started by an earlier process and ended meanwhile."""
        ...

    async def wait(self, uid: str, changed: Callable[[Observed], None]) -> Observed:
        """Returns when nothing of it runs any more (phase ended). Calls `changed` whenever a container's state changes
        and when it begins to fail: the first container that exits non-zero or is killed ends its siblings, by the
        runtime itself. When the supervisor was lost: a failure SupervisorLost, with nothing left running."""
        ...

    async def stop(self, uid: str, grace_s: float) -> None:
        """Stop signal, then after `grace_s` SIGKILL; returns when nothing runs. Raises InstanceFailure DestroyFailed
        naming what would not die within 30 s after the grace."""
        ...

    async def remove(self, uid: str) -> None:
        """Removes everything of it but its logs. Raises InstanceFailure DestroyFailed naming what is left."""
        ...

    def logs(self, query: ReadLogs) -> AsyncGenerator[list[LogLine], None]:
        """Batches of lines in time order; with `follow` ends when the instance has ended and all was read."""
        ...

    async def exec(self, request: Exec, stream: Stream) -> None:
        """Serves the contract's frames until the command has exited or the stream is closed (which kills it).
        Raises InstanceFailure when it cannot be started."""
        ...

    async def attach(self, request: Attach, stream: Stream) -> None:
        """As exec, with the container's main process."""
        ...

    async def stats(self, uid: str) -> list[ContainerStats]:
        """Use at this moment, a container each."""
        ...

    async def connect(self, uid: str, port: int) -> trio.abc.HalfCloseableStream:
        """A TCP connection to a port inside the instance. Raises OSError when nothing listens."""
        ...

    async def datagrams(self, uid: str, port: int) -> trio.socket.SocketType:
        """A UDP socket connected to a port inside the instance. Raises OSError."""
        ...

    async def inventory(self) -> list[HostResource]:
        """Every resource on this host that carries this host's id, found by looking at the host, not in memory.
        `owner` is the uid that the resource's name carries."""
        ...

    async def sweep(self, owned: frozenset[str]) -> list[HostResource]:
        """Removes everything that belongs to no uid in `owned`; returns what it removed."""
        ...

"""An instance: its statuses, the reasons why it ended, and its record.

Times are integers: milliseconds since the Unix epoch, UTC. `rik.model.public` turns a record into what the API shows.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec


class Status(StrEnum):
    """The original project's six statuses, by the words its clients know."""

    PENDING = "Pending"
    CREATING = "Creating"
    RUNNING = "Running"
    DESTROYING = "Destroying"
    FAILED = "Failed"
    TERMINATED = "Terminated"

    @property
    def final(self) -> bool:
        """Final records never change again."""
        return self in FINAL

    def can_follow(self, before: Status) -> bool:
        """Whether an instance may go from `before` to this status."""
        return self in FOLLOWERS[before]


FINAL = frozenset({Status.FAILED, Status.TERMINATED})

# Status only moves forward; what does not follow (a late or repeated report) is dropped by this table, nowhere else.
#   Pending    -> Terminated: deleted before it had a node; -> Failed: its deadline passed, or no node can ever run it.
#   Creating   -> Terminated: it ran to its end, or was deleted, between two reports; -> Destroying: a start that failed
#                 half-way, or a delete, stops what was begun.
#   Destroying -> Failed: the failure that made it stop, or what would not die; -> Terminated: deleted.
FOLLOWERS: dict[Status, frozenset[Status]] = {
    Status.PENDING: frozenset({Status.CREATING, Status.FAILED, Status.TERMINATED}),
    Status.CREATING: frozenset({Status.RUNNING, Status.DESTROYING, Status.FAILED, Status.TERMINATED}),
    Status.RUNNING: frozenset({Status.DESTROYING, Status.FAILED, Status.TERMINATED}),
    Status.DESTROYING: FINAL,
    Status.FAILED: frozenset(),
    Status.TERMINATED: frozenset(),
}


class Reason(StrEnum):
    """Why an instance is where it is. Part of the contract: clients match on these words."""

    UNSCHEDULABLE = "Unschedulable"
    NO_CAPABLE_NODE = "NoCapableNode"
    NODE_UNREACHABLE = "NodeUnreachable"
    NODE_LOST = "NodeLost"
    NODE_RESTARTED = "NodeRestarted"
    IMAGE_NOT_FOUND = "ImageNotFound"
    IMAGE_UNAUTHORIZED = "ImageUnauthorized"
    IMAGE_PULL_FAILED = "ImagePullFailed"
    IMAGE_INVALID = "ImageInvalid"
    ROOTFS_DOWNLOAD_FAILED = "RootfsDownloadFailed"
    ROOTFS_INVALID = "RootfsInvalid"
    PORT_CONFLICT = "PortConflict"
    CREATE_FAILED = "CreateFailed"
    COMMAND_NOT_FOUND = "CommandNotFound"
    CONTAINER_EXITED = "ContainerExited"
    OUT_OF_MEMORY = "OutOfMemory"
    KILLED = "Killed"
    BOOT_FAILED = "BootFailed"
    GUEST_PANICKED = "GuestPanicked"
    STOPPED_WITHOUT_STATUS = "StoppedWithoutStatus"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    DESTROY_FAILED = "DestroyFailed"
    SUPERVISOR_LOST = "SupervisorLost"
    INTERNAL_ERROR = "InternalError"


class Record(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """Base of everything that is stored or sent: immutable, without reference cycles, and lenient to new fields."""


class ContainerState(Record, frozen=True):
    """What was observed of one container; `state` is waiting, creating, running or exited."""

    name: str
    image: str
    state: str = "waiting"
    exit_code: int | None = None
    signal: str | None = None
    oom_killed: bool = False
    started_at: int | None = None
    ended_at: int | None = None


class Transition(Record, frozen=True):
    """One line of an instance's history."""

    status: Status
    at: int
    message: str = ""


class Progress(Record, frozen=True):
    """How far a step has come: `step` is queued, pull, unpack, disk, network, start or boot; `total` 0 is unknown.

    Of an image also how many of its `layers_total` layers are complete, and the `seconds` since its pull began.
    """

    step: str
    done: int = 0
    total: int = 0
    unit: str = ""
    layers_done: int = 0
    layers_total: int = 0
    seconds: float = 0.0


class ImageUse(Record, frozen=True):
    """An image that an instance was given: what it is, and how it came to this node.

    `reference` in its short form; `digest` is the manifest's; `origin` is where it came from (a registry, with the
    mirror that answered; a directory; a file). Of its `layers` `pulled_layers`, with `pulled_bytes` as they were sent,
    were fetched in `seconds` at `pulled_at`; `cached` says that this happened before this instance wanted it.
    `size_bytes` is that of its files. `exposed_ports` (`80/tcp`) and `labels` (bounded) are the image's own
    words; `dropped` counts what this node could not keep (devices, owners, xattrs, other).
    """

    reference: str
    digest: str
    containers: tuple[str, ...] = ()
    origin: str = ""
    cached: bool = False
    layers: int = 0
    pulled_layers: int = 0
    pulled_bytes: int = 0
    size_bytes: int = 0
    seconds: float = 0.0
    pulled_at: int = 0
    exposed_ports: tuple[str, ...] = ()
    dropped: dict[str, int] = {}
    labels: dict[str, str] = {}


class Port(Record, frozen=True):
    """A published port: `port` of the node (0 until chosen) leads to `target_port` of the instance.

    `type` is NodePort or ClusterIP; `address` is where the node listens ("" until it does).
    """

    port: int
    target_port: int
    protocol: str = "TCP"
    type: str = "NodePort"
    address: str = ""


class LogLine(Record, frozen=True):
    """One line of output, without its newline; `stream` is stdout, stderr, or rik for a note of RIK's own."""

    container: str
    stream: str
    at: int
    line: str


class Instance(Record, frozen=True):
    """The record of one instance. Written by the scheduler alone.

    `status`, `reason`, `message`, `containers`, `ip`, `ports`, `enforced`, `images` and `log_tail` are what was
    observed;
    `deleted` is what is desired (stop it, then remove the record); `stale_since` says since when the node is silent.
    `deadline_at` is when the present status must have been left (0: no deadline), `placed_at` when a node was given.
    `step` is the last step known when it ended.
    """

    uid: str
    name: str
    kind: str
    namespace: str
    workload_id: str
    workload: str
    spec: dict[str, Any]
    created_at: int
    updated_at: int
    status: Status = Status.PENDING
    reason: str = ""
    message: str = ""
    node: str = ""
    node_id: str = ""
    decision: str = ""
    placed_at: int = 0
    deadline_at: int = 0
    deleted: bool = False
    stale_since: int | None = None
    step: str = ""
    history: tuple[Transition, ...] = ()
    containers: tuple[ContainerState, ...] = ()
    ip: str = ""
    ports: tuple[Port, ...] = ()
    enforced: dict[str, bool | str] = {}
    images: tuple[ImageUse, ...] = ()
    log_tail: tuple[LogLine, ...] = ()
    revision: int = 0

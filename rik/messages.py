"""Every message between roles, one union per receiver. Whoever has read this file knows the protocol.

    api  -- Request -->  scheduler  -- Orders -->  worker
    api  <-- Snapshot, Committed, Answer, LiveProgress, LiveNode --  scheduler
                                                                     scheduler  <-- Hello, Reports, Heartbeat --  worker

Beside the messages a link carries *streams* (logs, exec, attach, stats, audit, doctor, images): whoever opens one sends
a `StreamRequest` first; then both sides exchange frames of bytes (see `rik.link.base.Stream`).
"""

from __future__ import annotations

from typing import Any

from rik.model.change import Change
from rik.model.instance import ContainerState, ImageUse, Instance, LogLine, Port, Progress, Record, Status, Transition
from rik.model.node import Capability, Node
from rik.model.resources import Resources
from rik.model.workload import Workload

# --- api -> scheduler ------------------------------------------------------------------------------------------------


class CreateWorkload(Record, frozen=True, tag=True):
    """`document` has been validated and normalised. Answered with the workload's id (str)."""

    document: dict[str, Any]
    namespace: str


class DeleteWorkload(Record, frozen=True, tag=True):
    """By id or name. Its instances are deleted too. Answered with None."""

    workload: str
    namespace: str


class CreateInstances(Record, frozen=True, tag=True):
    """`replicas` instances of a workload (id or name); `name` only with one. Answered with their names (list[str])."""

    workload: str
    namespace: str
    name: str = ""
    replicas: int = 1


class DeleteInstance(Record, frozen=True, tag=True):
    """By name or uid. Answered with None once the wish is durable; the stopping takes its time."""

    instance: str
    namespace: str


class Explain(Record, frozen=True, tag=True):
    """Runs the placement of an instance again, changing nothing. Answered with the contract's `instances.explain`."""

    instance: str
    namespace: str


Command = CreateWorkload | DeleteWorkload | CreateInstances | DeleteInstance | Explain


class Request(Record, frozen=True, tag=True):
    """A command with the number by which its answer is known."""

    id: int
    command: Command


ToScheduler = Request

# --- scheduler -> api ------------------------------------------------------------------------------------------------


class Snapshot(Record, frozen=True, tag=True):
    """Everything there is at `revision`: the first message of a session, and again whenever the api fell behind."""

    revision: int
    workloads: tuple[Workload, ...]
    instances: tuple[Instance, ...]
    nodes: tuple[Node, ...]


class Committed(Record, frozen=True, tag=True):
    """Changes that are durable, in order, without a hole between one message and the next."""

    changes: tuple[Change, ...]


class Answer(Record, frozen=True, tag=True):
    """The outcome of a request, sent after the `Committed` that holds its effects.

    `error` is "" or the kind of refusal: bad-request, not-found, conflict, unavailable; `message` then says why.
    """

    id: int
    result: Any = None
    error: str = ""
    message: str = ""
    next_step: str = ""


class LiveProgress(Record, frozen=True, tag=True):
    """How far an instance's creation has come. Neither stored nor numbered; the latest wins."""

    uid: str
    progress: Progress


class LiveNode(Record, frozen=True, tag=True):
    """A node's last heartbeat, by the node's id. Neither stored nor numbered; the latest wins."""

    id: str
    heartbeat_at: int
    metrics: dict[str, Any] = {}


ToApi = Snapshot | Committed | Answer | LiveProgress | LiveNode

# --- scheduler -> worker ---------------------------------------------------------------------------------------------


class Assignment(Record, frozen=True):
    """An instance given to a node: all that its worker must know, now and after a restart."""

    uid: str
    name: str
    namespace: str
    workload: str
    kind: str
    spec: dict[str, Any]
    creating_deadline_at: int
    node_id: str


class Run(Record, frozen=True, tag=True):
    """Start this instance, unless this worker has ever acknowledged it."""

    assignment: Assignment


class Stop(Record, frozen=True, tag=True):
    """Stop this instance and leave nothing of it but its logs. With a `reason` it ends Failed for that reason."""

    uid: str
    reason: str = ""
    message: str = ""


class Forget(Record, frozen=True, tag=True):
    """The final status of this instance is durable: the worker's journal may drop it."""

    uid: str


Order = Run | Stop | Forget


class Welcome(Record, frozen=True, tag=True):
    """Answer to Hello. What the worker holds and no order here names is not wanted: it is stopped."""

    node_id: str
    orders: tuple[Order, ...]


class Orders(Record, frozen=True, tag=True):
    """What has changed since; the latest order for a uid wins."""

    orders: tuple[Order, ...]


class ReportsAcknowledged(Record, frozen=True, tag=True):
    """Durable: for each uid the highest sequence number of its reports."""

    sequences: dict[str, int]


class Rejected(Record, frozen=True, tag=True):
    """The node may not take part; it stays disconnected and says so."""

    message: str


ToWorker = Welcome | Orders | ReportsAcknowledged | Rejected

# --- worker -> scheduler ---------------------------------------------------------------------------------------------


class Report(Record, frozen=True):
    """The state of one instance as its worker sees it. Later (epoch, sequence) wins over earlier.

    `transitions` are the statuses it went through since the last acknowledged report, oldest first and ending with
    `status`, so that none is lost to a watcher when reports are merged.
    """

    uid: str
    epoch: int
    sequence: int
    status: Status
    transitions: tuple[Transition, ...] = ()
    reason: str = ""
    message: str = ""
    step: str = ""
    containers: tuple[ContainerState, ...] = ()
    ip: str = ""
    ports: tuple[Port, ...] = ()
    enforced: dict[str, bool | str] = {}
    images: tuple[ImageUse, ...] = ()
    log_tail: tuple[LogLine, ...] = ()


class NodeDescription(Record, frozen=True):
    """What a worker says of its host."""

    name: str
    roles: tuple[str, ...]
    labels: dict[str, str]
    capabilities: tuple[Capability, ...]
    capacity: Resources
    version: str
    boot_id: str


class Hello(Record, frozen=True, tag=True):
    """First message of a worker: who it is, and every instance it holds, whether acknowledged or not."""

    journal_id: str
    epoch: int
    node: NodeDescription
    inventory: tuple[Report, ...]


class Reports(Record, frozen=True, tag=True):
    """What has changed; kept by the worker and sent again until acknowledged."""

    reports: tuple[Report, ...]


class ProgressReport(Record, frozen=True, tag=True):
    """Progress of instances in creation, by uid; may be dropped on the way."""

    progress: dict[str, Progress]


class Heartbeat(Record, frozen=True, tag=True):
    """Renews the node's lease."""

    sequence: int
    metrics: dict[str, Any] = {}


FromWorker = Hello | Reports | ProgressReport | Heartbeat

# --- streams, opened by the api towards a worker ---------------------------------------------------------------------


class ReadLogs(Record, frozen=True, tag=True):
    """Frames back: each a batch of JSON lines `{at, container, stream, line}`, `at` in RFC 3339.

    `container` "" is all of them; `tail` < 0 is everything; `since_ms` is an absolute time, 0 for the beginning.
    """

    uid: str
    container: str = ""
    tail: int = -1
    since_ms: int = 0
    follow: bool = False


class Exec(Record, frozen=True, tag=True):
    """Frames both ways as in the contract: first byte 0 stdin, 1 stdout, 2 stderr, 3 JSON control."""

    uid: str
    command: tuple[str, ...]
    container: str = ""
    tty: bool = False
    columns: int = 80
    rows: int = 24


class Attach(Record, frozen=True, tag=True):
    """As Exec, to the container's main process."""

    uid: str
    container: str = ""


class ReadStats(Record, frozen=True, tag=True):
    """One frame back: JSON, the contract's stats of one instance."""

    uid: str


class Audit(Record, frozen=True, tag=True):
    """One frame back: JSON `{"resources": [...], "orphans": [...]}` of the whole host."""


class Doctor(Record, frozen=True, tag=True):
    """One frame back: JSON `{"checks": [...]}`."""


class ListImages(Record, frozen=True, tag=True):
    """One frame back: JSON `{"images": [...], "size_bytes", "cache_bytes", "keep_unused_s"}`."""


class PullImage(Record, frozen=True, tag=True):
    """Asks the registry, whatever is here already. Frames back, each one line of JSON: `{"type": "progress", …}` at
    most twice a second and at least every 5 s, then `{"type": "image", …}`. Closing the stream gives it up."""

    reference: str


class PruneImages(Record, frozen=True, tag=True):
    """Removes images that nothing uses, and has not for `unused_s`; with `dry_run` only says which. One frame back:
    JSON `{"removed": [...], "freed_bytes", "kept", "size_bytes"}`."""

    unused_s: float = 0.0
    dry_run: bool = False


StreamRequest = ReadLogs | Exec | Attach | ReadStats | Audit | Doctor | ListImages | PullImage | PruneImages

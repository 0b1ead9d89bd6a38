"""A node: a host with the worker role, as the scheduler sees it."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from rik.model.instance import Record
from rik.model.resources import Resources


class NodeStatus(StrEnum):
    """Ready: its lease is valid. NotReady: nothing was heard of it for longer than a lease."""

    READY = "Ready"
    NOT_READY = "NotReady"


class Capability(Record, frozen=True):
    """What one runtime of a node can do: `reason` says why not when `ok` is false, and how when it is true.

    `kinds` are the workload kinds it runs ("Pod", "Function"); `limits` says per limit (cpu, memory, pids, network)
    true or why it is not enforced here.
    """

    runtime: str
    ok: bool
    reason: str = ""
    kinds: tuple[str, ...] = ()
    limits: dict[str, bool | str] = {}


class Check(Record, frozen=True):
    """One line of `rik doctor`: `next` is what to do when `ok` is false."""

    name: str
    ok: bool
    detail: str = ""
    next: str = ""


class HostResource(Record, frozen=True):
    """Something on the host that RIK made: a process, namespace, mount, cgroup, file or socket.

    `owner` is the uid of the instance it belongs to, "rik" for RIK's own, or "" when nobody owns it: an orphan.
    """

    kind: str
    name: str
    owner: str = ""
    detail: str = ""


class Node(Record, frozen=True):
    """The record of one node. `id` is the identity of its worker's journal: a new journal is a new node.

    `epoch` is the highest start count of the worker that was seen; `boot_id` tells that the host restarted.
    """

    id: str
    name: str
    status: NodeStatus = NodeStatus.READY
    roles: tuple[str, ...] = ()
    labels: dict[str, str] = {}
    capabilities: tuple[Capability, ...] = ()
    capacity: Resources = Resources()
    version: str = ""
    epoch: int = 0
    boot_id: str = ""
    cordoned: bool = False
    created_at: int = 0
    heartbeat_at: int = 0
    metrics: dict[str, Any] = {}
    revision: int = 0

    def capability(self, kind: str) -> Capability | None:
        """The first working runtime for workloads of `kind`, if any."""
        return next((c for c in self.capabilities if c.ok and kind in c.kinds), None)

"""Where an instance goes. Pure and deterministic: the same nodes and the same demand give the same answer.

Every node is asked by filters, each of which explains itself. What a node can *never* do (no runtime for the kind, too
small, other labels) is told apart from what it cannot do *now* (full, silent, cordoned, a port held).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from rik.model.instance import Port, Reason
from rik.model.node import Node, NodeStatus
from rik.model.resources import Resources, format_cpu, format_memory
from rik.model.workload import Spec

SPREAD = "spread"
BINPACK = "binpack"

# A fixed port of a node: its number and TCP or UDP.
NodePort = tuple[int, str]
# Nodes that a sentence names one by one; beyond, they are counted.
NAMED_NODES = 3


class Holder(msgspec.Struct, frozen=True, gc=False):
    """Who has a node's port; `leaving` when it is being stopped."""

    uid: str
    name: str
    leaving: bool = False


class Room(msgspec.Struct, frozen=True):
    """A node as placement sees it; `ports` may be a live mapping and is only read."""

    node: Node
    used: Resources
    instances: int
    ports: Mapping[NodePort, Holder]


class Demand(msgspec.Struct, frozen=True):
    """What an instance asks of a node."""

    kind: str
    resources: Resources
    selector: dict[str, str]
    ports: frozenset[NodePort]

    @classmethod
    def of(cls, spec: Spec) -> Demand:
        return cls(spec.kind, spec.resources, spec.node_selector, claimed_ports(spec))


class Placed(msgspec.Struct, frozen=True):
    """`decision` says why this node."""

    node: Node
    decision: str


class Waiting(msgspec.Struct, frozen=True):
    """Not now; `message` says why and what each node lacks."""

    message: str


class Impossible(msgspec.Struct, frozen=True):
    """Never as things are: the instance fails at once."""

    reason: Reason
    message: str


Outcome = Placed | Waiting | Impossible


class Lack(msgspec.Struct, frozen=True):
    """One thing that keeps an instance off a node.

    `key` groups the same lack of several nodes; `one` says it of one node, `many` of several (both follow a number or
    the node's name). `detail` is the node's own reason, verbatim. `port` marks a held port, `leaving` one soon free.
    """

    key: str
    one: str
    many: str
    never: bool = False
    detail: str = ""
    port: bool = False
    leaving: bool = False


class Verdict(msgspec.Struct, frozen=True):
    """A node's answer; `score` (less is better) orders the nodes that fit."""

    node: Node
    lacks: tuple[Lack, ...]
    score: tuple[float, int, str]

    @property
    def fits(self) -> bool:
        return not self.lacks

    @property
    def why(self) -> str:
        if self.fits:
            return f"{abs(self.score[0]):.0%} allocated with it" if self.score[0] else "nothing keeps it off"
        return "; ".join(f"{lack.one}{f' ({lack.detail})' if lack.detail else ''}" for lack in self.lacks)


def claimed_ports(spec: Spec) -> frozenset[NodePort]:
    """The ports of a node that are known beforehand: fixed NodePorts, and on the host's network what is listened on."""
    fixed = {(port.port, port.protocol) for port in spec.ports if port.type == "NodePort" and port.port}
    if spec.host_network:
        fixed |= {(port.target_port, port.protocol) for port in spec.ports if port.target_port}
    return frozenset(fixed)


def chosen_ports(ports: Iterable[Port]) -> frozenset[NodePort]:
    """The ports of a node that a worker says it has given to an instance."""
    return frozenset((port.port, port.protocol) for port in ports if port.type == "NodePort" and port.port)


# --- filters: each yields what one node lacks ------------------------------------------------------------------------


def _capable(demand: Demand, room: Room) -> Iterable[Lack]:
    if room.node.capability(demand.kind) is not None:
        return
    told = [f"{c.runtime}: {c.reason}" for c in room.node.capabilities if not c.ok and c.reason]
    detail = "; ".join(told)
    yield Lack(
        f"capability {detail}",
        f"has no runtime for a {demand.kind}",
        f"have no runtime for a {demand.kind}",
        never=True,
        detail=detail,
    )


def _selected(demand: Demand, room: Room) -> Iterable[Lack]:
    for key, value in sorted(demand.selector.items()):
        if room.node.labels.get(key) != value:
            yield Lack(
                f"selector {key}", f"is not labelled {key}={value}", f"are not labelled {key}={value}", never=True
            )


def _ready(demand: Demand, room: Room) -> Iterable[Lack]:
    if room.node.status != NodeStatus.READY:
        yield Lack("ready", "is not ready (nothing is heard of it)", "are not ready (nothing is heard of them)")


def _open(demand: Demand, room: Room) -> Iterable[Lack]:
    if room.node.cordoned:
        yield Lack("cordoned", "is cordoned", "are cordoned")


def _roomy(demand: Demand, room: Room) -> Iterable[Lack]:
    for what, wanted, capacity, used in (
        ("cpu", demand.resources.cpu_millis, room.node.capacity.cpu_millis, room.used.cpu_millis),
        ("memory", demand.resources.memory_bytes, room.node.capacity.memory_bytes, room.used.memory_bytes),
        ("pids", demand.resources.pids, room.node.capacity.pids, room.used.pids),
    ):
        if not wanted or not capacity:
            continue
        noun = "pids" if what == "pids" else what
        if wanted > capacity:
            yield Lack(f"size {what}", f"has less {noun} in all", f"have less {noun} in all", never=True)
        elif wanted > capacity - used:
            yield Lack(f"free {what}", f"has less {noun} free", f"have less {noun} free")


def _unheld(demand: Demand, room: Room) -> Iterable[Lack]:
    for key in sorted(demand.ports):
        holder = room.ports.get(key)
        if holder is not None:
            number, protocol = key
            taken = f"port {number}/{protocol} taken"
            state = "being released by" if holder.leaving else "held by"
            yield Lack(
                f"port {key} {holder.leaving}",
                f"has {taken}",
                f"have {taken}",
                port=True,
                leaving=holder.leaving,
                detail=f"port {number}/{protocol} is {state} instance {holder.name}",
            )


FILTERS: Sequence[Callable[[Demand, Room], Iterable[Lack]]] = (_capable, _selected, _ready, _open, _roomy, _unheld)


# --- decisions -------------------------------------------------------------------------------------------------------


def judge(demand: Demand, room: Room, policy: str = SPREAD) -> Verdict:
    """What one node says to it, by all filters."""
    lacks = tuple(lack for ask in FILTERS for lack in ask(demand, room))
    return Verdict(room.node, lacks, _score(demand, room, policy))


def place(demand: Demand, rooms: Iterable[Room], policy: str = SPREAD) -> Outcome:
    """The node for an instance, or why there is none. Looks at every node: exact, and linear in their number."""
    best: Verdict | None = None
    refused: list[Verdict] = []
    fitting = 0
    for room in rooms:
        verdict = judge(demand, room, policy)
        if not verdict.fits:
            refused.append(verdict)
            continue
        fitting += 1
        if best is None or verdict.score < best.score:
            best = verdict
    if best is not None:
        return Placed(best.node, _decision(best, fitting, len(refused), policy))
    return _refuse(demand, refused)


def explain(demand: Demand, rooms: Iterable[Room], policy: str = SPREAD) -> list[Verdict]:
    """Every node's answer, the best first."""
    verdicts = [judge(demand, room, policy) for room in rooms]
    return sorted(verdicts, key=lambda verdict: (not verdict.fits, verdict.score))


def _score(demand: Demand, room: Room, policy: str) -> tuple[float, int, str]:
    """The fullest of cpu and memory after placing, then the number of instances, then the name."""
    capacity, used = room.node.capacity, room.used
    shares = [0.0]
    if capacity.cpu_millis:
        shares.append((used.cpu_millis + demand.resources.cpu_millis) / capacity.cpu_millis)
    if capacity.memory_bytes:
        shares.append((used.memory_bytes + demand.resources.memory_bytes) / capacity.memory_bytes)
    sign = -1 if policy == BINPACK else 1
    return sign * max(shares), sign * room.instances, room.node.name


def _decision(best: Verdict, fitting: int, refused: int, policy: str) -> str:
    if fitting == 1:
        others = f"; {refused} other{'s do' if refused > 1 else ' does'} not" if refused else ""
        return f"node {best.node.name}: the only one that fits{others}"
    share = abs(best.score[0])
    what = "the fullest" if policy == BINPACK else "the emptiest"
    return f"node {best.node.name}: {what} of {fitting} that fit ({policy}): {share:.0%} allocated with this instance"


def _refuse(demand: Demand, refused: Sequence[Verdict]) -> Waiting | Impossible:
    needs = _needs(demand)
    if not refused:
        return Waiting(f"{needs}; there is no node yet: start `rik serve` with the worker role")
    capable = [verdict for verdict in refused if not any(lack.never for lack in verdict.lacks)]
    if not capable:
        return Impossible(Reason.NO_CAPABLE_NODE, f"{needs}, and no node could ever run it: {_summary(refused, True)}")
    only_ports = [verdict for verdict in capable if all(lack.port for lack in verdict.lacks)]
    if only_ports and not any(all(lack.leaving for lack in verdict.lacks) for verdict in only_ports):
        held = [
            f"{lack.detail} on node {verdict.node.name}"
            for verdict in only_ports
            for lack in verdict.lacks
            if not lack.leaving
        ]
        more = f"; and {len(held) - NAMED_NODES} more" if len(held) > NAMED_NODES else ""
        return Impossible(
            Reason.PORT_CONFLICT,
            f"{'; '.join(held[:NAMED_NODES])}{more}: delete that instance, or leave the port to RIK by port 0",
        )
    return Waiting(f"{needs}; {_summary(refused, False)}")


def _needs(demand: Demand) -> str:
    parts = []
    if demand.resources.cpu_millis:
        parts.append(format_cpu(demand.resources.cpu_millis))
    if demand.resources.memory_bytes:
        parts.append(f"{format_memory(demand.resources.memory_bytes)} memory")
    if demand.resources.pids:
        parts.append(f"{demand.resources.pids} pids")
    parts.extend(f"label {key}={value}" for key, value in sorted(demand.selector.items()))
    parts.extend(f"port {number}/{protocol}" for number, protocol in sorted(demand.ports))
    return f"needs {', '.join(parts) or f'a node for a {demand.kind}'}"


def _summary(refused: Sequence[Verdict], never: bool) -> str:
    """`3 of 5 nodes have less memory free, node b is cordoned`: each lack once, with who has it."""
    groups: dict[str, list[tuple[Node, Lack]]] = {}
    for verdict in refused:
        for lack in verdict.lacks:
            if lack.never or not never:
                groups.setdefault(lack.key, []).append((verdict.node, lack))
    parts = []
    for members in groups.values():
        node, lack = members[0]
        detail = f" ({lack.detail})" if lack.detail else ""
        if len(refused) == 1:
            parts.append(f"node {node.name} {lack.one}{detail}")
        elif len(members) == 1:
            parts.append(f"1 of {len(refused)} nodes {lack.one}{detail}")
        else:
            parts.append(f"{len(members)} of {len(refused)} nodes {lack.many}{detail}")
    return ", ".join(parts)

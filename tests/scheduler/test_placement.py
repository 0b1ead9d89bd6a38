"""Where instances go, and what is said when there is no place."""

from __future__ import annotations

import pytest

from rik.model.node import Capability, Node, NodeStatus
from rik.model.resources import Resources
from rik.model.workload import parse_spec
from rik.scheduler.placement import (
    BINPACK,
    SPREAD,
    Demand,
    Holder,
    Impossible,
    NodePort,
    Placed,
    Room,
    Waiting,
    explain,
    place,
)
from tests.scheduler.cluster import ports

GIB = 2**30
POD = Capability("fake", True, "", ("Pod",))


def room(
    name: str,
    *,
    memory: int = 4 * GIB,
    cpu: int = 4000,
    used: Resources | None = None,
    instances: int = 0,
    held: dict[NodePort, Holder] | None = None,
    labels: dict[str, str] | None = None,
    status: NodeStatus = NodeStatus.READY,
    cordoned: bool = False,
    capabilities: tuple[Capability, ...] = (POD,),
) -> Room:
    node = Node(
        id=f"id-{name}",
        name=name,
        status=status,
        labels=labels or {},
        capabilities=capabilities,
        capacity=Resources(cpu, memory, 1000),
        cordoned=cordoned,
    )
    return Room(node, used or Resources(), instances, held or {})


def demand(kind: str = "Pod", **spec: object) -> Demand:
    return Demand.of(parse_spec(kind, {"containers": [{"name": "main", "image": "host"}], **spec}))


SMALL = demand(resources={"memory": "1Gi", "cpu": 1})
HOLDER = Holder("u1", "web")
LEAVING = Holder("u1", "web", leaving=True)


def placed(outcome: object) -> str:
    assert isinstance(outcome, Placed), outcome
    return outcome.node.name


@pytest.mark.parametrize(
    ("policy", "expected"),
    [(SPREAD, "empty"), (BINPACK, "fuller")],
)
def test_policies(policy: str, expected: str) -> None:
    """Spread takes the emptiest node that fits, binpack the fullest that fits."""
    rooms = [
        room("fuller", used=Resources(2000, 2 * GIB)),
        room("empty"),
        room("full", used=Resources(4000, 4 * GIB)),
        room("middle", used=Resources(1000, GIB)),
    ]
    outcome = place(SMALL, rooms, policy)
    assert placed(outcome) == expected
    assert isinstance(outcome, Placed)
    assert f"({policy})" in outcome.decision and "of 3 that fit" in outcome.decision


def test_ties_are_broken_by_number_and_name() -> None:
    """Without requests the node with the fewest instances is taken, then the first by name: always the same."""
    rooms = [room("c", instances=1), room("b"), room("a", instances=2), room("d")]
    for order in (rooms, rooms[::-1]):
        assert placed(place(demand(), order)) == "b"


def test_the_only_one() -> None:
    """The decision says when there was no choice."""
    outcome = place(demand(nodeSelector={"a": "1"}), [room("x"), room("y", labels={"a": "1"})])
    assert isinstance(outcome, Placed)
    assert outcome.decision == "node y: the only one that fits; 1 other does not"


@pytest.mark.parametrize(
    ("what", "asks", "rooms", "words"),
    [
        ("no node", SMALL, [], ["there is no node yet"]),
        ("not ready", SMALL, [room("a", status=NodeStatus.NOT_READY)], ["node a is not ready"]),
        ("cordoned", SMALL, [room("a", cordoned=True)], ["node a is cordoned"]),
        (
            "no memory free",
            demand(resources={"memory": "2Gi"}),
            [room(name, used=Resources(0, 3 * GIB)) for name in "abc"] + [room("d", cordoned=True)],
            ["needs 2 GiB memory", "3 of 4 nodes have less memory free", "1 of 4 nodes is cordoned"],
        ),
        ("no cpu free", demand(resources={"cpu": 2}), [room("a", used=Resources(3000))], ["2 cores", "less cpu free"]),
        ("no pids free", demand(resources={"pids": 9}), [room("a", used=Resources(0, 0, 999))], ["less pids free"]),
        (
            "one too small, one full",
            demand(resources={"memory": "2Gi"}),
            [room("small", memory=GIB), room("full", used=Resources(0, 3 * GIB))],
            ["1 of 2 nodes has less memory in all", "1 of 2 nodes has less memory free"],
        ),
        (
            "a port soon free",
            demand(containers=ports(80)),
            [room("a", held={(80, "TCP"): LEAVING})],
            ["port 80/TCP is being released by instance web"],
        ),
        (
            "a port held, the other node full",
            demand(containers=ports(80), resources={"memory": "1Gi"}),
            [room("a", held={(80, "TCP"): HOLDER}, used=Resources(0, 4 * GIB))],
            ["less memory free", "port 80/TCP is held by instance web"],
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_waiting(what: str, asks: Demand, rooms: list[Room], words: list[str]) -> None:
    """What may become possible waits, and says of each lack how many nodes have it."""
    outcome = place(asks, rooms)
    assert isinstance(outcome, Waiting), outcome
    for word in words:
        assert word in outcome.message, outcome.message


@pytest.mark.parametrize(
    ("what", "asks", "rooms", "reason", "words"),
    [
        (
            "no runtime",
            demand("Function", function={"execution": {"rootfs": "https://x/y"}}),
            [room("a", capabilities=(POD, Capability("microvm", False, "no /dev/kvm", ("Function",))))],
            "NoCapableNode",
            ["node a has no runtime for a Function", "(microvm: no /dev/kvm)"],
        ),
        (
            "too big, also for a silent node",
            demand(resources={"memory": "8Gi"}),
            [room("a"), room("b", status=NodeStatus.NOT_READY)],
            "NoCapableNode",
            ["needs 8 GiB memory", "2 of 2 nodes have less memory in all"],
        ),
        (
            "no such label",
            demand(nodeSelector={"disk": "ssd"}),
            [room("a")],
            "NoCapableNode",
            ["node a is not labelled disk=ssd"],
        ),
        (
            "port held everywhere that fits",
            demand(containers=ports(80)),
            [room("a", held={(80, "TCP"): HOLDER}), room("b", cordoned=True)],
            "PortConflict",
            ["port 80/TCP is held by instance web on node a"],
        ),
        (
            "port of the host's network",
            demand(containers=[{"name": "m", "image": "host", "ports": [{"targetPort": 80}]}], hostNetwork=True),
            [room("a", held={(80, "TCP"): HOLDER})],
            "PortConflict",
            ["port 80/TCP is held by instance web"],
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_impossible(what: str, asks: Demand, rooms: list[Room], reason: str, words: list[str]) -> None:
    """What no node could ever run, or whose port is held wherever it fits, fails at once and says why."""
    outcome = place(asks, rooms)
    assert isinstance(outcome, Impossible), outcome
    assert outcome.reason == reason
    for word in words:
        assert word in outcome.message, outcome.message


def test_ports_are_of_a_protocol() -> None:
    """The same number is free for UDP when TCP is held; a chosen port (0) is never in the way."""
    rooms = [room("a", held={(80, "UDP"): HOLDER})]
    assert placed(place(demand(containers=ports(80)), rooms)) == "a"
    assert placed(place(demand(containers=ports(0)), rooms)) == "a"


def test_explain_asks_every_node() -> None:
    """Explain gives every node's answer, those that fit first, and all that each of the others lacks."""
    verdicts = explain(
        demand(resources={"memory": "2Gi"}, nodeSelector={"a": "1"}),
        [room("x", cordoned=True, used=Resources(0, 3 * GIB)), room("y", labels={"a": "1"})],
    )
    assert [(verdict.node.name, verdict.fits) for verdict in verdicts] == [("y", True), ("x", False)]
    assert verdicts[1].why == "is not labelled a=1; is cordoned; has less memory free"

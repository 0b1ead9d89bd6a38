"""How far an image has come: in words, and how often that is said."""

from __future__ import annotations

import io
from typing import Any

import pytest

from rik.cli.board import PlainBoard
from rik.cli.progress import Milestones, Speed, phrase
from rik.cli.watch import ProgressLines, Table

MB = 10**6
FRAMES_A_SECOND = 2


class Clock:
    """A clock that stands until it is set."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def bytes_of(done: int, total: int, layers: tuple[int, int] | None = None, seconds: float = 0) -> dict[str, Any]:
    counted = None if layers is None else {"done": layers[0], "total": layers[1]}
    return {"done": done, "total": total, "unit": "bytes", "layers": counted, "seconds": seconds}


@pytest.mark.parametrize(
    ("progress", "expected"),
    [
        (bytes_of(108 * MB, 250 * MB, (2, 6), 12.7), "pull 43 % (108 of 250 MB, 2 of 6 layers, 12 s)"),
        (bytes_of(1_700_000, 3_400_000, (0, 1), 0.4), "pull 50 % (1.7 of 3.4 MB, 0 of 1 layer)"),
        (bytes_of(999, 1000), "pull 99 % (1 of 1 kB)"),
        (bytes_of(12_000, 0, None, 190), "pull (12 kB, 3 m 10 s)"),
        (bytes_of(300 * MB, 250 * MB), "pull 100 % (300 of 250 MB)"),
        (bytes_of(0, 0, None, 5), "pull (5 s)"),
        ({"done": 1, "total": 2, "unit": "steps"}, "pull 50 %"),
        ({}, "pull"),
    ],
)
def test_phrase(progress: dict[str, Any], expected: str) -> None:
    """Progress is told in percent, bytes, layers and seconds, as far as they are known."""
    assert phrase("pull", progress) == expected


@pytest.mark.parametrize(
    ("room", "expected"),
    [
        (46, "pull 43 % (108 of 250 MB, 2 of 6 layers, 12 s)"),
        (45, "pull 43 % (108 of 250 MB, 12 s)"),
        (30, "pull 43 % (108 of 250 MB)"),
        (3, "pull 43 %"),
    ],
)
def test_phrase_in_little_room(room: int, expected: str) -> None:
    """Where there is little room the layers go first, the percentage stays."""
    assert phrase("pull", bytes_of(108 * MB, 250 * MB, (2, 6), 12), room) == expected


def test_milestones() -> None:
    """A line is worth another step, tenth or layer, and any when nothing was said for five seconds."""
    clock = Clock()
    milestones = Milestones(clock)

    def worth(done: int, layers: int = 0, step: str = "pull", name: str = "a") -> bool:
        return milestones.worth_a_line(name, step, bytes_of(done, 100, (layers, 6)))

    assert worth(0) and not worth(0) and not worth(9)
    assert worth(10) and not worth(19)
    assert worth(19, layers=1) and not worth(19, layers=1)
    assert worth(19, layers=1, step="unpack")
    assert worth(0, name="b"), "another one has its own"
    clock.now = 4.9
    assert not worth(19, layers=1, step="unpack")
    clock.now = 5.0
    assert worth(19, layers=1, step="unpack") and not worth(19, layers=1, step="unpack")


def test_a_long_pull_is_no_flood() -> None:
    """Two frames a second for an hour, in which nothing but the seconds move, become a few dozen lines."""
    clock = Clock()
    milestones = Milestones(clock)
    lines = 0
    for frame in range(3600 * FRAMES_A_SECOND):
        clock.now = frame / FRAMES_A_SECOND
        lines += milestones.worth_a_line("a", "pull", bytes_of(1, 100, (0, 6), clock.now))
    assert 30 <= lines <= 60


def test_speed() -> None:
    """The speed is that of the last seconds, unknown at first, and begins anew with each step."""
    clock = Clock()
    speed = Speed(clock)
    assert speed.take("pull", 0) is None
    clock.now = 1.0
    assert speed.take("pull", 10 * MB) == 10 * MB
    for second in range(2, 30):
        clock.now = float(second)
        latest = speed.take("pull", 10 * MB)
    assert latest == 0, "it has stalled"
    assert speed.take("unpack", 5) is None
    clock.now += 1
    assert speed.take("unpack", 0) is None, "it has begun again"


def record(status: str, **fields: Any) -> dict[str, Any]:
    return {"name": "web-1", "uid": "u1", "status": status, "node": "laptop", **fields}


def test_plain_board() -> None:
    """In plain output of `run` and `create --wait` a pull of hundreds of frames is some lines, and ends in the next
    status.
    """
    stream = io.StringIO()
    with PlainBoard(["web-1"], stream) as board:
        board.show(record("Pending", message="accepted"))
        board.show(record("Creating"))
        for done in range(251):
            board.show(
                record("Creating", step="pull", progress=bytes_of(done * MB, 250 * MB, (done // 50, 6), done / 9))
            )
        board.show(record("Creating", step="start", progress=None))
        board.show(record("Running"))
    lines = stream.getvalue().splitlines()
    assert lines[:2] == ["web-1  Pending     accepted", "web-1  Creating    on laptop"]
    assert lines[2] == "web-1  Creating    pull 0 % (0 of 250 MB, 0 of 6 layers)"
    assert lines[-3:-1] == [
        "web-1  Creating    pull 100 % (250 of 250 MB, 5 of 6 layers, 27 s)",
        "web-1  Creating    start",
    ]
    assert 12 <= len(lines) <= 20


def test_plain_watch() -> None:
    """Plain `watch` tells of the progress of instances in creation, of nobody else's, and not of every frame."""
    lines = ProgressLines("web-1")
    progress = {"type": "progress", "instance": "web-1", "step": "pull"}
    assert lines.take({**progress, **bytes_of(0, 100)}) == [], "it is not known yet"
    assert lines.take({"type": "snapshot", "revision": 1, "instances": [record("Creating")]}) == []
    (line,) = lines.take({**progress, **bytes_of(11 * MB, 100 * MB, (0, 6))})
    assert line.endswith("  web-1  Creating  pull 11 % (11 of 100 MB, 0 of 6 layers)")
    assert lines.take({**progress, **bytes_of(12 * MB, 100 * MB, (0, 6))}) == []
    assert lines.take({**progress, "step": "start", "done": 0, "total": 0, "unit": ""}) == []
    assert lines.take({**progress, "instance": "other", **bytes_of(90, 100)}) == []
    assert lines.take({"type": "instance", "revision": 2, "op": "put", "instance": record("Running")}) == []
    assert lines.take({**progress, **bytes_of(90 * MB, 100 * MB)}) == [], "a late frame of what runs already"
    assert lines.take({"type": "sync", "revision": 2}) == []


def test_live_table() -> None:
    """The live table shows the percentage in the status, and bytes, layers and time beside it."""
    table = Table()
    created = record("Creating", updated_at="2026-01-31T12:00:00.000Z")
    table.apply({"type": "snapshot", "revision": 1, "instances": [created]})
    table.apply({"type": "progress", "instance": "web-1", "step": "pull", **bytes_of(108 * MB, 250 * MB, (2, 6), 12)})
    ((_, _, status, _, _, why),) = table.cells(10)
    assert (status, why) == ("Creating pull 43 %", "108 of 250 MB, 2 of 6 layers, 12 s")

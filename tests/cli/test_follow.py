"""What following instances makes of the frames of a watch."""

from __future__ import annotations

from typing import Any

from rik.cli.follow import Followed


def record(name: str, status: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "uid": f"uid-{name}", "status": status, **fields}


def put(name: str, status: str, op: str = "put", **fields: Any) -> dict[str, Any]:
    return {"type": "instance", "revision": 1, "op": op, "instance": record(name, status, **fields)}


def test_settled_and_over() -> None:
    """An instance is settled when it runs or has ended, and over when it has ended."""
    followed = Followed(["a", "b"])
    assert not followed.all_settled
    followed.apply(put("a", "Running"))
    followed.apply(put("b", "Creating"))
    assert followed.settled("a") and not followed.settled("b")
    followed.apply(put("b", "Failed"))
    assert followed.all_settled and not followed.all_over
    followed.apply(put("a", "Terminated"))
    assert followed.all_over


def test_others_are_ignored() -> None:
    """Instances that are not followed change nothing."""
    followed = Followed(["a"])
    assert followed.apply(put("z", "Running")) == []
    assert followed.apply({"type": "progress", "instance": "z", "step": "pull", "done": 1, "total": 2}) == []
    assert followed.latest == {}


def test_progress() -> None:
    """Progress is shown with the record that it belongs to, while that is being created."""
    followed = Followed(["a"])
    followed.apply(put("a", "Creating", progress={"done": 0, "total": 4, "unit": "bytes"}))
    (changed,) = followed.apply({"type": "progress", "instance": "a", "step": "pull", "done": 2, "total": 4})
    assert (changed["step"], changed["progress"]) == ("pull", {"done": 2, "total": 4, "unit": "bytes"})
    followed.apply(put("a", "Running"))
    assert followed.apply({"type": "progress", "instance": "a", "step": "pull", "done": 4, "total": 4}) == []


def test_gone_after_a_gap() -> None:
    """An instance that a snapshot does not hold has been removed, whether it was seen before or not."""
    followed = Followed(["a", "b", "c"])
    followed.apply(put("a", "Running"))
    followed.apply({"type": "snapshot", "revision": 9, "instances": [record("c", "Running")]})
    assert followed.gone == {"a", "b"}
    assert followed.all_settled and not followed.all_over
    followed.apply(put("c", "Running", op="delete"))
    assert followed.all_over

"""The logs of ended instances stay within bounds."""

from __future__ import annotations

import os
from pathlib import Path

from rik.worker.logkeeping import trim


def _log(directory: Path, uid: str, age_s: int, size: int = 40_960) -> None:
    (directory / uid).mkdir()
    file = directory / uid / "main.log"
    file.write_bytes(b"x" * size)
    os.utime(file, (1_000_000 - age_s, 1_000_000 - age_s))


def test_oldest_first_and_never_the_living(tmp_path: Path) -> None:
    """The oldest logs go first, only as many as need be, and none of an instance that still writes."""
    for age, uid in enumerate(["new", "middle", "old", "older"]):
        _log(tmp_path, uid, age * 100)
    _log(tmp_path, "living", 10_000)
    assert trim(tmp_path, 90_000, frozenset({"living"})) == ["older", "old"]
    assert sorted(os.listdir(tmp_path)) == ["living", "middle", "new"]
    assert trim(tmp_path, 90_000, frozenset({"living"})) == []


def test_nothing_there(tmp_path: Path) -> None:
    """A directory that was not made yet is nothing to keep."""
    assert trim(tmp_path / "logs", 0, frozenset()) == []

"""Durations in words."""

from __future__ import annotations

import pytest

from rik.model.spans import format_span


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(-1, "0 ms"), (0.0343, "34 ms"), (1.24, "1.2 s"), (5, "5 s"), (42, "42 s"), (60, "1 min"), (90, "90 s"),
     (200, "3 min"), (3600, "1 h"), (5000, "83 min"), (7300, "2 h"), (86_400, "1 d"), (100_000, "27 h"),
     (14 * 86_400, "14 d")],
)  # fmt: skip
def test_a_span_has_one_unit(seconds: float, said: str) -> None:
    """As people say it: no more digits than matter."""
    assert format_span(seconds) == said

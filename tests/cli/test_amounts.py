"""Times, durations and amounts as words."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from rik.cli import amounts

NOW = datetime(2026, 1, 31, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        ("2026-01-31T11:59:59.500Z", "now"),
        ("2026-01-31T11:59:15.000Z", "45s ago"),
        ("2026-01-31T11:56:30.000Z", "3m ago"),
        ("2026-01-30T12:00:00.000Z", "24h ago"),
        ("2026-01-19T12:00:00.000Z", "12d ago"),
        ("2026-01-31T12:00:05.000Z", "now"),
        (None, "-"),
        ("", "-"),
        ("yesterday", "-"),
    ],
)
def test_age(at: str | None, expected: str) -> None:
    """Tables say how long ago something was in one unit, and "now" when clocks differ."""
    assert amounts.age(at, NOW) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(-1, "0 ms"), (0.034, "34 ms"), (1.24, "1.2 s"), (184, "3 m 4 s"), (7500, "2 h 5 m"), (273600, "3 d 4 h")],
)
def test_duration(seconds: float, expected: str) -> None:
    """A duration is written in at most two units."""
    assert amounts.duration(seconds) == expected


def test_absolute_time() -> None:
    """Descriptions give the time in UTC with milliseconds, whatever offset it was written with."""
    assert amounts.absolute("2026-01-31T12:00:00.123Z") == "2026-01-31 12:00:00.123Z"
    assert amounts.absolute("2026-01-31T13:00:00.123+01:00") == "2026-01-31 12:00:00.123Z"
    assert amounts.absolute(None) == "-"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90", "2026-01-31T11:58:30.000Z"),
        ("5m", "2026-01-31T11:55:00.000Z"),
        ("1h30m", "2026-01-31T10:30:00.000Z"),
        ("0.5h", "2026-01-31T11:30:00.000Z"),
        ("1d", "2026-01-30T12:00:00.000Z"),
        ("2026-01-02T03:04:05Z", "2026-01-02T03:04:05.000Z"),
        ("2026-01-02T03:04:05+02:00", "2026-01-02T01:04:05.000Z"),
    ],
)
def test_since(text: str, expected: str) -> None:
    """--since takes a duration back from now, or a time."""
    assert amounts.since_time(text, NOW) == expected


@pytest.mark.parametrize("text", ["", "m", "5 minutes", "5x", "-5m", "1..5s", "999999999999d", "2026-13-01T00:00:00Z"])
def test_since_refuses_what_is_neither(text: str) -> None:
    """What is neither a duration nor a time is refused with examples of both."""
    with pytest.raises(ValueError, match="neither a duration like 5m nor a time"):
        amounts.since_time(text, NOW)


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (None, "bytes", "-"),
        (0, "bytes", "0 B"),
        (1536, "bytes", "1.5 KiB"),
        (268435456, "bytes", "256 MiB"),
        (5 * 2**40, "bytes", "5.0 TiB"),
        (12, "", "12"),
        (0.25, "s", "0.25 s"),
    ],
)
def test_amount(value: float | None, unit: str, expected: str) -> None:
    """Bytes are written in binary units, and what is unknown as a dash."""
    assert amounts.amount(value, unit) == expected

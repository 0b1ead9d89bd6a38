"""Durations in the words people use."""

from __future__ import annotations

_MINUTE_S = 60
_HOUR_S = 3_600
_DAY_S = 86_400


def format_span(seconds: float) -> str:
    """One unit: `34 ms`, `1.2 s`, `42 s`, `3 min`, `2 h`, `14 d`; a part of a unit is left out, but for seconds."""
    if seconds < 1:
        return f"{max(0.0, seconds) * 1000:.0f} ms"
    if seconds < 10:
        return f"{seconds:.1f}".removesuffix(".0") + " s"
    for size, name in ((_DAY_S, "d"), (_HOUR_S, "h"), (_MINUTE_S, "min")):
        if seconds >= 2 * size or seconds == size:
            return f"{int(seconds // size)} {name}"
    return f"{seconds:.0f} s"

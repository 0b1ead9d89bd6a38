"""Times, durations and amounts in the words people use. Pure functions."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from rik.model.sizes import format_bytes

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def parse_time(text: object) -> datetime | None:
    """An RFC 3339 time as the API writes it; None for anything else."""
    if not isinstance(text, str) or not text:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def absolute(text: object) -> str:
    """`2026-11-22 10:51:02.123Z` of `2026-11-22T10:51:02.123Z`; "-" when there is none."""
    moment = parse_time(text)
    if moment is None:
        return "-"
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S}.{moment.microsecond // 1000:03d}Z"


def clock(text: object) -> str:
    """The local time of day, for lines that scroll by: `10:51:02`."""
    moment = parse_time(text)
    return f"{moment.astimezone():%H:%M:%S}" if moment else "--:--:--"


def age(text: object, now: datetime | None = None) -> str:
    """How long ago: `3m ago`; "-" when there is no time, `now` for less than a second and for clocks that differ."""
    moment = parse_time(text)
    if moment is None:
        return "-"
    seconds = ((now or datetime.now(UTC)) - moment).total_seconds()
    return f"{span(seconds)} ago" if seconds >= 1 else "now"


def span(seconds: float) -> str:
    """One unit, rounded down, as in a table: `45s`, `3m`, `5h`, `12d`."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m"
    if whole < 48 * 3600:
        return f"{whole // 3600}h"
    return f"{whole // 86400}d"


def duration(seconds: float) -> str:
    """Two units at most, for reading: `34 ms`, `1.2 s`, `3 m 4 s`, `2 h 5 m`, `3 d 4 h`."""
    if seconds < 0:
        return "0 ms"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = int(seconds)
    if whole < 3600:
        return f"{whole // 60} m {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} m"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def between(start: object, end: object, now: datetime | None = None) -> str:
    """The duration from one API time to another, or to `now` when there is no end yet; "" when neither is known."""
    first, last = parse_time(start), parse_time(end) or now
    return duration((last - first).total_seconds()) if first and last else ""


def parse_span_s(text: str) -> float:
    """Seconds from `90`, `30s`, `5m`, `2h`, `1d` or `1h30m`. Raises ValueError with a sentence."""
    rest, total, found = text.strip(), 0.0, False
    while rest:
        digits = len(rest) - len(rest.lstrip("0123456789."))
        number, rest = rest[:digits], rest[digits:]
        unit, rest = (rest[0], rest[1:]) if rest else ("s", "")
        try:
            total += float(number) * _UNITS_S[unit]
        except (ValueError, KeyError):
            found = False
            break
        found = True
    if not found:
        raise ValueError(f"{text!r} is no duration: write it like 30s, 5m, 2h or 1d")
    return total


def since_time(text: str, now: datetime | None = None) -> str:
    """The RFC 3339 time that `--since` means: a duration back from now, or a time already. Raises ValueError."""
    moment = parse_time(text) if "-" in text else None
    if moment is None:
        try:
            moment = (now or datetime.now(UTC)) - timedelta(seconds=parse_span_s(text))
        except (ValueError, OverflowError):
            raise ValueError(f"{text!r} is neither a duration like 5m nor a time like 2026-01-31T12:00:00Z") from None
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def amount(value: Any, unit: str = "") -> str:
    """A number with its unit; bytes in binary units, "-" for what is unknown."""
    if not isinstance(value, int | float):
        return "-"
    if unit != "bytes":
        return f"{value:g} {unit}".rstrip()
    size = float(value)
    for name in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {name}" if size == int(size) else f"{size:.1f} {name}"
        size /= 1024
    return f"{size:.1f} TiB"


def decimal_bytes(value: Any) -> str:
    """Bytes of an image as registries count them: `3.4 MB`; "-" for what is unknown."""
    return format_bytes(value) if isinstance(value, int | float) else "-"


def cores(millis: Any) -> str:
    """`1500` as `1.50`, for columns of cores; "-" for what is unknown."""
    return f"{millis / 1000:.2f}" if isinstance(millis, int | float) else "-"

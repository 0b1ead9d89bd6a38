"""Amounts of data that is moved or stored, in the words people use: decimal units, as registries and disks have them.

Memory is another matter: it is counted in powers of two (`rik.model.resources.format_memory`).
"""

from __future__ import annotations


def format_bytes(count: float) -> str:
    """`3.4 MB`, `250 MB`."""
    factor, unit = _unit(count)
    return f"{_short(count / factor)} {unit}"


def format_share(done: float, total: float) -> str:
    """`108 of 250 MB`: both in the unit of the total."""
    factor, unit = _unit(total)
    return f"{_short(done / factor, like=total / factor)} of {_short(total / factor)} {unit}"


def _unit(count: float) -> tuple[int, str]:
    factor = 1
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5 * factor:
            return factor, unit
        factor *= 1000
    return factor, "TB"


def _short(value: float, like: float | None = None) -> str:
    """With one decimal where it (or `like`, beside which it stands) is below 10 and has one to show."""
    size = value if like is None else like
    return f"{value:.1f}" if size < 9.95 and size != int(size) else f"{value:.0f}"

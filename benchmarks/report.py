"""How every benchmark reports: a table for people, then one line of JSON for programs."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Sequence
from typing import NamedTuple


class Figure(NamedTuple):
    """One measured thing. `target` is the limit it must keep ("" when there is none), `ok` whether it did."""

    name: str
    values: Sequence[float]
    unit: str
    target: str = ""
    ok: bool | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.values)


def at_most(name: str, values: Sequence[float], unit: str, limit: float) -> Figure:
    """A figure whose median must not exceed `limit`."""
    return Figure(name, values, unit, f"≤ {limit:g}", statistics.median(values) <= limit)


def at_least(name: str, values: Sequence[float], unit: str, limit: float) -> Figure:
    """A figure whose median must reach `limit`."""
    return Figure(name, values, unit, f"≥ {limit:g}", statistics.median(values) >= limit)


def report(title: str, figures: Sequence[Figure]) -> None:
    """Prints the table and the JSON line."""
    print(f"\n{title}  ({os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()})")
    print(f"{'':44} {'median':>10} {'min':>10} {'max':>10} {'n':>5}  {'unit':9} {'target':>10}")
    for figure in figures:
        mark = {True: "ok", False: "MISSED", None: ""}[figure.ok]
        print(
            f"{figure.name:44} {figure.median:>10.4g} {min(figure.values):>10.4g} {max(figure.values):>10.4g} "
            f"{len(figure.values):>5}  {figure.unit:9} {figure.target:>10}  {mark}"
        )
    print(
        json.dumps(
            {
                "benchmark": title,
                "figures": [
                    {
                        "name": figure.name,
                        "median": figure.median,
                        "min": min(figure.values),
                        "max": max(figure.values),
                        "n": len(figure.values),
                        "unit": figure.unit,
                        "target": figure.target or None,
                        "ok": figure.ok,
                    }
                    for figure in figures
                ],
            },
            ensure_ascii=False,
        )
    )

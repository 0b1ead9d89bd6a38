"""Amounts of cpu, memory and processes, and the quantities that documents write them in."""

from __future__ import annotations

import math
import re

import msgspec

_MEMORY_UNITS = {
    "": 1,
    "k": 10**3,
    "K": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "Ki": 2**10,
    "Mi": 2**20,
    "Gi": 2**30,
    "Ti": 2**40,
}
_MEMORY = re.compile(r"(\d{1,18}(?:\.\d{1,9})?)(Ki|Mi|Gi|Ti|k|K|M|G|T)?", re.ASCII)
_CPU = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)(m?)", re.ASCII)
MAX_CPU_MILLIS = 10_000_000
MAX_MEMORY_BYTES = 2**60


class Resources(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """Thousandths of a core, bytes, and a number of processes; 0 is "none asked for" or, of a node, "unknown"."""

    cpu_millis: int = 0
    memory_bytes: int = 0
    pids: int = 0

    def __add__(self, other: Resources) -> Resources:
        return Resources(
            self.cpu_millis + other.cpu_millis, self.memory_bytes + other.memory_bytes, self.pids + other.pids
        )

    def __sub__(self, other: Resources) -> Resources:
        return Resources(
            self.cpu_millis - other.cpu_millis, self.memory_bytes - other.memory_bytes, self.pids - other.pids
        )


def parse_cpu_millis(value: object) -> int:
    """Thousandths of a core from cores (`0.5`, `"2"`) or millicores (`"500m"`). Raises ValueError with a sentence."""
    text = _number_text(value)
    match = _CPU.fullmatch(text) if text is not None else None
    if match is None:
        raise ValueError(f'{value!r} is no amount of cpu: write cores such as 0.5, or millicores such as "500m"')
    millis = math.ceil(float(match[1]) * (1 if match[2] else 1000))
    if not 1 <= millis <= MAX_CPU_MILLIS:
        raise ValueError(f"cpu must be between 1m and {MAX_CPU_MILLIS // 1000} cores, not {value!r}")
    return millis


def parse_memory_bytes(value: object) -> int:
    """Bytes from a number or a quantity (`"256Mi"`, `"1G"`). Raises ValueError with a sentence."""
    text = _number_text(value)
    match = _MEMORY.fullmatch(text) if text is not None else None
    if match is None:
        raise ValueError(f'{value!r} is no amount of memory: write "256Mi", "1Gi", or a number of bytes')
    amount = (
        int(float(match[1]) * _MEMORY_UNITS[match[2] or ""])
        if "." in match[1]
        else (int(match[1]) * _MEMORY_UNITS[match[2] or ""])
    )
    if not 1 <= amount <= MAX_MEMORY_BYTES:
        raise ValueError(f"memory must be more than 0 and at most {MAX_MEMORY_BYTES >> 50} PiB, not {value!r}")
    return amount


def _number_text(value: object) -> str | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, float):
        return format(value, "f").rstrip("0").rstrip(".") if math.isfinite(value) else None
    if isinstance(value, int):
        return str(value) if 0 <= value < 10**19 else None
    return value.strip() if isinstance(value, str) else None


def format_memory(amount: int) -> str:
    """`268435456` as `256 MiB`."""
    size, unit = float(amount), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:.0f} {unit}" if size == int(size) else f"{size:.1f} {unit}"


def format_cpu(millis: int) -> str:
    """`1500` as `1.5 cores`."""
    cores = f"{millis / 1000:.3f}".rstrip("0").rstrip(".")
    return f"{cores} core" if millis == 1000 else f"{cores} cores"

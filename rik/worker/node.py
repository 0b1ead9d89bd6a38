"""What a worker says of its host: capacity, boot id, metrics."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import psutil
import trio

from rik.linux.identity import boot_id
from rik.model.resources import Resources

# Reading the metrics takes about 2 ms; a host that needs longer than this is too busy to be asked.
METRICS_PATIENCE_S = 1.0


class Host(Protocol):
    """The machine under a worker. `boot_id` changes with every boot."""

    boot_id: str
    capacity: Resources

    async def metrics(self) -> dict[str, Any]:
        """Numbers for a heartbeat; units are in their names."""
        ...


class SystemHost:
    """This machine. `data_dir` is where the disk is measured."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self.boot_id = boot_id()
        pids = _number(Path("/proc/sys/kernel/pid_max")) or 0
        self.capacity = Resources(len(os.sched_getaffinity(0)) * 1000, psutil.virtual_memory().total, pids)
        psutil.cpu_percent()  # the first call only begins the measurement

    async def metrics(self) -> dict[str, Any]:
        with trio.move_on_after(METRICS_PATIENCE_S):
            return await trio.to_thread.run_sync(_measure, self._data_dir, abandon_on_cancel=True)
        return {}


class PretendedHost:
    """For simulations: no threads, no files. `measure` gives its metrics."""

    def __init__(
        self,
        boot_id: str = "boot-1",
        capacity: Resources | None = None,
        measure: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        self.boot_id = boot_id
        self.capacity = capacity or Resources(4_000, 8 * 2**30, 32_768)
        self._measure = measure

    async def metrics(self) -> dict[str, Any]:
        await trio.lowlevel.checkpoint()
        return self._measure()


def _measure(data_dir: Path) -> dict[str, Any]:
    memory = psutil.virtual_memory()
    found = {
        "cpu_percent": psutil.cpu_percent(),
        "load_1m": round(os.getloadavg()[0], 2),
        "memory_used_bytes": memory.total - memory.available,
        "memory_available_bytes": memory.available,
        "rik_memory_bytes": psutil.Process().memory_info().rss,
    }
    try:
        disk = psutil.disk_usage(str(data_dir))
    except OSError:  # the other numbers are worth having without it
        return found
    return {**found, "disk_total_bytes": disk.total, "disk_free_bytes": disk.free}


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None

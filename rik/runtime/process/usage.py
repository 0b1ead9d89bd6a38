"""What containers use at this moment: from their cgroups where they have some, else from /proc."""

from __future__ import annotations

import os

from rik.linux.cgroups import Cgroups
from rik.linux.identity import processes, stat_fields
from rik.runtime.base import ContainerStats

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def container_stats(uid: str, pids: dict[str, int], cgroups: Cgroups, *, own_network: bool) -> list[ContainerStats]:
    """`pids`: the first process of each container, as this host counts. Blocks for a walk over /proc."""
    children, fields = _family_tree()
    received, sent = _network(next(iter(pids.values()), 0)) if own_network else (None, None)
    found = []
    for name, pid in pids.items():
        family = _descendants(pid, children)
        ticks = sum(int(fields[member][11]) + int(fields[member][12]) for member in family)
        pages = sum(int(fields[member][21]) for member in family)
        used = cgroups.usage(uid, name)
        found.append(
            ContainerStats(
                name=name,
                cpu_seconds=used.cpu_seconds if used.cpu_seconds is not None else ticks / _TICKS,
                memory_bytes=used.memory_bytes if used.memory_bytes is not None else pages * _PAGE_BYTES,
                pids=max(0, used.pids - 1) if used.pids is not None else len(family),
                network_rx_bytes=received,
                network_tx_bytes=sent,
            )
        )
    return found


def _family_tree() -> tuple[dict[int, list[int]], dict[int, list[str]]]:
    children: dict[int, list[int]] = {}
    fields: dict[int, list[str]] = {}
    for pid in processes():
        stat = stat_fields(pid)
        if stat is not None:
            fields[pid] = stat
            children.setdefault(int(stat[1]), []).append(pid)
    return children, fields


def _descendants(root: int, children: dict[int, list[int]]) -> list[int]:
    """Of a container's first process, without itself (that is RIK's)."""
    found: list[int] = []
    waiting = list(children.get(root, ()))
    while waiting:
        pid = waiting.pop()
        found.append(pid)
        waiting += children.get(pid, ())
    return found


def _network(pid: int) -> tuple[int | None, int | None]:
    """Bytes received and sent over all interfaces but the loopback, or over that when the pod has no other (published
    ports come in by it); None when nobody can tell."""
    try:
        with open(f"/proc/{pid}/net/dev", encoding="ascii") as file:
            lines = file.read().splitlines()[2:]
    except OSError:  # gone
        return None, None
    rows = [line.partition(":") for line in lines]
    values = [row[2].split() for row in rows if row[0].strip() != "lo" or len(rows) == 1]
    return sum(int(value[0]) for value in values), sum(int(value[8]) for value in values)

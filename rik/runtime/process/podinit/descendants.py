"""Killing whole families of processes where no pid namespace does it: plain pods, and exec'd commands.

A family is what descends from a process, and what it has left behind in its session. It may fork while it is looked at,
so it is looked at again until nothing of it is left.
"""

from __future__ import annotations

import os
import signal
import time

from rik.linux.identity import processes, stat_fields

_ROUNDS = 200
_PAUSE_S = 0.01


def of(root: int, session: int = 0) -> list[int]:
    """Pids of the living that descend from ``root``, or belong to ``session``; not ``root`` itself."""
    parents: dict[int, int] = {}
    found: set[int] = set()
    for pid in processes():
        fields = stat_fields(pid)
        if fields is None or fields[0] in ("Z", "X"):
            continue
        parents[pid] = int(fields[1])
        if session and int(fields[3]) == session and pid != root:
            found.add(pid)
    for pid in parents:
        ancestor = pid
        while ancestor in parents and ancestor != root:
            ancestor = parents[ancestor]
            if ancestor in found:
                break
        if pid != root and (ancestor == root or ancestor in found):
            found.add(pid)
    return sorted(found)


def kill_all() -> None:
    """Kills and buries everything that descends from this process."""
    for _ in range(_ROUNDS):
        family = of(os.getpid())
        if not family:
            break
        for pid in family:
            kill(pid, signal.SIGKILL)
        _bury()
        time.sleep(_PAUSE_S)
    _bury()


def kill(pid: int, number: int) -> None:
    """Sends a signal; one who is gone already is fine."""
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return


def _bury() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return

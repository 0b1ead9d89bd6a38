"""Forking into other namespaces without poisoning the pod init.

Whoever has called ``unshare(CLONE_NEWPID)`` or entered another pid namespace can hardly fork any more. So a helper
does it, forks the process that is wanted, tells its pid and exits; the kernel makes the orphan a child of the pod
init, which is a child subreaper.
"""

from __future__ import annotations

import json
import os
import signal

from rik.linux import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn


def fork_through_helper(
    keep: set[int], cgroups: list[int], move: Callable[[], None], body: Callable[[], object]
) -> int:
    """The pid (as the pod init counts) of a new process that runs ``body`` where ``move`` leads.

    ``keep``: the descriptors that ``move`` and ``body`` need; all others but 0, 1, 2 are closed. ``cgroups``: open
    ``cgroup.procs`` files for it to join. Raises OSError with what went wrong in the helper.
    """
    answer, told = os.pipe2(os.O_CLOEXEC)
    helper = os.fork()
    if helper == 0:
        _help({0, 1, 2, told, *keep, *cgroups}, cgroups, move, body, told)
    os.close(told)
    with open(answer, "rb") as reader:
        said = json.loads(reader.read() or b"{}")
    os.waitpid(helper, 0)
    if "pid" in said:
        return int(said["pid"])
    raise OSError(int(said.get("errno", 0)), str(said.get("error", "the helper died")), str(said.get("what", "fork")))


def _be(cgroups: list[int], body: Callable[[], object], told: int) -> NoReturn:
    """The process that is wanted. Whatever goes wrong, it must not go on as a copy of the pod init."""
    try:
        os.close(told)
        # Not the helper: it would need room for one process more in a pod that may have none.
        for fd in cgroups:
            os.write(fd, b"0")
            os.close(fd)
        body()
    except Exception as error:  # noqa: BLE001 - a forked child has nobody above it
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(1)


def _help(keep: set[int], cgroups: list[int], move: Callable[[], None], body: Callable[[], object], told: int) -> None:
    try:
        # Python's signal wake-up would write into whatever gets the number of the closed descriptor.
        signal.set_wakeup_fd(-1)
        syscalls.close_all_but(keep)
        move()
        pid = os.fork()
        if pid == 0:
            _be(cgroups, body, told)
        answer: dict[str, object] = {"pid": pid}
    except OSError as error:
        answer = {"errno": error.errno, "error": error.strerror, "what": error.filename or "fork"}
    except Exception as error:  # noqa: BLE001 - a forked child has nobody above it: the pipe is where it is told
        answer = {"error": f"{type(error).__name__}: {error}", "what": "internal error"}
    try:
        os.write(told, json.dumps(answer).encode())
    finally:
        os._exit(0)

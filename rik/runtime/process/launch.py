"""Making the supervisor of a pod: started once, with nothing of RIK's but what it needs."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path

import trio

from rik.linux.idmap import base_interpreter, package_root

_PROGRAM = (
    "import sys; sys.path.insert(0, sys.argv[1]); from rik.runtime.process.podinit.main import main; main(sys.argv[2:])"
)
_LOCK_FD, _LISTENER_FD, _DEATH_FD = 3, 4, 5
# A burst of published ports' connections: each asks for one socket, and a full queue refuses.
BACKLOG = 1024


def listen(path: Path) -> socket.socket:
    """The control socket, ready for connections before its owner is there. The pod's lock must be held."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def spawn(pod: Path, lock_fd: int, listener_fd: int, death_fd: int) -> int:
    """Starts the supervisor and returns its pid, to be waited for. `death_fd` -1: it outlives this process.

    Never by fork: this process is large and has threads. Its environment is empty: RIK's has secrets.
    """
    interpreter = base_interpreter()
    wanted = [(lock_fd, _LOCK_FD), (listener_fd, _LISTENER_FD)]
    if death_fd >= 0:
        wanted.append((death_fd, _DEATH_FD))
    command = [interpreter, "-I", "-S", "-X", "utf8", "-c", _PROGRAM, package_root()]
    command += [str(pod), str(_LOCK_FD), str(_LISTENER_FD), str(_DEATH_FD if death_fd >= 0 else -1)]
    # Copies out of the way of the numbers they are to get, so that none is overwritten before it was moved.
    copies = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _DEATH_FD + 1) for fd, _ in wanted]
    actions: list[tuple[object, ...]] = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0),
        (os.POSIX_SPAWN_OPEN, 2, str(pod / "init.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
        *((os.POSIX_SPAWN_DUP2, copy, number) for copy, (_, number) in zip(copies, wanted, strict=True)),
    ]
    try:
        return os.posix_spawn(interpreter, command, {}, file_actions=actions, setsid=True)
    finally:
        for fd in copies:
            os.close(fd)


async def reap(pid: int) -> None:
    """Waits for a supervisor that this process has started, so that it does not stay as a zombie."""
    pidfd = os.pidfd_open(pid)
    try:
        await trio.lowlevel.wait_readable(pidfd)
    finally:
        os.close(pidfd)
    try:
        os.waitpid(pid, os.WNOHANG)  # noqa: ASYNC222 - it has ended, so this does not wait
    except ChildProcessError:  # somebody else's waitpid(-1) was faster
        return

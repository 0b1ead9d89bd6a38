"""Making the supervisors of pods: each started once, with nothing of RIK's but what it needs.

Usually they are forked from a zygote (see `podinit.zygote`), which is quick; where that has gone, spawned anew. Never
is this process itself forked: it is large and has threads. Environments are empty: RIK's has secrets.
"""

from __future__ import annotations

import array
import fcntl
import json
import os
import socket
from collections.abc import Sequence
from pathlib import Path

import trio

from rik.linux.idmap import base_interpreter, package_root
from rik.runtime.process.podinit.zygote import PACKET_BYTES, PADDING_BYTES

# A burst of published ports' connections: each asks for one socket, and a full queue refuses.
BACKLOG = 1024
ANSWER_S = 10.0
FAREWELL_S = 2.0
_FIRST_FD = 3
_PROGRAM = "import sys; sys.path.insert(0, sys.argv[1]); from {} import main; main(sys.argv[2:])"
_POD_INIT = "rik.runtime.process.podinit.main"
_ZYGOTE = "rik.runtime.process.podinit.zygote"


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


class ZygoteGone(Exception):
    """It cannot be asked (any more). Whether it has made the supervisor that was asked for is not known."""


class Launcher:
    """`run` owns the zygote, and every supervisor that was spawned without it."""

    def __init__(self) -> None:
        self._channel: trio.socket.SocketType | None = None
        self._turn = trio.Lock()
        self._nursery: trio.Nursery | None = None

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Cancelling it ends the zygote; supervisors live on."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with trio.socket.from_stdlib_socket(ours) as channel:
            with theirs:
                arguments = ["{0}", "x" * PADDING_BYTES]
                pid = await trio.to_thread.run_sync(_spawn, _ZYGOTE, [], [theirs.fileno()], "/dev/null", arguments)
            self._channel = channel
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                task_status.started()
                try:
                    await trio.sleep_forever()
                finally:
                    self._channel = self._nursery = None
                    channel.close()
                    with trio.CancelScope(shield=True), trio.move_on_after(FAREWELL_S):
                        await _reap(pid)

    async def fork(self, pod: Path, lock_fd: int, listener_fd: int, death_fd: int) -> None:
        """Has the zygote make the supervisor. Raises ZygoteGone."""
        if len(os.fsencode(pod)) > PADDING_BYTES - 100:
            raise ZygoteGone("the data directory's path is too long to be shown among the arguments of its children")
        log_fd = os.open(pod / "init.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            fds = [lock_fd, listener_fd, log_fd, *([death_fd] if death_fd >= 0 else [])]
            async with self._turn:
                answer = await self._ask(json.dumps({"directory": str(pod)}).encode(), fds)
        finally:
            os.close(log_fd)
        if "pid" not in answer:
            raise ZygoteGone(str(answer.get("error")))

    async def _ask(self, packet: bytes, fds: list[int]) -> dict[str, object]:
        channel = self._channel
        if channel is None:
            raise ZygoteGone("there is none")
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
        # Once it was asked there must be an answer: cancelled in between, the next one would get this one's.
        with trio.CancelScope(shield=True), trio.move_on_after(ANSWER_S):
            try:
                await channel.sendmsg([packet], rights)
                answer = await channel.recv(PACKET_BYTES)
            except OSError as error:
                answer = str(error).encode()
            if answer.startswith(b"{"):
                return dict(json.loads(answer))
        self._channel = None
        raise ZygoteGone("it does not answer")

    async def spawn(self, pod: Path, lock_fd: int, listener_fd: int, death_fd: int) -> None:
        """Makes the supervisor as a new process of its own."""
        fds = [lock_fd, listener_fd, *([death_fd] if death_fd >= 0 else [])]
        arguments = ["{0}", "{1}", "{2}" if death_fd >= 0 else "-1"]
        log = str(pod / "init.log")
        pid = await trio.to_thread.run_sync(_spawn, _POD_INIT, [str(pod)], fds, log, arguments)
        if self._nursery is not None:
            self._nursery.start_soon(_reap, pid)


def _spawn(module: str, first: list[str], fds: Sequence[int], log: str, arguments: list[str]) -> int:
    """Starts `main(first + arguments)` of a module in an interpreter of its own. `{n}` in an argument is the number
    that the n-th descriptor has there."""
    interpreter = base_interpreter()
    numbers = [_FIRST_FD + index for index in range(len(fds))]
    command = [interpreter, "-I", "-S", "-X", "utf8", "-c", _PROGRAM.format(module), package_root(), *first]
    command += [argument.format(*numbers) for argument in arguments]
    # Copies out of the way of the numbers they are to get, so that none is overwritten before it was moved.
    copies = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FIRST_FD + len(fds)) for fd in fds]
    actions: list[tuple[object, ...]] = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0),
        (os.POSIX_SPAWN_OPEN, 2, log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
        *((os.POSIX_SPAWN_DUP2, copy, number) for copy, number in zip(copies, numbers, strict=True)),
    ]
    try:
        return os.posix_spawn(interpreter, command, {}, file_actions=actions, setsid=True)
    finally:
        for fd in copies:
            os.close(fd)


async def _reap(pid: int) -> None:
    """Waits for a child of this process, so that it does not stay as a zombie."""
    pidfd = os.pidfd_open(pid)
    try:
        await trio.lowlevel.wait_readable(pidfd)
    finally:
        os.close(pidfd)
    try:
        os.waitpid(pid, os.WNOHANG)  # noqa: ASYNC222 - it has ended, so this does not wait
    except ChildProcessError:  # somebody else's waitpid(-1) was faster
        return

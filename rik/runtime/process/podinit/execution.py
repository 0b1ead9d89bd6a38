"""One command more in a running container (``exec``): as verified as the first, and gone with who asked for it."""

from __future__ import annotations

import json
import os
import signal
import socket

from rik.linux import syscalls
from rik.linux.identity import ProcessIdentity
from rik.runtime.process.podinit import command, descendants, minit
from rik.runtime.process.podinit.container import Container
from rik.runtime.process.podinit.loop import READ, Loop
from rik.runtime.process.podinit.spawning import fork_through_helper

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Tell = Callable[[dict[str, Any], list[int]], None]  # sends a message with descriptors, which it closes

HANGUP_S = 0.5  # between SIGHUP, which shells pass on, and SIGKILL, when the one who asked has gone
_FAMILY_ROUNDS = 20
_FAMILY_PAUSE_S = 0.05


class Execution:
    """Tells ``{"started": pid}`` with its descriptors, or ``{"failed": …}``; then ``{"exited": {"exit_code",
    "signal"}}``.

    The descriptors: with ``tty`` the terminal's master; otherwise write end of stdin, read ends of stdout and stderr.
    """

    def __init__(self, container: Container, request: dict[str, Any], loop: Loop, tell: Tell, isolated: bool) -> None:
        self._container = container
        self._loop = loop
        self._tell = tell
        self._isolated = isolated
        self._abandoned = False
        self._started = False
        self._status: int | None = None
        self._ours: list[int] = []
        self._family: list[ProcessIdentity] = []
        self.over = False
        self.pid = 0
        spec = container.spec
        self._command = {
            "argv": list(request["argv"]),
            "env": [*spec.get("env", ()), *request.get("env", ())],
            "user": request.get("user") or spec.get("user"),
            "cwd": request.get("cwd") or spec.get("cwd"),
            "hostname": spec.get("hostname"),
            "tty": bool(request.get("tty")),
        }
        self._window = (int(request.get("columns") or 80), int(request.get("rows") or 24))

    def start(self) -> None:
        """Forks; the outcome is told later. Raises OSError."""
        self._loop.forget_ended()
        outcome, told = os.pipe2(os.O_CLOEXEC)
        ours, theirs = socket.socketpair()
        stdio: tuple[int, ...] = ()
        if not self._command["tty"]:
            stdin, out, err = (os.pipe2(os.O_CLOEXEC) for _ in range(3))
            self._ours = [stdin[1], out[0], err[0]]
            stdio = (stdin[0], out[1], err[1])
        namespaces = self._container.namespaces

        def move() -> None:
            if self._isolated:
                for fd, kind in zip(namespaces, (syscalls.CLONE_NEWNS, syscalls.CLONE_NEWPID), strict=True):
                    syscalls.setns(fd, kind)

        def body() -> None:
            self._become(stdio, theirs, told)

        keep = {told, theirs.fileno(), *stdio, *namespaces}
        try:
            self.pid = fork_through_helper(keep, self._container.held.cgroup_procs, move, body)
        except OSError:
            os.close(outcome)
            self._close_ours()
            raise
        finally:
            theirs.close()
            os.close(told)
            for fd in stdio:
                os.close(fd)
        self._loop.on_exit(self.pid, self._exited)
        self._loop.watch(outcome, READ, lambda events: self._outcome(outcome, ours))

    def abandon(self) -> None:
        """Whoever asked for it has gone: it and all it started are killed."""
        self._abandoned = True
        if self._status is None:
            # Who is in the family is noted now: some leave it when its head dies of the hang-up.
            family = [self.pid, *descendants.of(self.pid, session=self.pid)]
            self._family = [identity for pid in family if (identity := ProcessIdentity.of(pid)) is not None]
            for pid in family:
                descendants.kill(pid, signal.SIGHUP)
            self._loop.after(HANGUP_S, lambda: self._kill_family(_FAMILY_ROUNDS))
        self._close_ours()

    def _become(self, stdio: tuple[int, ...], channel: socket.socket, told: int) -> None:
        ends = stdio
        if self._command["tty"]:
            try:
                master, slave = minit.open_terminal(*self._window)
            except OSError as error:
                failure = {"reason": command.CREATE_FAILED, "message": f"{error.filename}: {error.strerror}"}
                os.write(told, json.dumps(failure).encode())
                return
            socket.send_fds(channel, [b"m"], [master])
            ends = (slave, slave, slave)
        command.run(self._command, (ends[0], ends[1], ends[2]), told, isolated=self._isolated)

    def _outcome(self, outcome: int, channel: socket.socket) -> None:
        self._loop.forget(outcome)
        with channel, open(outcome, "rb") as reader:
            failure = reader.read()
            if self._command["tty"] and not failure:
                self._ours = socket.recv_fds(channel, 1, 1)[1]
        if self._abandoned:
            self._close_ours()
            return
        if failure:
            self._close_ours()
            self.over = True
            self._tell({"failed": json.loads(failure)}, [])
            return
        self._started = True
        descriptors = self._ours
        # Copies of the reading ends are kept until the end: were the client's the only ones, its going would hang up
        # the command before its family is noted, and whoever had left the session would be lost.
        self._ours = [os.dup(fd) for fd in (descriptors if self._command["tty"] else descriptors[1:])]
        self._tell({"started": self.pid}, descriptors)
        self._finish()

    def _exited(self, status: int) -> None:
        self._status = status
        self._finish()

    def _finish(self) -> None:
        if self._status is None or not self._started or self.over or self._abandoned:
            return
        self.over = True
        self._close_ours()
        signalled = os.WIFSIGNALED(self._status)
        code = None if signalled else os.WEXITSTATUS(self._status)
        number = os.WTERMSIG(self._status) if signalled else None
        self._tell({"exited": {"exit_code": code, "signal": number}}, [])

    def _kill_family(self, rounds: int) -> None:
        family = {identity.pid for identity in self._family if identity.alive()}
        for pid in tuple(family):
            family.update(descendants.of(pid))
        family.update(descendants.of(self.pid, session=self.pid))
        for pid in family:
            descendants.kill(pid, signal.SIGKILL)
        if family and rounds:
            self._loop.after(_FAMILY_PAUSE_S, lambda: self._kill_family(rounds - 1))
        else:
            self.over = True

    def _close_ours(self) -> None:
        for fd in self._ours:
            os.close(fd)
        self._ours = []

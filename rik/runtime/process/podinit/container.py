"""One container as the pod init sees it: its PID 1, its output, its end."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket

from rik.linux import cgroups, syscalls
from rik.runtime.process.podinit import minit
from rik.runtime.process.podinit.logs import LogWriter
from rik.runtime.process.podinit.loop import READ, Loop, Timer
from rik.runtime.process.podinit.records import now_ms
from rik.runtime.process.podinit.spawning import fork_through_helper

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Listener = Callable[[int, bytes], None]  # (1 stdout or 2 stderr, data); b"" is the end

CHUNK_BYTES = 65_536
HELD_S = 0.5  # how long the beginning of a line waits for its end before it can be read without one
DRAIN_S = 2.0  # a process outside of the pid namespace may hold a pipe open: then its rest is not waited for
_STREAMS = {1: "stdout", 2: "stderr"}


class Held:
    """What was opened for a container before the pod init lost its privileges; all descriptors."""

    def __init__(self, directory: int, cgroup_procs: list[int], oom: int) -> None:
        self.directory = directory  # its own place in the pod's box
        self.cgroup_procs = cgroup_procs
        self.oom = oom  # counts processes killed for want of memory; -1: not known here
        self.layers: list[int] = []  # detached mounts, lowest first


class Container:
    """States: waiting, creating, ready (its root is made), running, exited, failed (never started)."""

    def __init__(self, spec: dict[str, Any], pod: dict[str, Any], held: Held, loop: Loop, log: LogWriter) -> None:
        self.spec = spec
        self.name = str(spec["name"])
        self.state = "waiting"
        self.pid = 0
        self.started_at: int | None = None
        self.ended_at: int | None = None
        self.status: int | None = None
        self.oom_killed = False
        self.failure: dict[str, str] | None = None
        self.findings: dict[str, str] = {}
        self.namespaces: list[int] = []  # mnt, pid; kept open while it lives, for exec
        self.master = -1
        self.stdin = -1
        self.held = held
        self.listeners: list[Listener] = []
        self.changed: Callable[[Container], None] = lambda container: None
        self._pod = pod
        self._loop = loop
        self._log = log
        self._flush: Timer | None = None
        self._channel: socket.socket | None = None
        self._outputs: dict[int, int] = {}  # descriptor: 1 or 2
        self._reaped: int | None = None

    @property
    def over(self) -> bool:
        return self.state in ("exited", "failed")

    @property
    def succeeded(self) -> bool:
        return self.state == "exited" and self.status == 0

    def describe(self) -> dict[str, Any]:
        """The record of it, as it is kept on disk and told on the socket."""
        status = self.status
        signalled = status is not None and os.WIFSIGNALED(status)
        return {
            "name": self.name,
            "image": self.spec.get("reference", self.spec["image"]),
            "state": self.state,
            "pid": self.pid,
            "started_at": self.started_at,
            "ended_at": self.ended_at,
            "exit_code": None if status is None or signalled else os.WEXITSTATUS(status),
            "signal": os.WTERMSIG(status) if status is not None and signalled else None,
            "oom_killed": self.oom_killed,
            "failure": self.failure,
        }

    def build(self) -> None:
        """Forks its PID 1, which begins to make its root file system."""
        self.state = "creating"
        self._loop.forget_ended()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        stdio = self._open_stdio()
        keep = {theirs.fileno(), self.held.directory, *stdio.descriptors(), *self.held.layers}
        plain = self._pod["mode"] == "plain"

        def move() -> None:
            if not plain:
                # The working directory is carried over into the new mount namespace; paths may not be passable.
                os.fchdir(self.held.directory)
                syscalls.unshare(syscalls.CLONE_NEWNS | syscalls.CLONE_NEWPID)

        def body() -> None:
            minit.run(self.spec, self._pod, theirs.fileno(), stdio, self.held.layers)

        try:
            self.pid = fork_through_helper(keep, self.held.cgroup_procs, move, body)
        except OSError as error:
            self._fail("CreateFailed", f"{error.filename}: {error.strerror}")
            ours.close()
            self._close_outputs()
            self._end()
            return
        finally:
            theirs.close()
            for fd in (*stdio.descriptors(), *self.held.layers):
                os.close(fd)
            self.held.layers = []
        self._channel = ours
        self._loop.watch(ours.fileno(), READ, self._told)
        self._loop.on_exit(self.pid, self._died)
        self._say({"build": True})

    def go(self) -> None:
        """Executes the command; its root must be ready."""
        self._say({"go": True})

    def signal(self, number: int) -> None:
        """To its command, by its PID 1."""
        if self.state == "running":
            self._say({"signal": number})

    def kill(self) -> None:
        """Kills everything in it at once: without its PID 1 the kernel lets nothing of a pid namespace live."""
        if self.pid and self._reaped is None:
            if self._pod["mode"] == "plain" and self.state == "running":
                self._say({"signal": int(signal.SIGKILL)})  # its supervisor then kills whatever the command has left
            else:
                os.kill(self.pid, signal.SIGKILL)

    def resize(self, columns: int, rows: int) -> None:
        if self.master >= 0:
            minit.resize(self.master, columns, rows)

    def close_stdin(self) -> None:
        if self.stdin >= 0:
            self._loop.forget(self.stdin)
            os.close(self.stdin)
            self.stdin = -1

    def _open_stdio(self) -> minit.Stdio:
        if self.spec.get("tty"):
            return minit.Stdio(-1, -1, -1)
        stdin = -1
        if self.spec.get("stdin"):
            stdin, self.stdin = os.pipe2(os.O_CLOEXEC)
            os.set_blocking(self.stdin, False)
        ends = []
        for number in (1, 2):
            ours, theirs = os.pipe2(os.O_CLOEXEC)
            self._listen(ours, number)
            ends.append(theirs)
        return minit.Stdio(stdin, *ends)

    def _listen(self, fd: int, number: int) -> None:
        self._outputs[fd] = number
        self._loop.watch(fd, READ, lambda events: self._read(fd, number))

    def _read(self, fd: int, number: int) -> None:
        try:
            data = os.read(fd, CHUNK_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.EIO:  # how a terminal says that nobody has it open any more
                raise
            data = b""
        if data:
            self._log.feed(_STREAMS[number], data)
            if self._flush is None and self._log.holding:
                self._flush = self._loop.after(HELD_S, self._flush_log)
            for listener in list(self.listeners):
                listener(number, data)
        else:
            self._close_output(fd)
            self._end_if_over()

    def _flush_log(self) -> None:
        self._flush = None
        self._log.flush()

    def _close_output(self, fd: int) -> None:
        self._loop.forget(fd)
        self._outputs.pop(fd, None)
        if fd != self.master:
            os.close(fd)

    def _close_outputs(self) -> None:
        for fd in list(self._outputs):
            self._close_output(fd)
        self.close_stdin()

    def _say(self, message: dict[str, Any]) -> None:
        if self._channel is not None:
            try:
                self._channel.send(json.dumps(message).encode(), socket.MSG_DONTWAIT)
            except OSError:  # it has just died, which is told by its end
                return

    def _told(self, events: int) -> None:
        assert self._channel is not None
        try:
            data, fds, _, _ = socket.recv_fds(self._channel, minit.MESSAGE_BYTES, 4)
        except OSError:
            data, fds = b"", []
        if not data:
            self._loop.forget(self._channel.fileno())
            return
        for fd in fds:
            os.set_inheritable(fd, False)
        message = json.loads(data)
        if "ready" in message:
            self.state, self.findings, self.namespaces = "ready", message["ready"], fds
        elif "started" in message:
            self.state, self.started_at = "running", now_ms()
            if fds:
                self.master = fds[0]
                os.set_blocking(self.master, False)
                self._listen(self.master, 1)
        elif "failed" in message:
            self._fail(message["failed"]["reason"], message["failed"]["message"])
        elif "exited" in message:
            self.status = int(message["exited"])
        if not self.over and "exited" not in message and "failed" not in message:
            self.changed(self)

    def _fail(self, reason: str, message: str) -> None:
        if self.failure is None:
            self.failure = {"reason": reason, "message": f"container `{self.name}`: {message}"}

    def _died(self, status: int) -> None:
        """Its PID 1 was waited for: nothing in its pid namespace lives any more."""
        if self._channel is not None:
            while self._take_waiting():
                pass
            self._loop.forget(self._channel.fileno())
            self._channel.close()
            self._channel = None
        self._reaped = status
        self._end_if_over()
        if not self.over:
            self._loop.after(DRAIN_S, self._stop_draining)

    def _take_waiting(self) -> bool:
        """Takes one more message from its PID 1, if it left any."""
        assert self._channel is not None
        try:
            waiting = self._channel.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except OSError:
            return False
        if waiting:
            self._told(READ)
        return bool(waiting)

    def _stop_draining(self) -> None:
        if not self.over:
            self._close_outputs()
            self._end_if_over()

    def _end_if_over(self) -> None:
        if self._reaped is not None and not self._outputs and not self.over:
            self._end()

    def _end(self) -> None:
        if self.started_at is None and self.failure is None and self.status is None:
            how = "was killed" if self._reaped is None or os.WIFSIGNALED(self._reaped) else "ended"
            self._fail("CreateFailed", f"its first process {how} before its command was executed")
        if self.failure is None and self.status is None:
            self.status = self._reaped  # its PID 1 was killed before it could tell
        self.ended_at = now_ms()
        self.oom_killed = self._oom_kills() > 0
        self.state = "exited" if self.started_at is not None else "failed"
        self.close_stdin()
        if self.master >= 0:
            os.close(self.master)
            self.master = -1
        for fd in (*self.namespaces, *self.held.cgroup_procs, self.held.directory):
            os.close(fd)
        self.namespaces, self.held.cgroup_procs = [], []
        if self._flush is not None:
            self._flush.cancel()
        self._log.close()
        for listener in list(self.listeners):
            listener(1, b"")
        self.changed(self)

    def _oom_kills(self) -> int:
        if self.held.oom < 0:
            return 0
        try:
            return cgroups.oom_kills(os.pread(self.held.oom, 4096, 0).decode("ascii", "replace"))
        except OSError:  # the cgroup was removed under us
            return 0

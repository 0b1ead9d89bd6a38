"""PID 1 of one container: makes its file system, runs its command, buries orphans, and says how it ended.

It talks with the pod init over a SOCK_SEQPACKET pair, JSON both ways. In: ``build``, ``go``, ``{"signal": N}``.
Out: ``{"ready": …}`` (with the namespaces' descriptors), ``{"started": …}`` (with the terminal's master),
``{"failed": {"reason", "message"}}``, ``{"exited": wait status}``. The end of the pair is the death of the pod
init: everything in the container dies with this process.
"""

from __future__ import annotations

import array
import errno
import fcntl
import gc
import json
import os
import select
import signal
import socket
import struct
import termios

from rik.linux import syscalls
from rik.runtime.process.podinit import command, descendants, rootfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

MESSAGE_BYTES = 65_536
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


class Stdio:
    """The container's ends of its pipes; ``stdin`` -1 is /dev/null. With a terminal all three are the terminal."""

    __slots__ = ("stderr", "stdin", "stdout")

    def __init__(self, stdin: int, stdout: int, stderr: int) -> None:
        self.stdin = stdin
        self.stdout = stdout
        self.stderr = stderr

    def descriptors(self) -> set[int]:
        return {fd for fd in (self.stdin, self.stdout, self.stderr) if fd >= 0}


def run(container: dict[str, Any], pod: dict[str, Any], channel_fd: int, stdio: Stdio, layers: list[int]) -> NoReturn:
    """The whole life of the process, just forked: never returns. ``layers``: detached mounts, lowest first (may be
    empty).

    The present directory is the container's own directory in the pod's ``box``.
    """
    status = 1
    try:
        gc.disable()
        syscalls.close_all_but({0, 1, 2, channel_fd, *stdio.descriptors(), *layers})
        channel = socket.socket(fileno=channel_fd)
        status = _live(container, pod, channel, stdio, layers)
    except (ConnectionError, EOFError):
        pass  # the pod init is gone
    except Exception as error:  # noqa: BLE001 - there is nobody above: what happened goes over the channel
        _tell_failure(channel_fd, error)
    finally:
        os._exit(status)


def _tell_failure(channel_fd: int, error: Exception) -> None:
    if isinstance(error, rootfs.Unusable):
        failure = {"reason": command.CREATE_FAILED, "message": str(error)}
    elif isinstance(error, OSError):
        failure = {
            "reason": command.CREATE_FAILED,
            "message": f"{error.filename or 'error'}: {error.strerror or error}",
        }
    else:
        failure = {"reason": "InternalError", "message": f"{type(error).__name__}: {error}"}
    failure["message"] = command.shortened(failure["message"], command.FAILURE_CHARACTERS)
    try:
        os.write(channel_fd, json.dumps({"failed": failure}).encode())
    except OSError:  # the pod init is gone as well
        return


def _live(
    container: dict[str, Any], pod: dict[str, Any], channel: socket.socket, stdio: Stdio, layers: list[int]
) -> int:
    isolated = pod["mode"] != "plain"
    syscalls.set_process_name(f"rik:{container['name']}")
    os.umask(0o022)  # what is made here is for the container's users to read
    _expect(channel, "build")
    if isolated:
        # The helper that forked this process is gone, so its parent is the pod init's only thread.
        syscalls.set_parent_death_signal(signal.SIGKILL)
        findings = rootfs.build(container, pod, layers)
        fds = [os.open(f"/proc/self/ns/{name}", os.O_RDONLY | os.O_CLOEXEC) for name in ("mnt", "pid")]
    else:
        syscalls.set_child_subreaper()
        findings, fds = {}, []
    _send(channel, {"ready": findings}, fds)
    for fd in fds:
        os.close(fd)
    _expect(channel, "go")
    return _supervise(container, channel, stdio, isolated)


def _supervise(container: dict[str, Any], channel: socket.socket, stdio: Stdio, isolated: bool) -> int:
    wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    for forwarded in (signal.SIGCHLD, *_FORWARDED):
        signal.signal(forwarded, _noted)
    pid = _start(container, channel, stdio, isolated)
    if pid == 0:
        return 127
    poll = select.poll()
    poll.register(wake_read, select.POLLIN)
    poll.register(channel, select.POLLIN)
    while True:
        for fd, _ in poll.poll():
            if fd == wake_read:
                for number in os.read(wake_read, 4096):
                    if number != signal.SIGCHLD:
                        _signal(pid, number)
                status = _reap(pid)
                if status is not None:
                    if not isolated:
                        descendants.kill_all()
                    _send(channel, {"exited": status}, [])
                    return 0
            elif not _obey(channel, pid):
                if not isolated:
                    descendants.kill_all()
                return 0


def _obey(channel: socket.socket, pid: int) -> bool:
    message = _receive(channel)
    if message is None:
        return False
    if "signal" in message:
        _signal(pid, int(message["signal"]))
    return True


def _start(container: dict[str, Any], channel: socket.socket, stdio: Stdio, isolated: bool) -> int:
    """The command's pid; 0 when it could not be executed, which has been told."""
    master = -1
    if container.get("tty"):
        master, slave = open_terminal(*(container.get("window") or (80, 24)))
        ends = (slave, slave, slave)
    else:
        stdin = stdio.stdin if stdio.stdin >= 0 else os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        ends = (stdin, stdio.stdout, stdio.stderr)
    outcome_read, outcome_write = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        command.run(container, ends, outcome_write, isolated=isolated)
    for fd in {outcome_write, *ends, *stdio.descriptors()}:
        os.close(fd)
    with open(outcome_read, "rb") as outcome:
        failure = outcome.read()
    if failure:
        _send(channel, {"failed": json.loads(failure)}, [])
        return 0
    _send(channel, {"started": pid}, [master] if master >= 0 else [])
    if master >= 0:
        os.close(master)
    return pid


def open_terminal(columns: int, rows: int) -> tuple[int, int]:
    """A new terminal in the devpts that is mounted here: (master, slave), both close-on-exec."""
    try:
        master, slave = os.openpty()
    except OSError as error:
        raise OSError(error.errno, error.strerror, "open a terminal") from None
    resize(master, columns, rows)
    return master, slave


def resize(master: int, columns: int, rows: int) -> None:
    """Tells a terminal its size in characters; its foreground processes get SIGWINCH."""
    size = struct.pack("HHHH", max(0, min(rows, 65_535)), max(0, min(columns, 65_535)), 0, 0)
    fcntl.ioctl(master, termios.TIOCSWINSZ, size)


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _reap(pid: int) -> int | None:
    """Buries whoever has died; the wait status of the command once it has."""
    found = None
    while True:
        try:
            ended, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if ended == 0:
            return found
        if ended == pid:
            found = status


def _expect(channel: socket.socket, word: str) -> None:
    message = _receive(channel)
    if message is None or word not in message:
        raise EOFError(word)


def _receive(channel: socket.socket) -> dict[str, Any] | None:
    data = channel.recv(MESSAGE_BYTES)
    return json.loads(data) if data else None


def _send(channel: socket.socket, message: dict[str, Any], fds: list[int]) -> None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    try:
        channel.sendmsg([json.dumps(message).encode()], rights)
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise EOFError from None
        raise


def _noted(number: int, frame: object) -> None:
    """The wake-up descriptor carries the number; a handler must be set for the kernel to deliver the signal at all."""

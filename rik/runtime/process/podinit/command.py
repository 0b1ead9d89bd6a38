"""Becoming the container's command: the last steps in a forked child, and telling exactly why they failed.

A close-on-exec pipe tells the outcome: end of file means that the command was executed; otherwise it carries JSON
``{"reason", "message"}``. The messages complete "container `web`: …".
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import resource
import signal
import stat
import termios

from rik.linux import seccomp, syscalls
from rik.runtime.process.podinit import users

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
NOT_FOUND = "CommandNotFound"
CREATE_FAILED = "CreateFailed"
# What a document or an image says may be of any length; what is said about it must fit into one packet, six bytes (in
# JSON) a character at the worst, among those of the pod's other containers.
FAILURE_CHARACTERS = 1_000
NAME_CHARACTERS = 200
OPEN_FILES = 1_048_576  # as container engines give, if the host's own limit allows
_NOT_EXECUTABLE = (errno.ENOENT, errno.EACCES, errno.ENOEXEC, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)

# What container engines leave a container's root: CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID SETPCAP
# NET_BIND_SERVICE NET_RAW SYS_CHROOT MKNOD AUDIT_WRITE SETFCAP.
CAPABILITIES = frozenset({0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31})


class CannotExecute(Exception):
    """The command was not executed; ``reason`` is one of the reason codes."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def run(command: dict[str, Any], stdio: tuple[int, int, int], outcome_fd: int, *, isolated: bool) -> NoReturn:
    """Turns this process, which leads nothing yet, into the command. Never returns.

    ``command``: ``argv``, ``env`` (pairs; later ones win), ``user``, ``cwd``, ``tty``, ``hostname``. ``isolated``: this
    is inside a pod's user namespace, where root may become whom the command asks for.
    """
    try:
        _become(command, stdio, outcome_fd, isolated)
    except CannotExecute as error:
        failure = {"reason": error.reason, "message": str(error)}
    except OSError as error:
        what = f"{error.filename}: " if error.filename else ""
        failure = {"reason": CREATE_FAILED, "message": f"{what}{error.strerror or error}"}
    except Exception as error:  # noqa: BLE001 - a forked child has nobody above it: the pipe is where it is told
        failure = {"reason": "InternalError", "message": f"{type(error).__name__}: {error}"}
    try:
        failure["message"] = shortened(failure["message"], FAILURE_CHARACTERS)
        os.write(outcome_fd, json.dumps(failure).encode())
    finally:
        os._exit(127)


def shortened(text: str, characters: int = NAME_CHARACTERS) -> str:
    """Its beginning, if it is longer."""
    return text if len(text) <= characters else text[: characters - 1] + "…"


def _become(command: dict[str, Any], stdio: tuple[int, int, int], outcome_fd: int, isolated: bool) -> None:
    os.setsid()
    tty = bool(command.get("tty"))
    if tty:
        fcntl.ioctl(stdio[0], termios.TIOCSCTTY, 0)
    try:
        user = users.resolve(str(command.get("user") or "")) if isolated else _present_user(command)
    except LookupError as error:
        raise CannotExecute(CREATE_FAILED, str(error)) from None
    for fd in set(stdio):
        if tty or (isolated and stat.S_ISFIFO(os.fstat(fd).st_mode)):
            _give(fd, user)
    _arrange(stdio, outcome_fd)
    _reset_signals()
    os.umask(0o022)
    _open_files()
    if isolated:
        _drop(user)
    syscalls.set_no_new_privileges()
    if isolated:
        seccomp.deny_keyrings()
    cwd = str(command.get("cwd") or ("/" if isolated else os.getcwd()))
    try:
        os.chdir(cwd)
    except OSError as error:
        message = f"its working directory {shortened(cwd)} cannot be entered: {error.strerror}"
        raise CannotExecute(CREATE_FAILED, message) from None
    environment = _environment(command, user, tty)
    _execute([str(part) for part in command["argv"]], environment)


def _present_user(command: dict[str, Any]) -> users.User:
    """Without namespaces a command runs as whoever runs RIK."""
    wanted = str(command.get("user") or "")
    user = users.resolve(str(os.geteuid()))
    if wanted and users.resolve(wanted).uid != os.geteuid():
        raise CannotExecute(CREATE_FAILED, f"without namespaces it cannot run as user `{wanted}`")
    return user


def _give(fd: int, user: users.User) -> None:
    """Its own output must be openable by name (/dev/stdout) for a user who is not root."""
    try:
        os.fchown(fd, user.uid, user.gid)
    except OSError:  # a file of RIK's caller: works without, but not by name
        return


def _arrange(stdio: tuple[int, int, int], outcome_fd: int) -> None:
    """Puts standard input, output and error in their places and closes everything else but the outcome pipe.

    All of them have numbers above 2: a pod init has /dev/null and its log there.
    """
    for number, fd in enumerate(stdio):
        os.dup2(fd, number, inheritable=True)
    syscalls.close_all_but({0, 1, 2, outcome_fd})


def _reset_signals() -> None:
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            try:
                signal.signal(number, signal.SIG_DFL)
            except (OSError, ValueError):  # reserved by the C library
                continue
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def _open_files() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted if hard == resource.RLIM_INFINITY else hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _drop(user: users.User) -> None:
    syscalls.limit_capabilities(CAPABILITIES)
    try:
        os.setgroups(user.groups)
    except PermissionError:
        pass  # only one id is mapped: the kernel forbids changing groups there
    try:
        os.setresgid(user.gid, user.gid, user.gid)
        os.setresuid(user.uid, user.uid, user.uid)
    except OSError as error:
        message = (
            f"it cannot run as user {user.uid}:{user.gid} ({error.strerror}): this pod has no such id on this host"
        )
        raise CannotExecute(CREATE_FAILED, message) from None


def _environment(command: dict[str, Any], user: users.User, tty: bool) -> dict[str, str]:
    environment = {"PATH": DEFAULT_PATH, "HOME": user.home, "HOSTNAME": str(command.get("hostname") or "localhost")}
    if tty:
        environment["TERM"] = "xterm"
    environment.update((str(name), str(value)) for name, value in command.get("env") or ())
    return environment


def _execute(argv: list[str], environment: dict[str, str]) -> None:
    """Raises CannotExecute in the words a user understands; otherwise never returns."""
    name = argv[0] if argv else ""
    if not name:
        raise CannotExecute(NOT_FOUND, "no command: neither the document nor the image names one")
    path = environment.get("PATH", DEFAULT_PATH)
    tried = [name] if "/" in name else [os.path.join(folder or ".", name) for folder in path.split(":")]
    failures: list[tuple[OSError, str]] = []
    for program in tried:
        try:
            os.execve(program, argv, environment)
        except ValueError as error:  # a NUL byte
            raise CannotExecute(NOT_FOUND, f"command {name!r} cannot be executed: {error}") from None
        except OSError as error:
            if error.errno not in _NOT_EXECUTABLE:
                what = "pids limit reached" if error.errno == errno.EAGAIN else error.strerror
                message = f"command `{shortened(name)}` could not be executed ({shortened(program)}): {what}"
                raise CannotExecute(CREATE_FAILED, message) from None
            failures.append((error, program))
    raise CannotExecute(NOT_FOUND, _explain(name, path, failures))


def _explain(name: str, path: str, failures: list[tuple[OSError, str]]) -> str:
    """The failure that says most: a file that is there but cannot run tells more than those that are not."""
    name, path = shortened(name), shortened(path)
    for error, program in failures:
        try:
            mode = os.stat(program).st_mode
        except OSError:
            continue
        if stat.S_ISDIR(mode):
            message = "is a directory"
        elif error.errno == errno.EACCES:
            message = "is not executable (permission denied)"
        elif error.errno == errno.ENOEXEC:
            message = (
                "is no program for this machine (exec format error; a script needs a first line such as #!/bin/sh)"
            )
        elif error.errno == errno.ENOENT:
            message = f"exists, but its interpreter {_interpreter(program)} does not exist"
        else:
            message = str(error.strerror)
        return f"command `{name}`: {program} {message}"
    if "/" in name:
        return f"command `{name}` not found: {failures[0][0].strerror if failures else 'no such file'}"
    return f"command `{name}` not found in PATH {path}"


def _interpreter(program: str) -> str:
    try:
        with open(program, "rb") as file:
            head = file.read(4096)
    except OSError:
        return "(unreadable)"
    if head.startswith(b"#!"):
        words = head[2:].split(b"\n", 1)[0].split()
        return (words[0] if words else b"(none)").decode("utf-8", "replace")
    return "(the dynamic loader it was linked for)"

"""Where everything of a pod is: each name is derived from the host id and the uid, so that what nobody owns is known.

<data>/pods/<uid>/       0700, gone with the pod
    pod.json             what the pod is (`spec`), with the token of its control socket
    lock                 held (flock) from before the supervisor's first moment to its last; made by `start`
    init.json            who the supervisor is: pid, start time, boot id
    init.log             what the supervisor said on standard error: nothing, unless it met a bug
    status/              <container>.json, and @pod.json once it has ended
    box/<container>/     what a container writes: upper, work, rootfs, stage
<data>/logs/<uid>/       <container>.log, .1, …: outlives the pod
<run>/<uid>.sock         the control socket; <run> is short, because such a path has at most 107 bytes
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
from pathlib import Path

from rik.errors import StartupError

SOCKET_PATH_BYTES = 107
UID_BYTES = 20
_ENDING = ".sock"
# Of an instance, or of a probe (`rik.runtime.process.probe`).
_UID = re.compile(rf"[0-9a-z]{{{UID_BYTES}}}|probe-[0-9a-f]{{10}}")


def is_uid(text: str) -> bool:
    """Whether it can be a pod's uid. What is found on the host is not trusted to be one: paths are made of it."""
    return _UID.fullmatch(text) is not None


class Layout:
    """The places of one RIK host."""

    def __init__(self, data_dir: Path, host_id: str) -> None:
        self.data_dir = data_dir.resolve()
        self.host_id = host_id
        self.pods = self.data_dir / "pods"
        self.logs = self.data_dir / "logs"
        self.run_dir = run_directory(host_id)

    def make(self) -> None:
        """Makes the directories that all pods share. Raises StartupError when one cannot be trusted."""
        for path in (self.pods, self.logs):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in (self.run_dir.parent, self.run_dir):
            _make_private(path)

    def close(self) -> None:
        """Removes the run directory if no pod is left that has a socket in it."""
        with contextlib.suppress(OSError):  # there is one
            self.run_dir.rmdir()

    def pod(self, uid: str) -> Path:
        return self.pods / _component(uid)

    def log_directory(self, uid: str) -> Path:
        return self.logs / _component(uid)

    def socket(self, uid: str) -> Path:
        return self.run_dir / (_component(uid) + _ENDING)

    def forget_logs(self, uid: str) -> None:
        """Removes the kept output of a pod that is gone."""
        for path in _list(self.log_directory(uid)):
            path.unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            self.log_directory(uid).rmdir()

    def uids(self) -> set[str]:
        """Of every pod that has a directory or a socket here."""
        found = {path.name for path in _list(self.pods)}
        return found | {path.name.removesuffix(_ENDING) for path in _list(self.run_dir) if path.suffix == _ENDING}


def _component(uid: str) -> str:
    """Whatever a stranger's entry is called, it leads nowhere else. Raises ValueError."""
    if not uid or uid in (".", "..") or "/" in uid:
        raise ValueError(f"{uid!r} is no uid")
    return uid


def run_directory(host_id: str) -> Path:
    """Where the control sockets of this host are."""
    euid = os.geteuid()
    if euid == 0 and os.access("/run", os.W_OK):  # root of a user namespace may not
        return Path("/run/rik") / host_id
    base = os.environ.get("XDG_RUNTIME_DIR", "")
    if base.startswith("/") and os.access(base, os.W_OK):
        path = Path(base) / "rik" / host_id
        if len(os.fsencode(path)) + 1 + UID_BYTES + len(_ENDING) <= SOCKET_PATH_BYTES:
            return path
    return Path(f"/tmp/rik-{euid}") / host_id


def _make_private(path: Path) -> None:
    """A directory in a place like /tmp may have been made by somebody else first."""
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        info = path.lstat()
    except OSError as error:
        raise StartupError(f"cannot make the directory {path} for control sockets: {error.strerror}") from None
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid():
        raise StartupError(f"{path} belongs to somebody else", next_step="remove it, or set XDG_RUNTIME_DIR")
    if stat.S_IMODE(info.st_mode) != 0o700:
        path.chmod(0o700)


def _list(path: Path) -> list[Path]:
    try:
        return list(path.iterdir())
    except FileNotFoundError:
        return []


def take_lock(pod: Path) -> int | None:
    """The pod's lock, to be inherited by its supervisor; None when a supervisor has it. The caller closes it."""
    fd = os.open(pod / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


def is_supervised(pod: Path) -> bool | None:
    """Whether a supervisor lives; None when none was ever made."""
    try:
        fd = os.open(pod / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False

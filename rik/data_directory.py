"""The directory that holds all that a host knows, and the host id that its resources are named by."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import stat
from pathlib import Path

from rik.errors import StartupError

HOST_FILE = "host.json"
LOCK_FILE = "lock"
HOST_FILE_BYTES = 4_096


class DataDirectory:
    """Locked for one RIK at a time. `host_id` is 8 hex digits, made once."""

    def __init__(self, path: Path, host_id: str, lock_fd: int) -> None:
        self.path = path
        self.host_id = host_id
        self._lock_fd = lock_fd

    @classmethod
    def open(cls, path: Path) -> DataDirectory:
        """Makes it if need be, mode 0700. Raises StartupError when it is not usable or another RIK has it."""
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.chmod(0o700)
            lock_fd = os.open(path / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StartupError(
                f"cannot use the data directory {path}: {error.strerror or error}",
                next_step="choose another one with --data-dir",
            ) from None
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(lock_fd, 32, 0).decode("ascii", "replace").strip()
            os.close(lock_fd)
            raise StartupError(
                f"the data directory {path} is in use by another rik (process {holder or 'unknown'})",
                next_step="stop that one, or give this one its own with --data-dir",
            ) from None
        os.ftruncate(lock_fd, 0)
        os.pwrite(lock_fd, f"{os.getpid()}\n".encode(), 0)
        try:
            return cls(path, read_host_id(path) or _make_host_id(path), lock_fd)
        except OSError as error:
            os.close(lock_fd)
            raise StartupError(f"cannot write to the data directory {path}: {error.strerror or error}") from None

    def close(self) -> None:
        """Lets another RIK have it."""
        os.close(self._lock_fd)


def read_host_id(path: Path) -> str:
    """The host id kept in a data directory, "" when there is none yet. Raises StartupError when it is damaged."""
    try:
        data = _read_regular(path / HOST_FILE)
        if data is None:
            return ""
        host_id = json.loads(data)["host_id"]
        if not (isinstance(host_id, str) and len(host_id) == 8 and set(host_id) <= set("0123456789abcdef")):
            raise ValueError(f"host_id is {host_id!r}")
    except OSError as error:
        raise StartupError(f"cannot read {path / HOST_FILE}: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise StartupError(
            f"{path / HOST_FILE} is damaged: {error}",
            next_step="restore it: it names what this host owns; `rik-ID` is in the names of its cgroups and sockets",
        ) from None
    return host_id


def _read_regular(path: Path) -> bytes | None:
    """The beginning of a small file, None when there is none; what is no regular file (a FIFO blocks) is damage."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ValueError("it is no regular file")
        return file.read(HOST_FILE_BYTES)


def _make_host_id(path: Path) -> str:
    host_id = secrets.token_hex(4)
    temporary = path / f"{HOST_FILE}.new"
    with open(temporary, "w") as file:
        json.dump({"host_id": host_id}, file)
        file.flush()
        os.fsync(file.fileno())
    os.rename(temporary, path / HOST_FILE)
    directory = os.open(path, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)
    return host_id

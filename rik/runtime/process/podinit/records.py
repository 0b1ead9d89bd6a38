"""What the pod init leaves on disk: whole JSON files, replaced at once, durable before anybody is told.

In the pod's directory: ``init.json`` (who supervises it). In ``status/``: ``<container>.json`` for each container, and
``@pod.json`` for the pod (no container can have that name).
"""

from __future__ import annotations

import errno
import json
import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PROTOCOL = 1
POD_RECORD = "@pod.json"
INIT_RECORD = "init.json"


def now_ms() -> int:
    """Milliseconds since the Unix epoch."""
    return time.time_ns() // 1_000_000


def write_record(directory_fd: int, name: str, value: dict[str, Any], *, durable: bool) -> None:
    """Replaces a file at once; when ``durable``, it is on the disk on return.

    On a full disk the record is at least kept where a reader finds the previous one; OSError is raised.
    """
    temporary = f".{name}.tmp"
    data = json.dumps(value, separators=(",", ":")).encode()
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(temporary, flags, 0o600, dir_fd=directory_fd)
    try:
        if os.write(fd, data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)
        if durable:
            os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(temporary, name, src_dir_fd=directory_fd, dst_dir_fd=directory_fd)
    if durable:
        os.fsync(directory_fd)

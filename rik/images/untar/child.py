"""What the confined child runs: it gives up what it does not need, and then reads what a stranger wrote.

Started by ``confined.py``. Reads from standard input a job (its length in 4 bytes, then JSON), one byte when its id map
is there (for which it waits after saying ``unshared`` on standard output), and the layer's bytes. Its last line is the
answer in JSON: the result, or ``{"error": kind, "message": …}`` with the kinds invalid, limit, host; of kind limit
with the ``limit`` that was exceeded, when it is one of the job's. Standard library only, but for what
``compression.py`` imports (before the confinement) when a layer asks for it.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import json
import os
import queue
import resource
import threading

from rik.images.untar.compression import MAGIC_BYTES, decompressed
from rik.images.untar.discard import discard
from rik.images.untar.extract import Counter, Extraction, OverLimit
from rik.images.untar.merged import LowerLayers
from rik.images.untar.tarstream import BadTar, TarStream, shown
from rik.linux import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from rik.images.untar.compression import Readable

JOB_LENGTH_BYTES = 4
_READ_BYTES = 1 << 18
_BLOCK_BYTES = 1 << 20
_BLOCKS_AHEAD = 4
_MAX_MEMORY_BYTES = 2 << 30
_SPARE_DESCRIPTORS = 64
# chown, dac_override, fowner, fsetid, sys_admin (trusted.* attributes), mknod, setfcap.
_KEPT_CAPABILITIES = frozenset({0, 1, 3, 4, 21, 27, 31})
_MEGABYTE = 1_000_000

_libc = ctypes.CDLL(None, use_errno=True)


class Input:
    """Standard input, counted. What `peek` returned is read again."""

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._ahead = b""

    def peek(self, size: int) -> bytes:
        while len(self._ahead) < size and (data := os.read(0, _READ_BYTES)):
            self._ahead += data
        return self._ahead[:size]

    def read(self, size: int) -> bytes:
        if self._ahead:
            data, self._ahead = self._ahead[:size], self._ahead[size:]
        else:
            data = os.read(0, size)
        self._counter.value += len(data)
        return data


class Ahead:
    """The decompressed stream: hashed, its growth watched, and read ahead by a thread of its own.

    zlib and hashlib work without the interpreter's lock, so on two processors this takes half the time off.
    """

    def __init__(self, source: Readable, algorithm: str, check: Callable[[int], None]) -> None:
        self._source = source
        self._check = check
        self._blocks: queue.Queue[bytes | BaseException] = queue.Queue(_BLOCKS_AHEAD)
        self.hash = hashlib.new(algorithm)
        threading.Thread(target=self._run, daemon=True).start()

    def pull(self) -> bytes:
        """The next block; b"" at the end, after which it must not be asked again."""
        block = self._blocks.get()
        if isinstance(block, BaseException):
            raise block
        return block

    def _run(self) -> None:
        produced = 0
        try:
            while data := self._source.read(_BLOCK_BYTES):
                self.hash.update(data)
                produced += len(data)
                self._check(produced)
                self._blocks.put(data)
            self._blocks.put(b"")
        except BaseException as error:  # noqa: BLE001  # raised again by the reader
            self._blocks.put(error)


def main() -> None:
    gc.disable()  # it does one thing and ends; looking for cycles in what it remembers of a layer only takes time
    job = json.loads(_read_exactly(int.from_bytes(_read_exactly(JOB_LENGTH_BYTES), "big")))
    try:
        answer = _JOBS[job["do"]](job)
    except BadTar as error:
        answer = {"error": "invalid", "message": str(error)}
    except OverLimit as error:
        answer = {"error": "limit", "limit": error.limit, "message": str(error)}
    except MemoryError:
        answer = {
            "error": "limit",
            "message": f"reading it takes more than {_MAX_MEMORY_BYTES // _MEGABYTE:,} MB of memory",
        }
    except OSError as error:
        where = f" ({shown(str(error.filename))})" if error.filename else ""
        answer = {"error": "host", "message": f"{error.strerror or error}{where}", "errno": error.errno or 0}
    os.write(1, json.dumps(answer).encode() + b"\n")
    os._exit(0)  # without waiting for the thread that may be waiting for input


def _read_exactly(size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = os.read(0, size - len(data))
        if not piece:
            raise SystemExit(1)  # RIK is gone
        data += piece
    return data


def unpack(job: dict[str, Any]) -> dict[str, Any]:
    """Unpacks standard input into `target`, on top of the directories `lower` (topmost first)."""
    _enter(job)
    roots = [os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC) for path in job["lower"]]
    target = os.open(job["target"], os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    counter = Counter()
    source = Input(counter)
    plain = decompressed(source, source.peek(MAGIC_BYTES), job["packages"])
    os.fchdir(target)
    os.chroot(".")
    os.umask(0)  # inside of a directory that only RIK may enter
    _limit(len(roots), job)
    extraction = Extraction(LowerLayers(roots), job["limits"], counter)
    ahead = Ahead(plain, job["algorithm"], extraction.check_ratio)
    extraction.run(TarStream(ahead.pull))
    _sync_file_system(target)
    return {
        "diff_id": f"{job['algorithm']}:{ahead.hash.hexdigest()}",
        "bytes": extraction.bytes,
        "entries": extraction.entries,
        "dropped": {kind: count for kind, count in extraction.dropped.items() if count},
    }


def _sync_file_system(fd: int) -> None:
    """Everything written so far is on the disk.

    One call for the whole file system waits for what others have written, too, and is still the cheapest that is true:
    4,000 files of 20 kB took 0.05 s (0.10 s beside somebody who wrote 200 MB/s), where a call for each took 1 to 3 s;
    sync_file_range promises nothing about what the file system must know to find the data again.
    """
    if _libc.syncfs(fd) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "syncfs")


def remove(job: dict[str, Any]) -> dict[str, Any]:
    """Removes the tree `target`."""
    _enter(job)
    discard(job["target"])
    return {}


_JOBS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {"unpack": unpack, "remove": remove}


def _enter(job: dict[str, Any]) -> None:
    """Into namespaces of its own: users when the job says so, and no network."""
    os.umask(0o077)
    if job["user_namespace"]:
        syscalls.unshare(syscalls.CLONE_NEWUSER)
        os.write(1, b"unshared\n")
        _read_exactly(1)
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
    try:
        syscalls.unshare(syscalls.CLONE_NEWNET | syscalls.CLONE_NEWIPC | syscalls.CLONE_NEWUTS)
    except OSError:
        pass  # root without the right to do so: no worse than any other program of this container
    syscalls.set_no_new_privileges()


def _limit(layers: int, job: dict[str, Any]) -> None:
    largest = max(0, job["limits"]["max_bytes"] - job["limits"]["below_bytes"])
    for kind, wanted in (
        (resource.RLIMIT_AS, _MAX_MEMORY_BYTES),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_CPU, job["cpu_s"]),
        (resource.RLIMIT_FSIZE, largest),
        (resource.RLIMIT_NOFILE, layers + _SPARE_DESCRIPTORS),
    ):
        hard = resource.getrlimit(kind)[1]
        value = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(kind, (value, value))
    try:
        syscalls.limit_capabilities(_KEPT_CAPABILITIES)
    except OSError:
        pass  # not allowed to give rights up: then it has hardly any

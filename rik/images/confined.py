"""Runs one job in the confined child: started, mapped, fed, awaited, and never left behind."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import signal
import subprocess
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from rik.images.errors import ImageError, ImageInvalid, ImagePullFailed
from rik.images.untar.child import JOB_LENGTH_BYTES
from rik.linux.idmap import ROOT_RANGE, IdMap, Unavailable, base_interpreter, package_root

_MAX_ANSWER_BYTES = 1 << 20
_KEPT_STDERR_BYTES = 8192
_PIPE_BYTES = 1 << 20  # what an unprivileged process may have; 16 times fewer switches between the two than by default
_PROGRAM = "import sys; sys.path.insert(0, sys.argv[1]); from rik.images.untar.child import main; main()"

Feed = Callable[["Child"], Awaitable[None]]


class Owners:
    """How the ids in an image relate to this host's: as they are (root), or through the pods' own id map.

    `key` tells stores of layers apart that were unpacked differently: the same layer has other owners then.
    """

    def __init__(self, idmap: IdMap | Unavailable, euid: int) -> None:
        self.true = euid == 0 and (isinstance(idmap, Unavailable) or idmap.mode == ROOT_RANGE)
        self.idmap = idmap

    @property
    def key(self) -> str:
        if self.true or isinstance(self.idmap, Unavailable):
            return ""
        ranges = json.dumps([self.idmap.uid_ranges, self.idmap.gid_ranges])
        return hashlib.sha256(ranges.encode()).hexdigest()[:8]


class Child:
    """The running child, for the one who feeds it."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._answer: dict[str, Any] | None = None
        self._received = b""

    async def send(self, data: bytes) -> bool:
        """False when the child does not read any more: its answer says why."""
        assert self._process.stdin is not None
        try:
            await self._process.stdin.send_all(data)
        except trio.BrokenResourceError:
            return False
        return True

    async def finish(self) -> dict[str, Any]:
        """Ends its input and returns its answer, an error included."""
        assert self._process.stdin is not None
        await self._process.stdin.aclose()
        if self._answer is None:
            self._answer = json.loads(await self.line())
        return self._answer

    async def line(self) -> bytes:
        """The next line the child says. Raises `_Silent` when it has ended without one."""
        assert self._process.stdout is not None
        while b"\n" not in self._received:
            data = await self._process.stdout.receive_some()
            if not data or len(self._received) > _MAX_ANSWER_BYTES:
                raise _Silent
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        return line


class _Silent(Exception):
    """The child ended without an answer."""


async def run(job: dict[str, Any], owners: Owners, feed: Feed | None, keep_fd: int | None = None) -> dict[str, Any]:
    """Runs `job`, with `feed` writing its input, and returns the child's answer. Raises ImagePullFailed when there
    can be no child.

    `keep_fd` is inherited: a lock that it holds outlives RIK until the child has ended. Cancelled, it kills the child
    and waits for it.
    """
    if not owners.true and isinstance(owners.idmap, Unavailable):
        raise ImagePullFailed(
            f"images cannot be unpacked here: {owners.idmap.reason}",
            next_step=f"{owners.idmap.next_step}; or use the image `host`",
        )
    order = json.dumps({**job, "user_namespace": not owners.true}).encode()
    command = [base_interpreter(), "-I", "-S", "-X", "utf8", "-c", _PROGRAM, package_root()]
    keep = () if keep_fd is None else (keep_fd,)
    pipe = subprocess.PIPE
    with os.fdopen(os.memfd_create("rik-unpack-stderr"), "r+b") as said:
        process = await trio.lowlevel.open_process(
            command, stdin=pipe, stdout=pipe, stderr=said, env={}, cwd="/", pass_fds=keep
        )
        child = Child(process)
        try:
            _widen(process)
            await child.send(len(order).to_bytes(JOB_LENGTH_BYTES, "big") + order)
            if not owners.true:
                await _map(child, process, owners.idmap)
            if feed is not None:
                await feed(child)
            return await child.finish()
        except _Silent:
            await process.wait()
        finally:
            with trio.CancelScope(shield=True):  # not for long: nothing survives SIGKILL
                if process.poll() is None:
                    process.kill()
                await process.wait()
                for stream in (process.stdin, process.stdout):
                    if stream is not None:
                        await stream.aclose()
        said.seek(0)
        return _unanswered(
            process.returncode or 0, said.read()[-_KEPT_STDERR_BYTES:].decode("utf-8", "replace").strip()
        )


def _widen(process: trio.Process) -> None:
    assert isinstance(process.stdin, trio.lowlevel.FdStream)
    try:
        fcntl.fcntl(process.stdin.fileno(), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    except OSError:  # this user has too much in pipes already: only slower
        pass


async def _map(child: Child, process: trio.Process, idmap: IdMap | Unavailable) -> None:
    assert isinstance(idmap, IdMap)
    line = await child.line()
    if line != b"unshared":
        raise ImagePullFailed(f"images cannot be unpacked here: {json.loads(line).get('message', 'no user namespace')}")
    try:
        await trio.to_thread.run_sync(idmap.write, process.pid)
    except OSError as error:
        raise ImagePullFailed(f"images cannot be unpacked here: {error.filename}: {error.strerror}") from error
    await child.send(b"m")


def _unanswered(code: int, said: str) -> dict[str, Any]:
    """The child was killed (by the kernel, or an administrator), or there is a bug in it."""
    if code == -signal.SIGXCPU or code == -signal.SIGKILL:
        how = "took more processor time than it may" if code == -signal.SIGXCPU else "was killed (out of memory?)"
        return {"error": "killed", "message": f"the unpacking process {how}"}
    if code < 0:
        return {"error": "killed", "message": f"the unpacking process was ended by {signal.Signals(-code).name}"}
    raise RuntimeError(f"the unpacking process ended with status {code}: {said}")


def error_of(answer: dict[str, Any], what: str) -> ImageError | None:
    """The child's complaint as the error of `what`; None when it has none."""
    kind = answer.get("error")
    if kind is None:
        return None
    message = f"{what} cannot be unpacked: {answer['message']}"
    return ImageInvalid(message) if kind in ("invalid", "limit") else ImagePullFailed(message)

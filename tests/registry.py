"""Debian's `docker-registry` on a free port of loopback, and a slow way to it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import trio

USER, PASSWORD = "rik", "correct horse"
# `htpasswd -nbB` of these two; docker-registry takes bcrypt only.
_HTPASSWD = "rik:$2y$05$deLBXFIEv.2yc6EQtKxdK.5exZ/vp4Jg.Ror2Po1yUFOCA90L2cYy\n"
_CONFIG = """version: 0.1
storage: {{filesystem: {{rootdirectory: {directory}/files}}}}
http: {{addr: "127.0.0.1:0", secret: tests}}
log: {{level: info}}
"""
_AUTH = "auth: {{htpasswd: {{realm: tests, path: {directory}/htpasswd}}}}\n"
_LISTENING = re.compile(r"listening on 127\.0\.0\.1:([0-9]+)")
_BLOB = re.compile(r'"GET /v2/([^ ]+)/blobs/(sha256:[0-9a-f]{64}) HTTP/[0-9.]+" 20[06] ')
START_LIMIT_S = 30.0
PUSH_LIMIT_S = 120.0
POLL_S = 0.02


class Registry:
    """A registry that runs; `host` is `127.0.0.1:PORT`."""

    def __init__(self, port: int, log: Path, *, has_password: bool) -> None:
        self.port = port
        self.host = f"127.0.0.1:{port}"
        self._log = log
        self._has_password = has_password

    def push(self, source: str, name: str) -> str:
        """Copies an image (`oci:DIR:TAG`) to `name` (`app:v1`) by skopeo; returns its digest."""
        digest = self._log.with_name("digest")
        credentials = [f"--dest-creds={USER}:{PASSWORD}"] if self._has_password else []
        copy = ["skopeo", "--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false", *credentials]
        where = [f"--digestfile={digest}", source, f"docker://{self.host}/{name}"]
        done = subprocess.run([*copy, *where], capture_output=True, text=True, timeout=PUSH_LIMIT_S)
        assert done.returncode == 0, done.stderr
        return digest.read_text().strip()

    def blobs_sent(self, repository: str) -> Counter[str]:
        """How often it has sent each blob of a repository, or a part of it, says its own access log."""
        return Counter(digest for name, digest in _BLOB.findall(self._log.read_text()) if name == repository)


@contextmanager
def running_registry(directory: Path, *, has_password: bool = False) -> Iterator[Registry]:
    """A registry with its files in `directory`; with `has_password` it knows USER with PASSWORD, and nobody else."""
    config, log = directory / "config.yml", directory / "log"
    config.write_text((_CONFIG + (_AUTH if has_password else "")).format(directory=directory))
    (directory / "htpasswd").write_text(_HTPASSWD)
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["docker-registry", "serve", str(config)], stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    try:
        yield Registry(_port(process, log), log, has_password=has_password)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()


def _port(process: subprocess.Popen[bytes], log: Path) -> int:
    until = time.monotonic() + START_LIMIT_S
    while (found := _LISTENING.search(log.read_text())) is None:
        assert process.poll() is None and time.monotonic() < until, log.read_text()
        time.sleep(POLL_S)
    return int(found[1])


class SlowWay:
    """A proxy at `host` (`127.0.0.1:PORT`) to a port of loopback; all answers together come at `bytes_per_s` at most,
    which may be changed at any time.
    """

    def __init__(self, port: int, bytes_per_s: float) -> None:
        self.host = ""
        self.bytes_per_s = bytes_per_s
        self._port = port
        self._gate = trio.Lock()

    async def run(self, task_status: trio.TaskStatus[list[trio.SocketListener]]) -> None:
        """Until cancelled."""
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.host = f"127.0.0.1:{listener.socket.getsockname()[1]}"
        await trio.serve_listeners(self._serve, [listener], task_status=task_status)

    async def _serve(self, client: trio.SocketStream) -> None:
        try:
            upstream = await trio.open_tcp_stream("127.0.0.1", self._port)
            async with client, upstream, trio.open_nursery() as nursery:
                nursery.start_soon(self._answer, upstream, client)
                async for piece in client:
                    await upstream.send_all(piece)
                await upstream.send_eof()
        except* (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # either end may go, also by kill -9

    async def _answer(self, upstream: trio.SocketStream, client: trio.SocketStream) -> None:
        async for piece in upstream:
            async with self._gate:
                await trio.sleep(len(piece) / self.bytes_per_s)
            await client.send_all(piece)
        await client.send_eof()


@asynccontextmanager
async def slow_way(port: int, bytes_per_s: float) -> AsyncIterator[SlowWay]:
    """A SlowWay that runs."""
    way = SlowWay(port, bytes_per_s)
    async with trio.open_nursery() as nursery:
        await nursery.start(way.run)
        yield way
        nursery.cancel_scope.cancel()

"""A real `rik serve` process, to be started, killed and started again by tests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import trio

from tests.api.client import ApiClient

START_LIMIT_S = 30.0
STOP_LIMIT_S = 40.0
POLL_S = 0.02


class ServerDied(Exception):
    """The process ended before it said where it listens, or while it was waited for."""

    def __init__(self, returncode: int, stderr: str) -> None:
        super().__init__(f"rik serve ended with {returncode}:\n{stderr}")
        self.returncode = returncode
        self.stderr = stderr


class Server:
    """One `rik serve` over one data directory; its standard error is kept in a file beside it."""

    def __init__(self, data_dir: Path | None, *options: str, env: Mapping[str, str] | None = None) -> None:
        self.data_dir = data_dir
        self.options = options
        self.env = dict(env or {})
        self.url = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._stderr_path: Path | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def command(self) -> list[str]:
        where = ["--demo"] if self.data_dir is None else ["--data-dir", str(self.data_dir)]
        return [sys.executable, "-m", "rik", "serve", "--listen", "127.0.0.1:0", *where, *self.options]

    async def start(self, **env: str) -> str:
        """Starts it and waits for `listening on URL`; returns the URL. Raises ServerDied."""
        assert not self.alive(), "stop or kill it first"
        base = {key: value for key, value in os.environ.items() if not key.startswith("RIK")}
        self._stderr_path = Path(os.environ.get("TMPDIR", "/tmp")) / f"rik-e2e-{os.getpid()}-{id(self)}.stderr"
        with self._stderr_path.open("ab") as stderr:
            self._process = await trio.to_thread.run_sync(
                lambda: subprocess.Popen(
                    self.command(), stdout=subprocess.PIPE, stderr=stderr, env={**base, **self.env, **env}
                )
            )
        with trio.fail_after(START_LIMIT_S):
            line = await trio.to_thread.run_sync(self._read_line, abandon_on_cancel=True)
        if not line.startswith("listening on "):
            await self.wait_dead()
            raise ServerDied(self._process.returncode, self.stderr())
        self.url = line.removeprefix("listening on ").strip()
        return self.url

    def _read_line(self) -> str:
        assert self._process is not None and self._process.stdout is not None
        return self._process.stdout.readline().decode()

    def stderr(self) -> str:
        """What it has written to standard error since the first start."""
        return self._stderr_path.read_text(errors="replace") if self._stderr_path else ""

    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """SIGKILL."""
        if self.alive():
            os.kill(self.pid, signal.SIGKILL)

    async def wait_dead(self) -> int:
        """Its return code, once it has ended."""
        assert self._process is not None
        with trio.fail_after(STOP_LIMIT_S):
            while self._process.poll() is None:
                await trio.sleep(POLL_S)
        if self._process.stdout:
            self._process.stdout.close()
        return self._process.returncode

    async def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        if self.alive():
            os.kill(self.pid, signal.SIGTERM)
        return await self.wait_dead()

    def _holds_pods(self) -> bool:
        """Whether pods of this data directory may still run, whether it serves or not."""
        pods = self.data_dir / "pods" if self.data_dir is not None else None
        return pods is not None and pods.is_dir() and any(pods.iterdir())

    async def close(self) -> None:
        """Whatever its state: ended and reaped, with everything that it still ran stopped, so that nothing outlives a
        test, not even one that failed.
        """
        if self._process is None:
            return
        with trio.CancelScope(shield=True):
            if self._holds_pods():
                with suppress(ServerDied, httpx.HTTPError, trio.TooSlowError):
                    if not self.alive():
                        await self.start()
                    with trio.fail_after(STOP_LIMIT_S):
                        await _stop_everything(self)
            if self.alive():
                os.kill(self.pid, signal.SIGTERM)
                with trio.move_on_after(STOP_LIMIT_S):
                    await self.wait_dead()
            self.kill()
            await self.wait_dead()
        if self._stderr_path:
            self._stderr_path.unlink(missing_ok=True)


@asynccontextmanager
async def serving(
    data_dir: Path | None = None, *options: str, env: Mapping[str, str] | None = None
) -> AsyncIterator[Server]:
    """A running server; at the end everything it ran is stopped."""
    server = Server(data_dir, *options, env=env)
    try:
        await server.start()
        yield server
    finally:
        await server.close()


async def _stop_everything(server: Server) -> None:
    """Deletes every instance, and waits until they are gone."""
    async with Client(server.url, checked=False) as client:
        for entry in await client.get("instances.list"):
            await client.post("instances.delete", {"id": entry["id"]})
        while await client.get("instances.list"):
            await trio.sleep(POLL_S)


class Client:
    """Thin: the API's paths by their short names, JSON in and out; raises httpx.HTTPStatusError on 4xx and 5xx.

    Every answer is checked against `/openapi.json`; not so with `checked` False, where time is measured.
    """

    def __init__(self, url: str, *, checked: bool = True) -> None:
        self.http = ApiClient(url) if checked else httpx.AsyncClient(base_url=url, timeout=30, trust_env=False)

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        with trio.CancelScope(shield=True):
            await self.http.aclose()

    async def get(self, call: str, **params: Any) -> Any:
        """The decoded body; 204 is []."""
        answer = await self.http.get(f"/api/v0/{call}", params=params)
        answer.raise_for_status()
        return answer.json() if answer.content else []

    async def post(self, call: str, body: Any, **params: Any) -> Any:
        answer = await self.http.post(f"/api/v0/{call}", json=body, params=params)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    async def until(self, instance: str, *statuses: str, limit_s: float = 30) -> dict[str, Any]:
        """The record of an instance, once its status is one of `statuses`."""
        with trio.fail_after(limit_s):
            while True:
                record: dict[str, Any] = await self.get(f"instances.get/{instance}")
                if record["status"] in statuses:
                    return record
                await trio.sleep(POLL_S)


def pod(name: str, *containers: dict[str, Any], **spec: Any) -> dict[str, Any]:
    """A document of a Pod."""
    return {"apiVersion": "v1", "kind": "Pod", "name": name, "spec": {"containers": list(containers), **spec}}


def shell(script: str, name: str = "main", **fields: Any) -> dict[str, Any]:
    """A container on the host's image that runs a shell script."""
    return {"name": name, "image": "host", "command": ["/bin/sh", "-c", script], **fields}

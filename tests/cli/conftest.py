"""A real server in demo mode, shared by the tests of a module, and the `rik` program as a process of its own."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

LIMIT_S = 60.0
ROOT = Path(__file__).parent.parent.parent


class Rik:
    """Runs `rik …` against one server, and asks the API directly to compare."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._started: list[subprocess.Popen[str]] = []
        base = {key: value for key, value in os.environ.items() if not key.startswith("RIK")}
        self.env = {**base, "HOME": "/nonexistent", "RIK_CLUSTER_SERVER": url, "COLUMNS": "200", "TZ": "UTC"}

    def __call__(self, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """Runs to the end."""
        return subprocess.run(
            [sys.executable, "-m", "rik", *arguments],
            cwd=ROOT,
            env=self.env,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )

    def ok(self, *arguments: str, stdin: str | None = None) -> str:
        """Runs to the end, which must be a good one; the standard output."""
        done = self(*arguments, stdin=stdin)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Starts it; both outputs come in one stream, line by line. Ended with the test, if it still runs then."""
        process = subprocess.Popen(
            [sys.executable, "-m", "rik", *arguments],
            cwd=ROOT,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._started.append(process)
        return process

    def end_started(self) -> None:
        while self._started:
            process = self._started.pop()
            if process.poll() is None:
                process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()

    def api(self, path: str, body: Any = None) -> Any:
        """The decoded answer; None for none."""
        return json.loads(self.raw(path, body) or "null")

    def raw(self, path: str, body: Any = None) -> bytes:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}/api/v0/{path}", data=data)
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=LIMIT_S) as answer:
            assert isinstance(answer.status, int)
            read: bytes = answer.read()
            return read

    def until(self, instance: str, *statuses: str) -> dict[str, Any]:
        """The record, once its status is one of these."""
        deadline = time.monotonic() + LIMIT_S
        while True:
            record: dict[str, Any] = self.api(f"instances.get/{instance}")
            if record["status"] in statuses:
                return record
            assert time.monotonic() < deadline, record
            time.sleep(0.02)

    def deploy(self, name: str, script: str, **container: Any) -> str:
        """A workload of one container that runs a shell script on the host's image, and one running instance of it."""
        spec = {"name": "main", "image": "host", "command": ["/bin/sh", "-c", script], **container}
        document = {"apiVersion": "v1", "kind": "Pod", "name": name, "spec": {"containers": [spec]}}
        self.api("workloads.create", document)
        names: list[str] = self.api("instances.create", {"workload_id": name})
        self.until(names[0], "Running", "Failed", "Terminated")
        return names[0]

    def remove(self, workload: str) -> None:
        self.raw("workloads.delete", {"name": workload})


class Terminal:
    """A program on a terminal of its own."""

    def __init__(
        self, rik: Rik, *arguments: str, columns: int = 100, rows: int = 30, env: dict[str, str] | None = None
    ) -> None:
        self.seen = ""
        self._master, slave = pty.openpty()
        self.resize(columns, rows)
        kept = {key: value for key, value in rik.env.items() if key not in ("COLUMNS", "NO_COLOR")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "rik", *arguments],
            cwd=ROOT,
            env={**kept, "TERM": "xterm", **(env or {})},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: os.close(os.open(os.ttyname(0), os.O_RDWR)),  # noqa: PLW1509  (its controlling terminal)
        )
        os.close(slave)

    def resize(self, columns: int, rows: int) -> None:
        import fcntl
        import struct
        import termios

        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def read_until(self, text: str) -> str:
        """Everything seen so far, once `text` is in it."""
        deadline = time.monotonic() + LIMIT_S
        while text not in self.seen:
            left = deadline - time.monotonic()
            assert left > 0, f"{text!r} did not appear in {self.seen!r}"
            if select.select([self._master], [], [], min(left, 0.5))[0] and not self._read():
                break
        assert text in self.seen, f"{text!r} did not appear in {self.seen!r}"
        return self.seen

    def wait(self) -> int:
        """The exit code; reads on, so that nothing blocks."""
        deadline = time.monotonic() + LIMIT_S
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.seen
            if select.select([self._master], [], [], 0.05)[0]:
                self._read()
        while select.select([self._master], [], [], 0)[0] and self._read():
            pass
        return self.process.returncode

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._master)

    def _read(self) -> bool:
        try:
            data = os.read(self._master, 65536)
        except OSError:  # the other end is closed
            return False
        self.seen += data.decode(errors="replace")
        return bool(data)


@pytest.fixture(autouse=True)
def end_started(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "rik" in request.fixturenames:
        request.getfixturevalue("rik").end_started()


@pytest.fixture
def terminal(rik: Rik) -> Iterator[Any]:
    """`terminal("exec", …)`: a `rik` on a terminal of its own."""
    made: list[Terminal] = []

    def start(*arguments: str, **options: Any) -> Terminal:
        made.append(Terminal(rik, *arguments, **options))
        return made[-1]

    yield start
    for item in made:
        item.close()


@pytest.fixture(scope="module")
def rik(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rik]:
    """The command line, and a demo server for it."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("RIK")}
    log = tmp_path_factory.mktemp("demo") / "stderr"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "rik", "serve", "--demo", "--listen", "127.0.0.1:0"],
            cwd=ROOT,
            env=env,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line.startswith("listening on "):
        process.kill()
        process.wait()
        pytest.fail(f"the server did not start: {line}{log.read_text()}")
    yield Rik(line.removeprefix("listening on ").strip())
    process.send_signal(signal.SIGINT)
    try:
        process.communicate(timeout=LIMIT_S)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()

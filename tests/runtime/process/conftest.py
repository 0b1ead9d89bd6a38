"""A process runtime with directories of its own, and pods to run on it."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from rik.environment import SystemEnvironment
from rik.images.store import ImageStore
from rik.images.unpack import remove_tree
from rik.linux.idmap import IdMap, Unavailable, detect
from rik.messages import Assignment, ReadLogs
from rik.model.instance import LogLine, Progress
from rik.runtime.base import Observed, Pod
from rik.runtime.process.layout import Layout
from rik.runtime.process.runtime import ProcessRuntime

LIMIT_S = 60.0
# A program that says "up" once it has a thousand children, each with a session of its own.
THOUSAND_CHILDREN = """
import os, time
for _ in range(1000):
    if os.fork() == 0:
        os.setsid()
        time.sleep(600)
print('up', flush=True)
time.sleep(600)
"""


def container(name: str, *command: str, **more: Any) -> dict[str, Any]:
    """A container of a document, on the image `host` unless told otherwise."""
    return {"name": name, "image": "host", "command": list(command), **more}


def script(name: str, text: str, **more: Any) -> dict[str, Any]:
    """A container that runs a shell script."""
    return container(name, "/bin/sh", "-c", text, **more)


def make_pod(*containers: dict[str, Any], **spec: Any) -> Pod:
    """A pod that no other test has."""
    uid = SystemEnvironment().uid()
    document = {"containers": list(containers), **spec}
    return Pod.of(Assignment(uid, "web-1", "default", "web", "Pod", document, 0, ""))


class Frames:
    """The runtime's end of a stream, in memory: `sent` is what came out of it."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.failures: list[str] = []
        self._news = trio.Event()
        self._give, self._take = trio.open_memory_channel[bytes](1000)

    def put(self, *frames: bytes) -> None:
        for frame in frames:
            self._give.send_nowait(frame)

    def hang_up(self) -> None:
        self._give.close()

    def text(self, mark: int) -> str:
        return b"".join(frame[1:] for frame in self.sent if frame[0] == mark).decode()

    @property
    def control(self) -> list[bytes]:
        return [frame[1:] for frame in self.sent if frame[0] == 3]

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._news = trio.Event()
            await self._news.wait()

    async def send(self, frame: bytes) -> None:
        self.sent.append(bytes(frame))
        self._news.set()
        await trio.lowlevel.checkpoint()

    async def receive(self) -> bytes | None:
        try:
            return await self._take.receive()
        except trio.EndOfChannel:
            return None

    async def end(self) -> None:
        await trio.lowlevel.checkpoint()

    async def fail(self, message: str, status: int = 503, *, reason: str = "Refused", next_step: str = "") -> None:
        self.failures.append(message)
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


class Bench:
    """A runtime and what tests do with it; everything made here is removed in the end."""

    def __init__(self, data_dir: Path, idmap: IdMap | Unavailable, **options: Any) -> None:
        self.host_id = secrets.token_hex(4)
        self.data_dir = data_dir
        self.idmap = idmap
        self.options = options
        self.runtime = self.another()

    def another(self) -> ProcessRuntime:
        """A runtime on the same directories: what the next RIK would have."""
        layout = Layout(self.data_dir, self.host_id)
        images = ImageStore(self.data_dir / "images", self.host_id, self.idmap)
        return ProcessRuntime(SystemEnvironment(), layout, images, self.idmap, **self.options)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Bench]:
        with trio.fail_after(LIMIT_S):
            async with self.runtime.open():
                try:
                    yield self
                finally:
                    with trio.CancelScope(shield=True), trio.move_on_after(20):
                        await self.runtime.sweep(frozenset())

    async def start(self, *containers: dict[str, Any], **spec: Any) -> tuple[Pod, Observed]:
        pod = make_pod(*containers, **spec)
        await self.runtime.prepare(pod, _ignore)
        return pod, await self.runtime.start(pod)

    async def run(self, *containers: dict[str, Any], **spec: Any) -> tuple[Pod, Observed]:
        """To the end."""
        pod, _ = await self.start(*containers, **spec)
        return pod, await self.runtime.wait(pod.uid, _ignore)

    async def lines(self, pod: Pod, name: str = "", **query: Any) -> list[LogLine]:
        batches = self.runtime.logs(ReadLogs(pod.uid, name, **query))
        return [line async for batch in batches for line in batch]

    async def text(self, pod: Pod, stream: str = "stdout") -> str:
        return "\n".join(line.line for line in await self.lines(pod) if line.stream == stream)

    async def until_said(self, pod: Pod, text: str) -> None:
        async with aclosing(self.runtime.logs(ReadLogs(pod.uid, follow=True))) as batches:
            async for batch in batches:
                if any(text in line.line for line in batch):
                    return
        raise AssertionError(f"it ended without saying {text!r}: {await self.text(pod)}")


def _ignore(value: Observed | Progress) -> None:
    """What is told on the way is not looked at."""


@pytest.fixture(scope="session")
def idmap() -> IdMap | Unavailable:
    return detect()


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """Private, as RIK's own is. What is in it may belong to ids of the pods, and must be removed accordingly."""
    parent = Path(tempfile.mkdtemp(prefix="rik-test-pods-"))
    path = parent / "data"
    path.mkdir(mode=0o700)
    yield path
    trio.run(remove_tree, parent)


@pytest.fixture
async def bench(data_dir: Path, idmap: IdMap | Unavailable) -> AsyncIterator[Bench]:
    async with Bench(data_dir, idmap).open() as opened:
        yield opened

"""The runtimes that the suite runs over: how each is made and told what to do, and what each declares to lack."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import msgspec
import trio

from rik.environment import SystemEnvironment
from rik.messages import Assignment
from rik.runtime.base import Pod, Runtime
from rik.runtime.fake import FakeMachine, FakeRuntime
from rik.runtimes import Equipment, equip
from tests.images.build import file, folder, layout, tar

# What a runtime may declare to lack.
UDP = "udp"  # datagrams into an instance
SERVERS = "servers"  # programs of its own that listen: connections are answered by the runtime itself

IMAGE = "registry.example/app:1"  # where nothing is really fetched
ECHO_SERVER = """
use IO::Socket::INET;
my $s = IO::Socket::INET->new(LocalAddr => '0.0.0.0', LocalPort => 7007, Listen => 5, ReuseAddr => 1) or die $!;
$| = 1; print "listening\\n";
while (my $c = $s->accept) { while (sysread($c, my $data, 65536)) { syswrite($c, $data); } close $c; }
"""


class Does(msgspec.Struct, frozen=True, kw_only=True):
    """What one container does, in terms that every runtime can be told. Seconds; `ends_after` None is never."""

    ends_after: float | None = None
    code: int = 0
    signal: str = ""
    ignores_stop: bool = False
    stop_takes: float = 0.0
    lines: int = 0
    missing: bool = False
    cats: bool = False
    serves: bool = False
    pulled: bool = False


SLEEPS = Does()


class Subject(Protocol):
    """One runtime under test. `lacks` is what it declares not to do."""

    lacks: frozenset[str]

    def runtime(self) -> Runtime:
        """A new object over the same host, as after a restart."""
        ...

    def container(self, does: Does) -> dict[str, Any]:
        """The container's part of a spec, without its name."""
        ...

    async def clean(self) -> None:
        """Leaves nothing on this machine."""
        ...


class FakeSubject:
    lacks = frozenset({UDP, SERVERS})

    def __init__(self, directory: Path) -> None:
        self._environment = SystemEnvironment()
        self._machine = FakeMachine(directory)

    def runtime(self) -> Runtime:
        return FakeRuntime(self._environment, self._machine)

    def container(self, does: Does) -> dict[str, Any]:
        env: dict[str, object] = {"FAKE_STOP_SECONDS": does.stop_takes, "FAKE_LOG_LINES": does.lines}
        if does.ends_after is not None:
            env |= {"FAKE_RUN_SECONDS": does.ends_after, "FAKE_EXIT_CODE": does.code}
        if does.signal:
            env["FAKE_SIGNAL"] = does.signal
        if does.ignores_stop:
            env["FAKE_IGNORE_STOP"] = 1
        if does.missing:
            env |= {"FAKE_FAIL": "CommandNotFound", "FAKE_FAIL_AT": "start"}
            env["FAKE_FAIL_MESSAGE"] = "container `c0`: command `/no/such/command` was not found"
        if does.cats:
            env["FAKE_CAT"] = 1
        if does.pulled:
            env |= {"FAKE_PULL_STEPS": 4, "FAKE_PULL_LAYERS": 2}
        return {
            "image": IMAGE if does.pulled else "host",
            "env": [{"name": key, "value": str(value)} for key, value in env.items()],
        }

    async def clean(self) -> None:
        await trio.lowlevel.checkpoint()


class ProcessSubject:
    lacks: frozenset[str] = frozenset()

    def __init__(self, directory: Path) -> None:
        self._environment = SystemEnvironment()
        self._directory = directory
        self._host_id = secrets.token_hex(4)

    def _equip(self) -> Equipment:
        return equip("process", self._environment, self._directory, self._host_id, allow_dirs=None)

    def runtime(self) -> Runtime:
        return self._equip().runtimes[0]

    def container(self, does: Does) -> dict[str, Any]:
        if does.pulled:
            place = self._directory / "image-to-pull"
            if not place.exists():
                layout(place, tar(folder("bin")), tar(file("etc-motd", b"hello")))
            return {"image": f"oci:{place}", "command": ["/bin/sh"]}
        if does.missing:
            return {"image": "host", "command": ["/no/such/command"]}
        if does.cats:
            return {"image": "host", "command": ["/bin/cat"], "stdin": True}
        if does.serves:
            return {"image": "host", "command": ["/usr/bin/perl", "-e", ECHO_SERVER]}
        return {"image": "host", "command": ["/bin/sh", "-c", _shell(does)]}

    async def clean(self) -> None:
        runtime = self.runtime()
        async with runtime.open():
            await runtime.sweep(frozenset())
        images = self._equip().images
        if images is not None:
            await images.prune()
        run = runtime.layout.run_dir  # type: ignore[attr-defined]
        shutil.rmtree(run, ignore_errors=True)


def _shell(does: Does) -> str:
    parts = [f"echo line {number}" for number in range(does.lines)]
    waits = "while :; do sleep 0.05; done"
    if does.ignores_stop:
        parts += ["trap '' TERM", waits]
    elif does.stop_takes:
        parts += [f"trap 'sleep {does.stop_takes}; exit 0' TERM", waits]
    elif does.ends_after is None:
        parts.append("exec sleep 1000")
    else:
        parts.append(f"sleep {does.ends_after}")
        parts.append(f"kill -{does.signal.removeprefix('SIG')} $$" if does.signal else f"exit {does.code}")
    return "\n".join(parts)


SUBJECTS: dict[str, Callable[[Path], Subject]] = {"fake": FakeSubject, "process": ProcessSubject}


class Bench:
    """A subject with its present runtime object, and shorthand for what nearly every test does."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self._environment = SystemEnvironment()

    def pod(self, *containers: Does, **spec: Any) -> Pod:
        """Containers are named c0, c1 and so on."""
        uid = self._environment.uid()
        described = [{"name": f"c{n}", **self.subject.container(does)} for n, does in enumerate(containers)]
        spec = {"containers": described, "stopGraceSeconds": 5, **spec}
        return Pod.of(Assignment(uid, f"name-{uid[:6]}", "default", "w", "Pod", spec, 0, "journal"))

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Runtime]:
        """A new runtime object, open."""
        runtime = self.subject.runtime()
        async with runtime.open():
            yield runtime

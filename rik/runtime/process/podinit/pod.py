"""The pod: its containers together, and the rule by which they end.

The first container that cannot be started, exits non-zero or is killed ends the pod: its siblings get their stop
signal, and after the grace SIGKILL. It is the same rule whether RIK is there or not, so it is applied here. What is
told and kept is one state: ``phase`` (starting, running, failing, stopping, ended), ``containers``, ``failure``,
``enforced``.
"""

from __future__ import annotations

import os
import signal

from rik.runtime.process.podinit import descendants
from rik.runtime.process.podinit.container import Container, Held
from rik.runtime.process.podinit.logs import LogWriter
from rik.runtime.process.podinit.loop import Loop, Timer
from rik.runtime.process.podinit.records import POD_RECORD, now_ms, write_record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

RECORD_RETRY_S = 1.0  # while the disk is full


class Pod:
    """``status_fd`` and ``log_fd`` are open directories; ``enforced`` is what is known of limits so far."""

    def __init__(
        self, spec: dict[str, Any], status_fd: int, log_fd: int, held: dict[str, Held], enforced: dict[str, Any]
    ) -> None:
        self.token = str(spec["token"])
        self.isolated = spec["mode"] != "plain"
        self.enforced = enforced
        self.loop = Loop()
        self.changed: Callable[[], None] = lambda: None
        self._grace_s = float(spec["grace_s"])
        self._status_fd = status_fd
        self._failure: dict[str, Any] | None = None
        self._stopping = False
        self._gone = False
        self._killer: Timer | None = None
        self._ended_at: int | None = None
        size, count = int(spec["log_file_bytes"]), int(spec["log_files"])
        self.containers = [
            Container(
                item,
                spec,
                held[item["name"]],
                self.loop,
                LogWriter(log_fd, item["name"], file_bytes=size, files=count),
            )
            for item in spec["containers"]
        ]
        for container in self.containers:
            container.changed = self._container_changed

    def container(self, name: str) -> Container | None:
        """By name; "" is the first."""
        return next((c for c in self.containers if not name or c.name == name), None)

    def begin(self) -> None:
        """Makes every root; once all are ready all commands are executed."""
        for container in self.containers:
            if self._failure is None and not self._stopping:
                container.build()
        self._end_if_over()

    def stop(self, grace_s: float) -> None:
        """Stop signal now, SIGKILL after ``grace_s``; asking again can only make it sooner."""
        self._stopping = True
        self._stop_all(grace_s)
        self.changed()

    def kill_now(self) -> None:
        """RIK has gone and the pod with it."""
        self._gone = True
        self._stopping = True
        for container in self.containers:
            container.kill()
        self._end_if_over()

    def describe(self) -> dict[str, Any]:
        return {
            "phase": self._phase(),
            "containers": [container.describe() for container in self.containers],
            "failure": self._failure,
            "enforced": self._enforced(),
            "ended_at": self._ended_at,
        }

    def _phase(self) -> str:
        if self._ended_at is not None:
            return "ended"
        if self._failure is not None:
            return "failing"
        if self._stopping:
            return "stopping"
        return "running" if all(c.started_at is not None for c in self.containers) else "starting"

    def _enforced(self) -> dict[str, Any]:
        found = dict(self.enforced)
        for container in self.containers:
            found.update(container.findings)
        return found

    def _container_changed(self, container: Container) -> None:
        if container.over:
            self._record(container)
            if not container.succeeded and self._failure is None and not self._stopping:
                self._fail(container)
        elif container.state == "ready":
            if self._failure is not None or self._stopping:
                container.kill()
            elif all(c.state == "ready" for c in self.containers):
                for ready in self.containers:
                    ready.go()
        elif container.state == "running":
            self._record(container)
            if self._failure is not None or self._stopping:
                self._stop_one(container)
        self.changed()
        self._end_if_over()

    def _fail(self, container: Container) -> None:
        self._failure = {"container": container.name, "at": now_ms(), **container.describe()}
        self._stop_all(self._grace_s)

    def _stop_all(self, grace_s: float) -> None:
        for container in self.containers:
            self._stop_one(container)
        if self._killer is not None:
            self._killer.cancel()
        self._killer = self.loop.after(max(0.0, grace_s), self._kill_all)

    def _stop_one(self, container: Container) -> None:
        """A command that has not been executed yet cannot be asked."""
        if container.state == "running":
            container.signal(int(container.spec.get("stop_signal") or signal.SIGTERM))
        elif not container.over:
            container.kill()

    def _kill_all(self) -> None:
        for container in self.containers:
            if not container.over:
                container.kill()

    def _record(self, container: Container) -> None:
        """On the disk before anybody is told; on a full disk it is told all the same, and tried again."""
        if self._gone:
            return
        try:
            write_record(self._status_fd, f"{container.name}.json", container.describe(), durable=container.over)
        except OSError:
            if container.over:
                self.loop.after(RECORD_RETRY_S, lambda: self._record(container))

    def _end_if_over(self) -> None:
        begun = [container for container in self.containers if container.state != "waiting"]
        waiting = len(begun) < len(self.containers)
        if self._ended_at is not None or not all(c.over for c in begun):
            return
        if waiting and self._failure is None and not self._stopping:
            return
        if not self.isolated:
            descendants.kill_all()
        self._ended_at = now_ms()
        self._finish()

    def _finish(self) -> None:
        """The last word; then this process ends, unless the disk is full: then it is the only one who knows."""
        if not self._gone:
            try:
                write_record(self._status_fd, POD_RECORD, self.describe(), durable=True)
            except OSError:
                self.changed()
                self.loop.after(RECORD_RETRY_S, self._finish)
                return
            self.changed()
        self.loop.stop()


def own_status_record(status_fd: int, message: str, reason: str = "CreateFailed") -> None:
    """What is left by a pod init that cannot even begin."""
    failure = {"container": "", "at": now_ms(), "failure": {"reason": reason, "message": message}}
    record = {"phase": "ended", "containers": [], "failure": failure, "enforced": {}, "ended_at": now_ms()}
    write_record(status_fd, POD_RECORD, record, durable=True)
    os.close(status_fd)

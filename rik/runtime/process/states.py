"""What a supervisor says, or has left on the disk, in the words of the runtime contract."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

from rik.linux.identity import ProcessIdentity
from rik.model.instance import ContainerState, Reason
from rik.runtime.base import Failure, Observed
from rik.runtime.exits import failure_of
from rik.runtime.process.podinit.records import INIT_RECORD, POD_RECORD

_STATES = {"ready": "creating", "failed": "waiting"}
_PHASES = {"starting": "running", "stopping": "running"}
_KEPT_STDERR_CHARACTERS = 600


def read_json(path: Path) -> dict[str, Any] | None:
    """None when it is not there, or not (yet) whole."""
    try:
        value = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def observed(state: dict[str, Any], memory_bytes: int = 0) -> Observed:
    """From the supervisor's state (see `podinit.pod`)."""
    return Observed(
        phase=_PHASES.get(state["phase"], state["phase"]),
        containers=tuple(_container(item) for item in state["containers"]),
        failure=_failure(state["failure"], memory_bytes),
        enforced=dict(state["enforced"]),
    )


def start_failure(state: dict[str, Any]) -> Failure | None:
    """The failure by which the pod ended, if it is one of a container (or pod) that was never executed."""
    failure = state["failure"]
    if failure is None or failure.get("failure") is None:
        return None
    return _failure(failure, 0)


def final_record(pod: Path) -> dict[str, Any] | None:
    """The state in which the pod ended; None when that was not recorded."""
    return read_json(pod / "status" / POD_RECORD)


def supervisor(pod: Path) -> ProcessIdentity | None:
    """Who supervises, or supervised, the pod; None when nobody ever got so far."""
    record = read_json(pod / INIT_RECORD)
    return None if record is None else ProcessIdentity(int(record["pid"]), int(record["start_ticks"]))


def lost(pod: Path) -> Observed:
    """What can still be said of a pod whose supervisor died before it could record the end."""
    containers = []
    spec = read_json(pod / "pod.json") or {"containers": [], "enforced": {}}
    for item in spec["containers"]:
        record = read_json(pod / "status" / f"{item['name']}.json")
        state = _container(record) if record is not None else ContainerState(item["name"], item["reference"])
        if state.state == "running":
            state = ContainerState(state.name, state.image, "exited", started_at=state.started_at)
        containers.append(state)
    identity = supervisor(pod)
    who = f"the supervisor of the pod (process {identity.pid})" if identity is not None else "the supervisor of the pod"
    message = f"{who} was killed, or crashed; its containers ended with it, and their exit codes are not known"
    try:
        said = (pod / "init.log").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:  # gone, or never begun
        said = ""
    if said:
        message += f". It said: {said[-_KEPT_STDERR_CHARACTERS:]}"
    return Observed("ended", tuple(containers), Failure(Reason.SUPERVISOR_LOST, message), "", dict(spec["enforced"]))


def _container(item: dict[str, Any]) -> ContainerState:
    number = item["signal"]
    return ContainerState(
        name=item["name"],
        image=item["image"],
        state=_STATES.get(item["state"], item["state"]),
        exit_code=item["exit_code"] if number is None else 128 + int(number),
        signal=None if number is None else signal_name(int(number)),
        oom_killed=item["oom_killed"],
        started_at=item["started_at"],
        ended_at=item["ended_at"],
    )


def signal_name(number: int) -> str:
    """`SIGTERM` for 15, and so on."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIGRTMIN+{number - signal.SIGRTMIN}" if number >= signal.SIGRTMIN else f"signal {number}"


def _failure(item: dict[str, Any] | None, memory_bytes: int) -> Failure | None:
    if item is None:
        return None
    if item.get("failure") is not None:
        return Failure(item["failure"]["reason"], item["failure"]["message"], item["container"])
    found = failure_of(_container(item), memory_bytes)
    return found or Failure(Reason.SUPERVISOR_LOST, f"container `{item['container']}` ended in an unknown way")

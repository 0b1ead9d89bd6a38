"""How the end of a container is said, in the same words by every runtime."""

from __future__ import annotations

from rik.model.instance import ContainerState, Reason
from rik.model.resources import format_memory
from rik.runtime.base import Failure


def failure_of(container: ContainerState, memory_bytes: int = 0) -> Failure | None:
    """Why this container's end fails its instance, or None: it has not ended, or exited 0. `memory_bytes` is the
    instance's limit, if any.
    """
    if container.state != "exited" or (container.exit_code == 0 and not container.signal and not container.oom_killed):
        return None
    who = f"container `{container.name}`"
    after = _after(container)
    if container.oom_killed:
        limit = f" of {format_memory(memory_bytes)}" if memory_bytes else ""
        message = f"{who} was killed by the kernel because the memory limit{limit} was reached{after}"
        return Failure(Reason.OUT_OF_MEMORY, message, container.name)
    if container.signal:
        return Failure(Reason.KILLED, f"{who} was killed by {container.signal}{after}", container.name)
    if container.exit_code is None:
        return Failure(Reason.SUPERVISOR_LOST, f"{who} ended{after}, and its exit code is not known", container.name)
    return Failure(Reason.CONTAINER_EXITED, f"{who} exited with code {container.exit_code}{after}", container.name)


def _after(container: ContainerState) -> str:
    if container.started_at is None or container.ended_at is None:
        return ""
    seconds = max(0, container.ended_at - container.started_at) / 1000
    return f" after {seconds:.1f} s" if seconds < 120 else f" after {seconds / 60:.0f} min"

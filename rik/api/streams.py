"""What logs, exec and attach share: whose streams they are, and how their websockets end."""

from __future__ import annotations

import trio

from rik.errors import NotFound
from rik.model.instance import Instance
from rik.model.workload import POD

CLOSE_NORMAL = 1000
CLOSE_GOING_AWAY = 1001
CLOSE_POLICY = 1008
CLOSE_FAILED = 1011

GOODBYE = "the server is shutting down"


def container_names(record: Instance) -> list[str]:
    if record.containers:
        return [container.name for container in record.containers]
    if record.kind != POD:
        return []
    return [str(container["name"]) for container in record.spec.get("containers") or ()]


def check_container(record: Instance, container: str) -> None:
    names = container_names(record)
    if container and names and container not in names:
        raise NotFound(f"instance {record.name} has no container {container!r}; it has {', '.join(names)}")


async def cancel_when(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


def close_reason(text: str) -> str:
    """A close frame holds at most 123 bytes of reason."""
    return text.encode()[:120].decode(errors="ignore")

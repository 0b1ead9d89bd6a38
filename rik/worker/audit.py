"""Every resource of RIK's on this host, with its owner: found by looking at the host, and compared with the journal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from rik.model.node import HostResource
from rik.runtime.base import Runtime

OWN = "rik"


class Audited(msgspec.Struct, frozen=True):
    """`orphans` are those of `resources` that nobody owns."""

    resources: tuple[HostResource, ...]
    orphans: tuple[HostResource, ...]

    def render(self) -> dict[str, Any]:
        """Ready for JSON, every field spelled out."""
        asdict = msgspec.structs.asdict
        return {
            "resources": [asdict(item) for item in self.resources],
            "orphans": [asdict(item) for item in self.orphans],
        }


async def audit(
    runtimes: Sequence[Runtime],
    owned: Callable[[], frozenset[str]],
    *,
    data_dir: Path | None = None,
    sockets: Iterable[HostResource] = (),
) -> Audited:
    """`owned` are the uids in the journal at the time of the call; `sockets` the worker's own, with their owners."""
    found = await _look(runtimes, owned)
    if found.orphans:
        # An instance that ended or began during the look can seem to be nobody's: what is, is so a second time.
        first = {(resource.kind, resource.name) for resource in found.orphans}
        again = await _look(runtimes, owned)
        orphans = tuple(resource for resource in again.orphans if (resource.kind, resource.name) in first)
        new = [resource for resource in again.orphans if resource not in orphans]
        resources = tuple(resource for resource in again.resources if resource not in new)
        found = Audited(resources, orphans)
    own = tuple(_own_files(data_dir)) if data_dir is not None else ()
    return Audited((*found.resources, *sockets, *own), found.orphans)


async def _look(runtimes: Sequence[Runtime], owned: Callable[[], frozenset[str]]) -> Audited:
    before = owned()
    found = [resource for runtime in runtimes for resource in await runtime.inventory()]
    known = before | owned() | {OWN}
    resources = [_judge(resource, known) for resource in dict.fromkeys(found)]
    return Audited(tuple(resources), tuple(resource for resource in resources if not resource.owner))


def _judge(resource: HostResource, known: frozenset[str]) -> HostResource:
    if resource.owner in known or _is_log(resource):
        return resource
    carried = f"carries the uid {resource.owner}, which is not in the journal" if resource.owner else ""
    detail = "; ".join(part for part in (resource.detail, carried) if part)
    return msgspec.structs.replace(resource, owner="", detail=detail)


def _is_log(resource: HostResource) -> bool:
    """Logs outlive their instance on purpose, up to the log retention."""
    return resource.kind == "log"


def _own_files(data_dir: Path) -> Iterable[HostResource]:
    for path in sorted(data_dir.glob("worker.db*")):
        yield HostResource("file", str(path), OWN, "the worker's journal")
    logs = data_dir / "logs"
    if logs.is_dir():
        for path in sorted(logs.iterdir()):
            yield HostResource("log", str(path), path.name, "kept output")

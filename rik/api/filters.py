"""Which instances a list or a watch is about. Pure."""

from __future__ import annotations

import msgspec

from rik.model import change as changes
from rik.model.change import Change
from rik.model.instance import Instance, Status


class Filter(msgspec.Struct, frozen=True):
    """Everything that is set must match; `workload` and `node` are names or ids, no `statuses` means all."""

    statuses: frozenset[Status] = frozenset()
    workload: str = ""
    node: str = ""
    namespace: str = ""

    def matches(self, record: Instance) -> bool:
        return (
            (not self.statuses or record.status in self.statuses)
            and (not self.workload or self.workload in (record.workload, record.workload_id))
            and (not self.node or self.node in (record.node, record.node_id))
            and (not self.namespace or self.namespace == record.namespace)
        )

    def shows(self, change: Change) -> str | None:
        """How a watcher sees the change of an instance: put when it matches after it, delete when it matched only
        before, None when it is none of its business."""
        record = change.value
        if change.kind != changes.INSTANCE or not isinstance(record, Instance):
            return None
        if change.op == changes.DELETE:
            return changes.DELETE if self.matches(record) else None
        if self.matches(record):
            return changes.PUT
        return changes.DELETE if change.before is not None and self.matches(change.before) else None

"""Records as bytes: MessagePack by msgspec, a type per kind of object. `revision` is the row's, never the bytes'."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from rik.model.change import INSTANCE, NODE, POSTMORTEM, WORKLOAD, Change, Event, Object, RecordedEvent
from rik.model.instance import Instance
from rik.model.node import Node
from rik.model.workload import Workload

_TYPES: dict[str, type[Object]] = {WORKLOAD: Workload, INSTANCE: Instance, NODE: Node, POSTMORTEM: Instance}
_ENCODER = msgspec.msgpack.Encoder()
_DECODERS: dict[str, msgspec.msgpack.Decoder[Any]] = {
    kind: msgspec.msgpack.Decoder(record) for kind, record in _TYPES.items()
}
_EVENT_DECODER = msgspec.msgpack.Decoder(Event)

O = TypeVar("O", bound=Object)  # noqa: E741 - an Object


class Row(msgspec.Struct, frozen=True):
    """A change ready to be written: everything but its revision, encoded where the caller waits."""

    kind: str
    op: str
    key: str
    at: int
    value: bytes
    before: bytes | None
    event: bytes | None
    event_uid: str
    event_namespace: str
    name: str
    namespace: str
    ended_at: int


def encode(change: Change) -> Row:
    """Raises TypeError for a value that cannot be written, ValueError for a change that makes no sense."""
    check(change)
    instance = change.value if isinstance(change.value, Instance) else None
    return Row(
        kind=change.kind,
        op=change.op,
        key=change.key,
        at=change.at,
        value=_ENCODER.encode(change.value),
        before=_ENCODER.encode(change.before) if change.before is not None else None,
        event=_ENCODER.encode(change.event) if change.event is not None else None,
        event_uid=change.event.uid if change.event else "",
        event_namespace=change.event.namespace if change.event else "",
        name=instance.name if instance else "",
        namespace=instance.namespace if instance else "",
        ended_at=instance.updated_at if instance else 0,
    )


def check(change: Change) -> None:
    """Raises ValueError when kind, op, key and value do not belong together."""
    if change.op not in ("put", "delete") or not isinstance(change.value, _TYPES.get(change.kind, ())):
        raise ValueError(f"no such change: {change.op} {change.kind} {type(change.value).__name__}")
    identity = change.value.uid if isinstance(change.value, Instance) else change.value.id
    if change.key != identity:
        raise ValueError(f"the change of {identity} has the key {change.key!r}")


def decode(kind: str, data: bytes, revision: int) -> Any:
    """Raises msgspec.MsgspecError, or KeyError for an unknown kind."""
    return at_revision(_DECODERS[kind].decode(data), revision)


def decode_before(data: bytes | None) -> Instance | None:
    """The previous record keeps the revision it had."""
    record: Instance | None = _DECODERS[INSTANCE].decode(data) if data is not None else None
    return record


def decode_event(data: bytes | None) -> Event | None:
    return _EVENT_DECODER.decode(data) if data is not None else None


def recorded(revision: int, at: int, data: bytes) -> RecordedEvent:
    return RecordedEvent(revision=revision, at=at, event=_EVENT_DECODER.decode(data))


def at_revision(record: O, revision: int) -> O:
    """The record with the revision of its row."""
    return record if record.revision == revision else msgspec.structs.replace(record, revision=revision)

"""The change of one object: what the store makes durable, the api's view applies, and watchers see."""

from __future__ import annotations

import msgspec

from rik.model.instance import Instance, Record
from rik.model.node import Node
from rik.model.workload import Workload

WORKLOAD = "workload"
INSTANCE = "instance"
NODE = "node"
POSTMORTEM = "postmortem"

PUT = "put"
DELETE = "delete"

Object = Workload | Instance | Node


class Event(Record, frozen=True):
    """A line of `events.list`, told along with the change that it is about: `object` is "instance/NAME" and the like.

    `uid` is the instance's identity, "" for other objects; `type` is Normal or Warning.
    """

    object: str
    type: str
    reason: str
    message: str
    namespace: str = ""
    node: str = ""
    uid: str = ""


class RecordedEvent(Record, frozen=True):
    """An event as it is kept, with the revision and time of its change."""

    revision: int
    at: int
    event: Event


class Change(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """One change of one object; `revision` is 0 until the store has given it one.

    `kind` is workload, instance, node or postmortem (an `Instance` that ended, keyed by uid); `key` is the object's
    identity: a workload's or node's id, an instance's uid. `value` is the new record, or of a delete the last one.
    `before` is the previous record of an instance, so that a filter can tell "matched before".
    """

    kind: str
    op: str
    key: str
    value: Object
    at: int
    before: Instance | None = None
    event: Event | None = None
    revision: int = 0

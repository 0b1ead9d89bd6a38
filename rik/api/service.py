"""What each call means, without HTTP: questions to the view and the store, commands to the scheduler.

Raises `Refused` and `Unavailable` (see `rik.errors`); the routes turn them into problem documents.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from typing import Any

import msgspec
import trio

import rik
from rik.api.advice import image_warnings
from rik.api.filters import Filter
from rik.api.session import Session
from rik.api.view import View, order
from rik.api.watch import Hub
from rik.environment import Environment
from rik.errors import BadRequest, Conflict, NodeUnavailable, NotFound
from rik.link.base import Stream, StreamFailed
from rik.link.switchboard import Switchboard
from rik.messages import (
    Audit,
    CreateInstances,
    CreateWorkload,
    DeleteInstance,
    DeleteWorkload,
    Doctor,
    Explain,
    ReadStats,
    StreamRequest,
)
from rik.model import document
from rik.model.change import RecordedEvent
from rik.model.instance import Instance
from rik.model.limits import MAX_REPLICAS, NAME
from rik.model.node import Node, NodeStatus
from rik.model.public import (
    render_instance_in_full,
    render_instance_with_spec,
    render_node,
    render_workload,
)
from rik.model.resources import Resources
from rik.model.workload import DEFAULT_NAMESPACE, Workload
from rik.settings import ApiSettings
from rik.store.base import Store

MAX_EVENTS = 1_000
MAX_EVENTS_SINCE = 10_000
# Checking a larger document takes so many milliseconds that a thread is given it.
SMALL_DOCUMENT_BYTES = 16_384
# How long a worker may take to answer stats, an audit or a doctor's round (which tries every runtime).
STREAM_DEADLINE_S = 30.0


class ClusterInfo(msgspec.Struct, frozen=True):
    """What does not change while the host runs: the cluster's id, the primary that leads, and the kind of store."""

    id: str
    leader: str
    store: str


class Page(msgspec.Struct, frozen=True):
    """Some of a list; `following` is the token that continues it, "" at its end."""

    entries: list[dict[str, Any]]
    following: str = ""


class Service:
    """The use cases. Holds no state of its own."""

    def __init__(
        self,
        environment: Environment,
        settings: ApiSettings,
        info: ClusterInfo,
        view: View,
        session: Session,
        store: Store,
        switchboard: Switchboard,
    ) -> None:
        self.environment = environment
        self.settings = settings
        self.info = info
        self.view = view
        self.session = session
        self.store = store
        self.switchboard = switchboard
        self.hub = Hub(view, store, settings)
        self.closing = trio.Event()

    # --- workloads ---

    def list_workloads(self) -> list[dict[str, Any]]:
        records = sorted(self.view.workloads.values(), key=lambda record: (record.created_at, record.id))
        return [render_workload(record) for record in records]

    async def create_workload(self, data: bytes, media_type: str, *, dry_run: bool) -> dict[str, Any]:
        """`{"id", "warnings"}`; with `dry_run` nothing is created and the id is ""."""
        if len(data) <= SMALL_DOCUMENT_BYTES:
            validated = _validate(data, media_type)
        else:
            validated = await trio.to_thread.run_sync(_validate, data, media_type)
        identity = ""
        if dry_run:
            self._check_name(validated.document["name"])
        else:
            identity = await self.session.ask(CreateWorkload(validated.document, DEFAULT_NAMESPACE))
        return {"id": identity, "warnings": list(validated.warnings)}

    def _check_name(self, name: str) -> None:
        """What the scheduler would say of the name. Raises Conflict."""
        known = self.view.workload(name, DEFAULT_NAMESPACE)
        if known is not None and known.name == name:
            raise Conflict(
                f"there is a workload {name!r} already",
                next_step=f"choose another name, or `rik delete workload {name}` first",
            )

    async def delete_workload(self, id_or_name: str) -> None:
        await self.session.ask(DeleteWorkload(id_or_name, DEFAULT_NAMESPACE))

    def workload_instances(self, id_or_name: str) -> list[dict[str, Any]]:
        view = self.view
        return [
            render_instance_with_spec(record, view.progress.get(record.uid))
            for record in view.instances_of(self._workload(id_or_name).id)
        ]

    def _workload(self, id_or_name: str) -> Workload:
        record = self.view.workload(id_or_name, DEFAULT_NAMESPACE)
        if record is None:
            raise NotFound(f"there is no workload {id_or_name!r}", next_step="see `rik get workloads`")
        return record

    # --- instances ---

    def list_instances(self, wanted: Filter, limit: int | None, token: str) -> Page:
        """Oldest first. The token names the last entry shown, so that what comes or goes meanwhile does no harm."""
        after = _decode_token(token) if token else (-1, "")
        found = [record for record in self.view.instances.values() if order(record) > after and wanted.matches(record)]
        found.sort(key=order)
        following = ""
        if limit is not None and len(found) > limit:
            found = found[:limit]
            following = _encode_token(order(found[-1]))
        summary = self.view.summary
        return Page([{"id": record.name, "name": record.name, "value": summary(record)} for record in found], following)

    async def find_instance(self, name_or_uid: str) -> Instance:
        """The listed one, else the latest post-mortem of that name, or the one of that uid. Raises NotFound."""
        record = self.view.instance(name_or_uid, DEFAULT_NAMESPACE)
        if record is None:
            record = await self.store.postmortem(name_or_uid, DEFAULT_NAMESPACE)
        if record is None:
            raise NotFound(
                f"there is no instance {name_or_uid!r}, and no record of one that ended",
                next_step="see `rik get instances`",
            )
        return record

    async def show_instance(self, name_or_uid: str) -> dict[str, Any]:
        record = await self.find_instance(name_or_uid)
        return render_instance_in_full(record, self.view.progress.get(record.uid))

    async def create_instances(self, workload: str, name: str, replicas: int) -> list[str]:
        """The names of the new instances."""
        if not 1 <= replicas <= MAX_REPLICAS:
            raise BadRequest(f"`replicas` must be between 1 and {MAX_REPLICAS}, not {replicas}")
        if name and replicas > 1:
            raise BadRequest("a `name` is for one instance; leave it out to create several")
        if name and not NAME.fullmatch(name):
            raise BadRequest(
                f"{name[:80]!r} is no name for an instance: 1–63 of a-z, 0-9 and -, beginning and ending with a letter "
                "or digit"
            )
        names: list[str] = await self.session.ask(CreateInstances(workload, DEFAULT_NAMESPACE, name, replicas))
        return list(names)

    async def delete_instance(self, name_or_uid: str) -> None:
        await self.session.ask(DeleteInstance(name_or_uid, DEFAULT_NAMESPACE))

    async def explain_instance(self, name_or_uid: str) -> Any:
        """The scheduler's answer (see the schema `Explanation`); of one that is gone what was decided then."""
        if self.view.instance(name_or_uid, DEFAULT_NAMESPACE) is None:
            record = await self.find_instance(name_or_uid)
            return {
                "id": record.name,
                "instance": record.name,
                "uid": record.uid,
                "status": record.status.value,
                "reason": record.reason,
                "message": record.message,
                "node": record.node,
                "decision": record.decision,
                "now": "it has ended and is no longer listed",
                "policy": "",
                "nodes": [],
            }
        return await self.session.ask(Explain(name_or_uid, DEFAULT_NAMESPACE))

    async def instance_stats(self, name_or_uid: str) -> msgspec.Raw:
        record = await self.find_instance(name_or_uid)
        if not record.node_id or record.status.final:
            raise NotRunning(record)
        return await self.ask_worker(record.node_id, record.node, ReadStats(record.uid))

    # --- events, nodes, cluster ---

    async def list_events(self, name_or_uid: str, since: int, limit: int | None) -> Sequence[RecordedEvent]:
        """Without a limit the latest `MAX_EVENTS`; after a revision many more, so that who polls misses none. It is a
        list like the others: an instance that never was has no events."""
        try:
            uid = (await self.find_instance(name_or_uid)).uid if name_or_uid else ""
        except NotFound:
            return []
        bound = limit or (MAX_EVENTS_SINCE if since else MAX_EVENTS)
        return await self.store.events(uid=uid, since=since, limit=bound)

    def list_nodes(self) -> list[dict[str, Any]]:
        allocated = self.view.allocated()
        nodes = sorted(self.view.nodes.values(), key=lambda node: (node.name, node.created_at, node.id))
        return [
            {"id": node.id, "name": node.name, "value": render_node(node, *allocated.get(node.id, (Resources(), 0)))}
            for node in nodes
        ]

    def show_node(self, id_or_name: str) -> dict[str, Any]:
        node = self.node(id_or_name)
        return render_node(node, *self.view.allocated().get(node.id, (Resources(), 0)))

    async def audit_node(self, id_or_name: str) -> msgspec.Raw:
        node = self.node(id_or_name)
        return await self.ask_worker(node.id, node.name, Audit())

    async def doctor_node(self, id_or_name: str) -> msgspec.Raw:
        node = self.node(id_or_name)
        return await self.ask_worker(node.id, node.name, Doctor())

    def node(self, id_or_name: str) -> Node:
        """Raises NotFound."""
        node = self.view.node(id_or_name)
        if node is None:
            raise NotFound(f"there is no node {id_or_name!r}", next_step="see `rik get nodes`")
        return node

    def cluster_info(self) -> dict[str, Any]:
        nodes = self.view.nodes.values()
        return {
            "id": self.info.id,
            "version": rik.__version__,
            "revision": self.view.revision,
            "leader": self.info.leader,
            "nodes": {"total": len(nodes), "ready": sum(node.status is NodeStatus.READY for node in nodes)},
            "store": self.info.store,
        }

    # --- workers ---

    async def open_stream(self, node_id: str, node_name: str, request: StreamRequest) -> Stream:
        """Raises NodeUnavailable, naming the node as the user knows it."""
        try:
            return await self.switchboard.open(node_id, request)
        except NodeUnavailable:
            raise NodeUnavailable(f"node {node_name} is not connected", next_step="see `rik get nodes`") from None

    async def ask_worker(
        self, node_id: str, node_name: str, request: StreamRequest, deadline_s: float = STREAM_DEADLINE_S
    ) -> msgspec.Raw:
        """The one JSON text that answers the request. Raises NodeUnavailable, and StreamFailed when it is refused."""
        stream = await self.open_stream(node_id, node_name, request)
        parts: list[bytes] = []
        try:
            with trio.fail_after(deadline_s):
                while (frame := await stream.receive()) is not None:
                    parts.append(frame)
        except trio.TooSlowError:
            raise NodeUnavailable(f"node {node_name} did not answer within {deadline_s:.0f} s") from None
        finally:
            with trio.CancelScope(shield=True):
                await stream.aclose()
        data = b"".join(parts)
        if not data:
            raise NodeUnavailable(f"node {node_name} disconnected before it answered")
        return msgspec.Raw(data)


class NotRunning(StreamFailed):
    """What was asked makes sense only of an instance that runs."""

    def __init__(self, record: Instance) -> None:
        why = f" ({record.reason})" if record.reason else ""
        super().__init__(f"instance {record.name} is {record.status.value}{why}, not Running", status=409)
        self.next_step = f"see `rik describe instance {record.name}`" if record.status.final else "wait until it runs"


def _validate(data: bytes, media_type: str) -> document.Validated:
    validated = document.validate(document.decode(data, media_type))
    return msgspec.structs.replace(validated, warnings=(*validated.warnings, *image_warnings(validated.document)))


def _encode_token(key: tuple[int, str]) -> str:
    return base64.urlsafe_b64encode(f"{key[0]}:{key[1]}".encode()).decode().rstrip("=")


def _decode_token(token: str) -> tuple[int, str]:
    try:
        at, _, uid = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)).decode().partition(":")
        return int(at), uid
    except (ValueError, binascii.Error):
        raise BadRequest("the query parameter `continue` is not a token that this API has given") from None

"""`rik get workloads|instances|nodes|events`: lists, single records, and lists that are followed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click

from rik.cli.amounts import age, amount, cores
from rik.cli.client import Answer, Client, Query
from rik.cli.command import (
    ResourceGroup,
    complete_instances,
    complete_nodes,
    complete_workloads,
    connect,
    filter_options,
    filters,
    format_option,
)
from rik.cli.errors import RequestRefused
from rik.cli.output import Column, show
from rik.cli.polling import poll
from rik.cli.spelling import spelled
from rik.cli.story import remarkable, short_ports, status_phrase

MESSAGE_CHARS = 80


def _runtimes(node: dict[str, Any]) -> str:
    good = [str(runtime.get("name")) for runtime in node.get("runtimes") or () if runtime.get("ok")]
    return ",".join(good) or "none"


INSTANCE_COLUMNS = (
    Column("Name", lambda record: record["name"]),
    Column("Workload", lambda record: record.get("workload") or ""),
    Column("Status", status_phrase, styled=True),
    Column("Node", lambda record: record.get("node") or ""),
    Column("Age", lambda record: age(record.get("created_at")), ages=True),
    Column("Ports", short_ports),
    Column("Why", lambda record: shortened(remarkable(record))),
    Column("Kind", lambda record: record.get("kind") or "", wide=True),
    Column("IP", lambda record: record.get("ip") or "", wide=True),
    Column("Updated", lambda record: age(record.get("updated_at")), wide=True, ages=True),
    Column("Uid", lambda record: record.get("uid") or "", wide=True),
)

WORKLOAD_COLUMNS = (
    Column("Name", lambda entry: entry["name"]),
    Column("Kind", lambda entry: entry["value"].get("kind") or ""),
    Column("Replicas", lambda entry: str(entry["value"].get("replicas") or 1), right=True),
    Column("Runs", lambda entry: shortened(_runs(entry["value"]))),
    Column("Id", lambda entry: entry["id"], wide=True),
)

NODE_COLUMNS = (
    Column("Name", lambda node: node["name"]),
    Column("Status", lambda node: node.get("status") or "", styled=True),
    Column("Runtimes", _runtimes),
    Column("CPU", lambda node: _share(node, "cpu_millis", cores), right=True),
    Column("Memory", lambda node: _share(node, "memory_bytes", lambda value: amount(value, "bytes")), right=True),
    Column("Instances", lambda node: str(node.get("instances", "")), right=True),
    Column("Heartbeat", lambda node: age(node.get("heartbeat_at")), ages=True),
    Column("Roles", lambda node: ",".join(node.get("roles") or ()), wide=True),
    Column("Labels", lambda node: ",".join(f"{k}={v}" for k, v in (node.get("labels") or {}).items()), wide=True),
    Column("Version", lambda node: node.get("version") or "", wide=True),
    Column("Id", lambda node: node.get("id") or "", wide=True),
)

EVENT_COLUMNS = (
    Column("At", lambda event: age(event.get("at")), ages=True),
    Column("Type", lambda event: event.get("type") or "", styled=True),
    Column("Object", lambda event: event.get("object") or ""),
    Column("Reason", lambda event: event.get("reason") or ""),
    Column("Message", lambda event: event.get("message") or ""),
    Column("Node", lambda event: event.get("node") or "", wide=True),
    Column("Revision", lambda event: str(event.get("revision", "")), wide=True, right=True),
)

watch_option = click.option("--watch", "follow", is_flag=True, help="Keep following what changes.")


@click.group(cls=ResourceGroup)
def get() -> None:
    """List workloads, instances, nodes or events, or show one of them."""


@get.command("instances", short_help="All instances, or one of them.")
@click.argument("name", required=False, shell_complete=complete_instances)
@format_option
@filter_options
@watch_option
def get_instances(
    name: str | None, style: str, status: str | None, workload: str | None, node: str | None, follow: bool
) -> int | None:
    """All instances, or the one called NAME (its post-mortem, when it is no longer listed)."""
    client = connect()
    if follow:
        from rik.cli.watch import follow_instances

        return follow_instances(client, filters(status, workload, node), style, name)
    if name is not None:
        answer = client.get("instances.get", name)
        show(answer, style, lambda record: [record], INSTANCE_COLUMNS)
    else:
        answer = client.get("instances.list", query=filters(status, workload, node))
        show(answer, style, values, INSTANCE_COLUMNS)
    return None


@get.command("workloads")
@click.argument("name", required=False, shell_complete=complete_workloads)
@format_option
@watch_option
def get_workloads(name: str | None, style: str, follow: bool) -> None:
    """All workloads, or the one called NAME."""
    client = connect()
    rows: Callable[[Any], Sequence[Any]] = lambda entries: entries if name is None else [entries]  # noqa: E731
    _once_or_again(
        follow, style, lambda: _listed(client, "workloads.list", {}, name, "workload"), rows, WORKLOAD_COLUMNS
    )


@get.command("nodes")
@click.argument("name", required=False, shell_complete=complete_nodes)
@format_option
@click.option(
    "--status",
    type=click.Choice(["Ready", "NotReady"], case_sensitive=False),
    metavar="STATUS",
    help="Only those in this status: Ready or NotReady.",
)
@watch_option
def get_nodes(name: str | None, style: str, status: str | None, follow: bool) -> None:
    """All nodes, or the one called NAME."""
    client = connect()

    def ask() -> Answer:
        if name is not None:
            return client.get("nodes.get", name)
        answer = client.get("nodes.list")
        return kept(answer, lambda entry: values([entry])[0].get("status") == status) if status else answer

    _once_or_again(follow, style, ask, values if name is None else lambda node: [node], NODE_COLUMNS)


@get.command("events", short_help="What happened, in all or to one instance.")
@click.argument("instance", required=False, shell_complete=complete_instances)
@format_option
@click.option("--node", help="Only those of this node.", shell_complete=complete_nodes)
@watch_option
def get_events(instance: str | None, style: str, node: str | None, follow: bool) -> None:
    """What happened, oldest first: all of it, or what concerns one INSTANCE."""
    client = connect()

    seen = 0

    def ask() -> Answer:
        nonlocal seen
        answer = client.get("events.list", query={"instance": instance, "since": seen or None})
        if instance and not follow and not answer.json():
            client.get("instances.get", instance)  # a mistyped name is said to be one
        if follow:
            seen = max((event["revision"] for event in answer.json()), default=seen)
        return kept(answer, lambda event: event.get("node") == node) if node else answer

    _once_or_again(follow, style, ask, lambda events: events, EVENT_COLUMNS)


def kept(answer: Answer, wanted: Callable[[Any], bool]) -> Answer:
    """The entries of a list answer for which `wanted` is true, each exactly as the API wrote it."""
    import msgspec

    raws = msgspec.json.decode(answer.body, type=list[msgspec.Raw])
    chosen = [bytes(raw) for raw in raws if wanted(msgspec.json.decode(raw))]
    return Answer(answer.status, b"[" + b",".join(chosen) + b"]")


def find(client: Client, call: str, name: str, what: str) -> Answer:
    """The entry of a list that is called `name` or has it as its id, exactly as the API wrote it."""
    import msgspec

    answer = client.get(call)
    names = []
    for raw in msgspec.json.decode(answer.body, type=list[msgspec.Raw]):
        entry = msgspec.json.decode(raw)
        if name in (entry["name"], entry["id"]):
            return Answer(answer.status, bytes(raw))
        names.append(entry["name"])
    from difflib import get_close_matches

    near = get_close_matches(name, names, n=1)
    raise RequestRefused(
        f"there is no {what} `{name}`",
        status=404,
        next_step=f"did you mean `{near[0]}`?" if near else f"{spelled(f'get {what}s')} lists those there are",
    )


def _listed(client: Client, call: str, query: Query, name: str | None, what: str) -> Answer:
    return client.get(call, query=query) if name is None else find(client, call, name, what)


def _once_or_again(
    follow: bool,
    style: str,
    ask: Callable[[], Answer],
    rows: Callable[[Any], Sequence[Any]],
    columns: Sequence[Column],
) -> None:
    if follow:
        poll(ask, style, rows, columns)
    else:
        show(ask(), style, rows, columns)


def values(entries: Any) -> list[Any]:
    """The records of a list answer, whether they stand alone or as the `value` of `{id, name, value}`."""
    return [entry.get("value", entry) for entry in entries]


def shortened(text: str) -> str:
    """At most MESSAGE_CHARS of it, for a column of a table."""
    return text if len(text) <= MESSAGE_CHARS else text[: MESSAGE_CHARS - 1] + "…"


def _runs(document: dict[str, Any]) -> str:
    spec = document.get("spec") or {}
    if document.get("kind") == "Function":
        return str(((spec.get("function") or {}).get("execution") or {}).get("rootfs") or "")
    return ", ".join(
        f"{container.get('name')} ({container.get('image')})" for container in spec.get("containers") or ()
    )


def _share(node: dict[str, Any], what: str, words: Callable[[Any], str]) -> str:
    """`allocated/capacity`."""
    allocated, capacity = (node.get("allocated") or {}).get(what), (node.get("capacity") or {}).get(what)
    return f"{words(allocated or 0)}/{words(capacity or None)}"

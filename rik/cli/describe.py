"""`rik describe workload|instance|node`: everything that is known, in the order in which it is asked for at 3 a.m."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import click

from rik.cli.amounts import absolute, age, amount, between
from rik.cli.command import (
    ResourceGroup,
    complete_instances,
    complete_nodes,
    complete_workloads,
    connect,
    format_option,
    plural,
)
from rik.cli.get import INSTANCE_COLUMNS, find
from rik.cli.imagestory import image_lines, next_for_image, wrong_references
from rik.cli.output import Column, aligned, clean, paint, paint_status, say, write_document
from rik.cli.spelling import spelled
from rik.cli.story import ending, is_final, port_line, progress_in_full, tail_lines

LABEL_WIDTH = 13
LAST_EVENTS = 20
LAST_LINES = 20
ROWS_MAX = 50

CONTAINER_COLUMNS = (
    Column("Name", lambda c: c.get("name") or ""),
    Column("Image", lambda c: c.get("image") or ""),
    Column("State", lambda c: c.get("state") or ""),
    Column("End", ending),
    Column("Started", lambda c: absolute(c.get("started_at"))),
    Column("Ended", lambda c: absolute(c.get("ended_at"))),
    Column("Ran for", lambda c: between(c.get("started_at"), c.get("ended_at"), datetime.now(UTC))),
)


@click.group(cls=ResourceGroup)
def describe() -> None:
    """Everything about one workload, instance or node."""


@describe.command("instance")
@click.argument("name", shell_complete=complete_instances)
@format_option
def describe_instance(name: str, style: str) -> None:
    """Where an instance stands and how it came there; the post-mortem of one that is gone."""
    client = connect()
    answer = client.get("instances.get", name)
    if write_document(answer, style):
        return
    record = answer.json()
    uid = str(record.get("uid") or name)
    listed = client.get("instances.list", query={"workload": record.get("workload_id")}).json()
    post_mortem = not any(entry["value"].get("uid") == uid for entry in listed)
    events = client.get("events.list", query={"instance": uid}).json()
    for line in instance_lines(record, events, post_mortem=post_mortem, server_host=client.cluster.host):
        say(line)


@describe.command("workload")
@click.argument("name", shell_complete=complete_workloads)
@format_option
def describe_workload(name: str, style: str) -> None:
    """A workload's definition and its instances."""
    client = connect()
    answer = find(client, "workloads.list", name, "workload")
    if write_document(answer, style):
        return
    entry = answer.json()
    instances = (client.get("workloads.instances", entry["id"]).json() or {}).get("instances") or []
    for line in workload_lines(entry, instances):
        say(line)


@describe.command("node")
@click.argument("name", shell_complete=complete_nodes)
@format_option
def describe_node(name: str, style: str) -> None:
    """What a node has, what it can do, why it cannot do the rest, and what runs on it."""
    client = connect()
    answer = client.get("nodes.get", name)
    if write_document(answer, style):
        return
    node = answer.json()
    entries = client.get("instances.list", query={"node": node["name"]}).json()
    for line in node_lines(node, [entry["value"] for entry in entries]):
        say(line)


def instance_lines(
    record: dict[str, Any],
    events: Sequence[dict[str, Any]] = (),
    *,
    post_mortem: bool = False,
    server_host: str = "127.0.0.1",
) -> list[str]:
    """The description of an instance, as lines."""
    lines = list(_instance_head(record, post_mortem))
    lines += _section("History", _history(record))
    containers = record.get("containers") or ()
    if containers:
        lines += _section("Containers", aligned(CONTAINER_COLUMNS, _cells(CONTAINER_COLUMNS, containers)))
    lines += _section("Images", image_lines(record))
    ports = record.get("ports") or ()
    if is_final(record):
        lines += _section(
            "Ports it had", [f"{port.get('port')} -> {port.get('targetPort')}/{port.get('protocol')}" for port in ports]
        )
    else:
        lines += _section("Ports", [port_line(port, server_host) for port in ports])
    lines += _section("Limits and isolation", _enforced(record.get("enforced") or {}))
    tail = list(record.get("log_tail") or ())[-LAST_LINES:]
    lines += _section("Last output", tail_lines(tail, times=True))
    lines += _section("Events", _events(events))
    lines += ["", *(f"next: {step}" for step in _next_steps(record, post_mortem))]
    return lines


def _instance_head(record: dict[str, Any], post_mortem: bool) -> Iterable[str]:
    status = str(record.get("status"))
    name = record.get("name")
    yield _field("Name", name)
    if post_mortem:
        yield _field("Post-mortem", "it is not listed any more; this is the record that was kept of it")
    yield _field("Status", paint_status(status), raw=True)
    if record.get("reason"):
        yield _field("Reason", paint(clean(record["reason"]), "red" if status == "Failed" else "", bold=True), raw=True)
    if record.get("message"):
        yield _field("Message", record["message"])
    if record.get("step") and status in ("Pending", "Creating"):
        yield _field("Step", progress_in_full(record))
    elif record.get("step") and status == "Failed":
        yield _field("Last step", record["step"])
    if record.get("stale_since") and not is_final(record):
        yield _field("Silent since", f"{absolute(record['stale_since'])} ({age(record['stale_since'])})")
    yield _field("Workload", f"{record.get('workload')} ({record.get('kind')}, {record.get('workload_id')})")
    yield _field("Node", record.get("node") or "none")
    if record.get("decision"):
        yield _field("Placement", record["decision"])
    if record.get("ip"):
        yield _field("IP", record["ip"])
    yield _field("Uid", record.get("uid"))
    yield _field("Created", f"{absolute(record.get('created_at'))} ({age(record.get('created_at'))})")
    yield _field("Updated", f"{absolute(record.get('updated_at'))} ({age(record.get('updated_at'))})")


def _history(record: dict[str, Any]) -> list[str]:
    """A line per status: when, which, for how long, and why."""
    steps = list(record.get("history") or ())
    lines = []
    for index, step in enumerate(steps):
        following = steps[index + 1].get("at") if index + 1 < len(steps) else None
        lasted = between(step.get("at"), following, None if is_final(step) else datetime.now(UTC))
        status = str(step.get("status"))
        shown = paint_status(status) + " " * max(0, 10 - len(status))
        lines.append(f"{absolute(step.get('at'))}  {shown}  {lasted:>9}  {clean(step.get('message') or '')}".rstrip())
    return lines


def _enforced(enforced: dict[str, Any]) -> list[str]:
    width = max((len(name) for name in enforced), default=0)
    lines = []
    for name, value in enforced.items():
        if value is True:
            lines.append(f"{name:<{width}}  enforced")
        else:
            lines.append(f"{name:<{width}}  {paint('not enforced', 'yellow')}{f': {clean(value)}' if value else ''}")
    return lines


def _events(events: Sequence[dict[str, Any]]) -> list[str]:
    lines = [f"({len(events) - LAST_EVENTS} earlier ones left out)"] if len(events) > LAST_EVENTS else []
    for event in events[-LAST_EVENTS:]:
        kind = str(event.get("type") or "")
        shown = paint_status(kind) + " " * max(0, 7 - len(kind))
        told = ": ".join(clean(event[key]) for key in ("reason", "message") if event.get(key))
        lines.append(f"{absolute(event.get('at'))}  {shown}  {told}")
    return lines


def _next_steps(record: dict[str, Any], post_mortem: bool) -> list[str]:
    name = record.get("name")
    status = record.get("status")
    steps = [spelled(f"logs {record.get('uid') if post_mortem else name}")]
    if status in ("Pending", "Failed") and not any(c.get("started_at") for c in record.get("containers") or ()):
        steps = [spelled(f"explain {name}")] if not post_mortem else steps
        steps = next_for_image(record) or steps
        if record.get("node") and not wrong_references(record):
            steps.append(spelled(f"doctor --node {record['node']}"))
    elif status == "Running":
        steps.append(spelled(f"exec -it {name} -- sh"))
    if record.get("reason") == "DestroyFailed":
        steps.append(spelled("audit"))
    return steps


def workload_lines(entry: dict[str, Any], instances: Sequence[dict[str, Any]]) -> list[str]:
    """The description of a workload, as lines."""
    document = entry["value"]
    spec = document.get("spec") or {}
    lines = [
        _field("Name", entry["name"]),
        _field("Id", entry["id"]),
        _field("Kind", document.get("kind")),
        _field("Replicas", f"{document.get('replicas')} expected (deployed by `rik create instance`)"),
    ]
    for container in spec.get("containers") or ():
        lines += _section(f"Container {container.get('name')}", _settings(container, ("name",)))
    if spec.get("function"):
        lines += _section("Function", _settings(spec["function"], ()))
    rest = {key: value for key, value in spec.items() if key not in ("containers", "function")}
    lines += _section("Settings", _settings(rest, ()))
    if instances:
        head = f"Instances ({len(instances)}{f', the first {ROWS_MAX}' if len(instances) > ROWS_MAX else ''})"
        columns = [column for column in INSTANCE_COLUMNS if not column.wide]
        lines += _section(head, aligned(columns, _cells(columns, instances[:ROWS_MAX])))
    else:
        lines += ["", "no instances", f"next: {spelled('create instance -w')} {entry['name']}"]
    return lines


def node_lines(node: dict[str, Any], instances: Sequence[dict[str, Any]]) -> list[str]:
    """The description of a node, as lines."""
    silent = f", not heard of since {absolute(node.get('heartbeat_at'))}" if node.get("status") == "NotReady" else ""
    lines = [
        _field("Name", node.get("name")),
        _field("Status", paint_status(str(node.get("status"))) + silent, raw=True),
        _field("Roles", ", ".join(node.get("roles") or ()) or "-"),
        _field("Labels", ", ".join(f"{k}={v}" for k, v in (node.get("labels") or {}).items()) or "-"),
        _field("Version", node.get("version")),
        _field("Id", node.get("id")),
        _field("Heartbeat", f"{absolute(node.get('heartbeat_at'))} ({age(node.get('heartbeat_at'))})"),
    ]
    lines += _section("Runtimes", _capabilities(node.get("runtimes") or ()))
    lines += _section("Resources", _resource_lines(node.get("allocated") or {}, node.get("capacity") or {}))
    lines += _section("Metrics", _settings(node.get("metrics") or {}, ()))
    running = [record for record in instances if not is_final(record)]
    if running:
        head = f"Instances ({plural(len(running), 'instance')})"
        columns = [column for column in INSTANCE_COLUMNS if not column.wide]
        lines += _section(head, aligned(columns, _cells(columns, running[:ROWS_MAX])))
    return [*lines, "", f"next: {spelled('doctor --node')} {node.get('name')}"]


def _capabilities(runtimes: Iterable[dict[str, Any]]) -> list[str]:
    lines = []
    for runtime in runtimes:
        word = paint("yes", "green") if runtime.get("ok") else paint("no", "red") + " "
        kinds = f" ({', '.join(runtime['kinds'])})" if runtime.get("kinds") else ""
        reason = f"  {clean(runtime['reason'])}" if runtime.get("reason") else ""
        lines.append(f"{runtime.get('name')!s:<10}  {word}{kinds}{reason}")
        for name, value in (runtime.get("limits") or {}).items():
            if value is not True:
                lines.append(f"{'':<10}  {name} is not enforced{f': {clean(value)}' if value else ''}")
    return lines


def _resource_lines(allocated: dict[str, Any], capacity: dict[str, Any]) -> list[str]:
    rows: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
        ("cpu", "cpu_millis", lambda value: "-" if value is None else f"{value / 1000:g} cores"),
        ("memory", "memory_bytes", lambda value: amount(value, "bytes")),
        ("pids", "pids", amount),
    )
    return [
        f"{name:<6}  {words(allocated.get(key) or 0)} of {words(capacity.get(key) or None)} promised to instances"
        for name, key, words in rows
    ]


def _settings(values: dict[str, Any], without: Sequence[str]) -> list[str]:
    """`key  value` lines; what is nested is written as JSON."""
    import json

    shown = {key: value for key, value in values.items() if key not in without}
    width = max((len(key) for key in shown), default=0)
    lines = []
    for key, value in shown.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        if key.endswith("_bytes") and isinstance(value, int):
            text = amount(value, "bytes")
        lines.append(f"{key:<{width}}  {clean(text)}")
    return lines


def _cells(columns: Sequence[Column], rows: Iterable[Any]) -> list[list[str]]:
    return [[clean(column.cell(row)) for column in columns] for row in rows]


def _field(label: str, value: object, *, raw: bool = False) -> str:
    text = str(value) if raw else clean("-" if value in (None, "") else value)
    return f"{label + ':':<{LABEL_WIDTH}} {text}"


def _section(title: str, lines: Sequence[str]) -> list[str]:
    return ["", paint(title, "", bold=True), *(f"  {line}" for line in lines)] if lines else []

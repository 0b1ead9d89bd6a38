"""`rik top`: what nodes and instances use right now."""

from __future__ import annotations

from typing import Any

import click

from rik.cli.amounts import age, amount, cores, duration
from rik.cli.client import Client
from rik.cli.command import ResourceGroup, connect
from rik.cli.errors import RequestRefused
from rik.cli.get import values
from rik.cli.output import Column, note, say, show, write_exactly, write_table

style_option = click.option(
    "-o", "--output", "style", type=click.Choice(["table", "json"]), default="table", help="How to print it."
)

NODE_COLUMNS = (
    Column("Name", lambda node: node["name"]),
    Column("Status", lambda node: node.get("status") or "", styled=True),
    Column("CPU", lambda node: _percent(node, "cpu_percent"), right=True),
    Column("Load", lambda node: _metric(node, "load_1m"), right=True),
    Column("Memory", lambda node: _metric(node, "memory_used_bytes", "bytes"), right=True),
    Column("Of", lambda node: amount((node.get("capacity") or {}).get("memory_bytes") or None, "bytes"), right=True),
    Column("Disk free", lambda node: _metric(node, "disk_free_bytes", "bytes"), right=True),
    Column("Instances", lambda node: str(node.get("instances", "")), right=True),
    Column("Heartbeat", lambda node: age(node.get("heartbeat_at"))),
)

INSTANCE_COLUMNS = (
    Column("Instance", lambda row: row["instance"]),
    Column("Container", lambda row: row.get("name") or ""),
    Column("CPU (cores)", lambda row: cores(row.get("cpu_millis")), right=True),
    Column("CPU time", lambda row: _seconds(row.get("cpu_seconds")), right=True),
    Column("Memory", lambda row: amount(row.get("memory_bytes"), "bytes"), right=True),
    Column("Pids", lambda row: amount(row.get("pids")), right=True),
    Column("Received", lambda row: amount(row.get("network_rx_bytes"), "bytes"), right=True),
    Column("Sent", lambda row: amount(row.get("network_tx_bytes"), "bytes"), right=True),
)


@click.group(cls=ResourceGroup)
def top() -> None:
    """What nodes or instances use right now."""


@top.command("nodes")
@style_option
def top_nodes(style: str) -> None:
    """Each node's processors, memory and disk."""
    show(connect().get("nodes.list"), style, values, NODE_COLUMNS)


@top.command("instances")
@click.option("--workload", help="Only those of this workload.")
@click.option("--node", help="Only those on this node.")
@style_option
def top_instances(workload: str | None, node: str | None, style: str) -> None:
    """Each running instance's containers; "-" where the node cannot tell."""
    client = connect()
    query = {"status": "Running", "workload": workload, "node": node}
    names = [str(entry["name"]) for entry in client.get("instances.list", query=query).json()]
    found = [(name, stats) for name in names if (stats := _stats(client, name)) is not None]
    if style == "json":
        write_exactly(b"{" + b",".join(_member(name, body) for name, body in found) + b"}")
        return
    if not names:
        say("nothing runs")
        return
    import json

    rows = [{"instance": name, **row} for name, body in found for row in json.loads(body).get("containers") or ()]
    rows.sort(key=lambda row: -(row.get("cpu_millis") or 0))
    write_table(INSTANCE_COLUMNS, rows)


def _stats(client: Client, name: str) -> bytes | None:
    """An instance's statistics; None when it ended between the two questions."""
    try:
        return client.get("instances.stats", name).body
    except RequestRefused as error:
        if error.status not in (404, 409, 503):
            raise
        if error.status == 503:
            note(f"warning: nothing is known of {name}: {error.message}")
        return None


def _member(name: str, body: bytes) -> bytes:
    import json

    return json.dumps(name).encode() + b":" + body


def _metric(node: dict[str, Any], name: str, unit: str = "") -> str:
    return amount((node.get("metrics") or {}).get(name), unit)


def _seconds(value: Any) -> str:
    return duration(value) if isinstance(value, int | float) else "-"


def _percent(node: dict[str, Any], name: str) -> str:
    value = (node.get("metrics") or {}).get(name)
    return f"{value:.0f} %" if isinstance(value, int | float) else "-"

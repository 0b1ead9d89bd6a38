"""`rik explain`: the scheduler's decision about an instance, node by node."""

from __future__ import annotations

import click

from rik.cli.command import ClientCommand, connect, format_option, instance_argument
from rik.cli.output import Column, clean, paint_status, say, write_document, write_table
from rik.cli.spelling import spelled
from rik.cli.story import FINAL

COLUMNS = (
    Column("Node", lambda node: node["name"]),
    Column("Fits", lambda node: "yes" if node.get("fits") else "no"),
    Column("Why", lambda node: node.get("why") or ""),
)


@click.command(cls=ClientCommand)
@instance_argument
@format_option
def explain(instance: str, style: str) -> None:
    """Why an instance is where it is, or has no place yet, and what every node says to it now."""
    answer = connect().get("instances.explain", instance)
    if write_document(answer, style):
        return
    told = answer.json()
    where = f" on {told['node']}" if told.get("node") else ""
    say(f"{clean(told.get('instance'))}: {paint_status(str(told.get('status')))}{clean(where)}")
    if told.get("decision"):
        say(clean(told["decision"]))
    if told.get("nodes"):
        say()
        write_table(COLUMNS, told["nodes"])
    elif told.get("status") not in FINAL:
        say(f"there are no nodes: start one with `{spelled('serve')}`")

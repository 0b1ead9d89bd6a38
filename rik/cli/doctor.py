"""`rik doctor` and `rik audit`: what hosts can do, and what RIK holds on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from rik.cli.client import Client
from rik.cli.command import ClientCommand, complete_nodes, connect, plural
from rik.cli.errors import EXIT_FAILED, RequestRefused, Unreachable
from rik.cli.get import shortened
from rik.cli.output import Column, clean, note, paint, say, write_exactly, write_table

FIND_TIMEOUT_S = 3.0

node_option = click.option("--node", help="Only this node.", shell_complete=complete_nodes)
data_option = click.option(
    "--data-dir", type=click.Path(path_type=Path), help="Without a server: the data directory to look at on this host."
)
style_option = click.option(
    "-o", "--output", "style", type=click.Choice(["table", "json"]), default="table", help="How to print it."
)

RESOURCE_COLUMNS = (
    Column("Kind", lambda item: item.get("kind") or ""),
    Column("Name", lambda item: item.get("name") or ""),
    Column("Owner", lambda item: item.get("owner") or ""),
    Column("Detail", lambda item: shortened(item.get("detail") or "")),
)


@click.command(cls=ClientCommand)
@node_option
@data_option
@style_option
def doctor(node: str | None, data_dir: Path | None, style: str) -> None:
    """What each node can do, and why not when it cannot. Without a server it looks at this host."""
    bodies = None if data_dir else ask_nodes(connect(), "nodes.doctor", node)
    if bodies is None:
        from rik.host import local_doctor

        reports = [{"node": "this host", "checks": local_doctor(data_dir)}]
    else:
        reports = decoded(bodies)
    if style == "json":
        write_json(bodies, reports)
        return
    for index, report in enumerate(reports):
        if index:
            say()
        for line in doctor_lines(report):
            say(line)


@click.command(cls=ClientCommand)
@node_option
@data_option
@style_option
def audit(node: str | None, data_dir: Path | None, style: str) -> int:
    """Every resource RIK holds on the hosts, with its owner; exit code 1 when something belongs to nobody."""
    bodies = None if data_dir else ask_nodes(connect(), "nodes.audit", node)
    if bodies is None:
        from rik.host import local_audit

        reports = [{"node": "this host", **local_audit(data_dir)}]
    else:
        reports = decoded(bodies)
    orphans = [(report["node"], orphan) for report in reports for orphan in report.get("orphans") or ()]
    if style == "json":
        write_json(bodies, reports)
    else:
        for report in reports:
            say(paint(f"{report['node']}: {plural(len(report.get('resources') or ()), 'resource')}", "", bold=True))
            if report.get("resources"):
                write_table(RESOURCE_COLUMNS, report["resources"])
    for where, orphan in orphans:
        detail = f" ({clean(orphan['detail'])})" if orphan.get("detail") else ""
        note(f"orphan on {where}: {orphan.get('kind')} {clean(orphan.get('name'))}{detail}")
    if orphans:
        note(
            f"error: {plural(len(orphans), 'resource')} belonging to nobody\nnext: restart rik serve, which sweeps them"
        )
        return EXIT_FAILED
    if style != "json":
        say("no orphans")
    return 0


def ask_nodes(client: Client, call: str, node: str | None) -> dict[str, bytes] | None:
    """The answer of each node, or of the one named, exactly as the API wrote it; None when no server answers. Raises
    RequestRefused when every node refuses: nothing is known then."""
    if node is not None:
        return {node: client.get(call, node).body}
    try:
        entries = client.get("nodes.list", timeout_s=FIND_TIMEOUT_S).json()
    except Unreachable as error:
        note(f"{error.message}: looking at this host")
        return None
    bodies = {}
    refusals = {}
    for entry in entries:
        try:
            bodies[str(entry["name"])] = client.get(call, entry["name"]).body
        except RequestRefused as error:
            if error.status != 503:
                raise
            refusals[str(entry["name"])] = error
    if refusals and not bodies:
        raise next(iter(refusals.values()))
    for name, refusal in refusals.items():
        note(f"warning: {name} cannot be asked: {refusal.message}")
    return bodies


def decoded(bodies: dict[str, bytes]) -> list[dict[str, Any]]:
    """The reports as data; each says whose it is."""
    return [{"node": name, **json.loads(body)} for name, body in bodies.items()]


def write_json(bodies: dict[str, bytes] | None, reports: list[dict[str, Any]]) -> None:
    """Of one node exactly the API's bytes; of several an object by their names."""
    if bodies is None:
        bodies = {str(report["node"]): json.dumps(report).encode() for report in reports}
    if len(bodies) == 1:
        write_exactly(next(iter(bodies.values())))
    else:
        members = (json.dumps(name).encode() + b":" + body for name, body in bodies.items())
        write_exactly(b"{" + b",".join(members) + b"}")


def doctor_lines(report: dict[str, Any]) -> list[str]:
    """A node's checks: what is there, and for what is not, why and what to do about it."""
    checks = report.get("checks") or []
    width = max((len(str(check.get("name"))) for check in checks), default=0)
    lines = [paint(f"{report.get('node')}", "", bold=True)]
    for check in checks:
        mark = paint("ok", "green") if check.get("ok") else paint("no", "red")
        lines.append(f"  {mark}  {check.get('name')!s:<{width}}  {clean(check.get('detail') or '')}".rstrip())
        if not check.get("ok") and check.get("next"):
            lines.append(f"      {'':<{width}}  next: {clean(check['next'])}")
    missing = sum(1 for check in checks if not check.get("ok"))
    lines.append(f"  {len(checks) - missing} of {plural(len(checks), 'check')} passed")
    return lines

"""`rik create workload|instance`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from rik.cli.board import board_for
from rik.cli.client import Client
from rik.cli.command import ResourceGroup, complete_workloads, connect
from rik.cli.document import file_option, parse, read_source
from rik.cli.errors import EXIT_FAILED, RequestRefused
from rik.cli.output import note, say, warn
from rik.cli.spelling import spelled
from rik.cli.story import explanation
from rik.model.limits import MAX_REPLICAS

if TYPE_CHECKING:
    from rik.cli.follow import Followed


@click.group(cls=ResourceGroup)
def create() -> None:
    """Create a workload from a file, or instances of a workload."""


@create.command("workload")
@file_option()
@click.option("-q", "--quiet", is_flag=True, help="Print the id alone.")
@click.option("--dry-run", is_flag=True, help="Only have the document checked.")
def create_workload(path: str, quiet: bool, dry_run: bool) -> None:
    """Store the definition in FILE. Nothing is deployed by it."""
    source = read_source(path)
    client = connect()
    query = {"dryRun": "true"} if dry_run else {}
    try:
        made = client.post_bytes("workloads.create", source.body, source.media_type, query=query).json()
    except RequestRefused as error:
        if error.status == 409 and not error.next_step:
            error.next_step = f"choose another name; {spelled('get workloads')} shows those that are taken"
        raise
    warn(made.get("warnings") or ())
    if dry_run:
        say(f"{source.name} is a valid workload")
    elif quiet:
        say(made["id"])
    else:
        say(f"workload created: {made['id']}")
        note(f"next: {spelled('create instance -w')} {parse(source)['name']}")


@create.command("instance")
@click.option(
    "-w",
    "--workload",
    "--workload-id",
    "workload",
    required=True,
    metavar="WORKLOAD",
    shell_complete=complete_workloads,
    help="Name or id of the workload.",
)
@click.option(
    "-r", "--replicas", type=click.IntRange(1, MAX_REPLICAS), default=1, show_default=True, help="How many instances."
)
@click.option("--name", help="The instance's name [default: one is made up].")
@click.option("--wait", is_flag=True, help="Follow them until they run, or have ended.")
@click.option("-q", "--quiet", is_flag=True, help="Print the names alone.")
def create_instance(workload: str, replicas: int, name: str | None, wait: bool, quiet: bool) -> int:
    """Deploy one or more instances of a workload; prints their names."""
    client = connect()
    revision = current_revision(client) if wait else None
    names = create_instances(client, workload, replicas, name)
    if quiet or not wait:
        for made in names:
            say(made)
    if not wait:
        return 0
    from rik.cli.stream import run_live

    followed = run_live(_settle, client, workload, names, revision, quiet)
    failed = [followed.latest[made] for made in names if followed.latest.get(made, {}).get("status") == "Failed"]
    return report_failures(client, failed)


def current_revision(client: Client) -> int:
    """Where the cluster is now: a watch from here on shows everything that is done next."""
    return int(client.get("cluster.info").json()["revision"])


def create_instances(client: Client, workload: str, replicas: int, name: str | None = None) -> list[str]:
    """The names of the new instances. Raises RequestRefused with a next step."""
    body = {"workload_id": workload, "replicas": replicas} | ({"name": name} if name else {})
    try:
        names = client.post("instances.create", body).json()
    except RequestRefused as error:
        if error.status == 404 and not error.next_step:
            error.next_step = f"{spelled('get workloads')} lists those there are"
        raise
    return [str(made) for made in names]


def report_failures(client: Client, failed: list[dict[str, object]], *, with_output: bool = True) -> int:
    """Explains each failed instance on standard error; the exit code."""
    from rik.cli.follow import full_record

    for record in failed:
        for line in explanation(full_record(client, record), with_output=with_output):
            note(line)
    return EXIT_FAILED if failed else 0


async def _settle(client: Client, workload: str, names: list[str], revision: int | None, quiet: bool) -> Followed:
    from rik.cli.follow import PATIENCE_S, Followed, next_frame
    from rik.cli.stream import watching

    followed = Followed(names)
    async with watching(client.cluster, {"workload": workload}, since=revision, patience_s=PATIENCE_S) as frames:
        with board_for(names, sys.stderr if quiet else sys.stdout) as board:
            while not followed.all_settled:
                for record in followed.apply(await next_frame(frames)):
                    board.show(record)
    return followed

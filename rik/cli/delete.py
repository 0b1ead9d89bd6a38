"""`rik delete workload|instance`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import click

from rik.cli.client import Client
from rik.cli.command import ResourceGroup, complete_instances, complete_workloads, connect
from rik.cli.errors import EXIT_FAILED, RequestRefused
from rik.cli.get import find
from rik.cli.output import note, say
from rik.cli.spelling import spelled
from rik.cli.story import is_final, why

wait_option = click.option("--wait", is_flag=True, help="Return when they are gone, not when that was accepted.")


@click.group(cls=ResourceGroup)
def delete() -> None:
    """Delete workloads or instances."""


@delete.command("instance")
@click.argument("names", nargs=-1, required=True, metavar="NAME…", shell_complete=complete_instances)
@wait_option
def delete_instance(names: tuple[str, ...], wait: bool) -> int:
    """Stop instances and remove their records. What is known of them stays readable: rik describe instance NAME."""
    client = connect()
    return _delete_all(client, names, delete_one_instance, "is being deleted", set(names) if wait else None, "name")


@delete.command("workload")
@click.argument("names", nargs=-1, required=True, metavar="NAME…", shell_complete=complete_workloads)
@wait_option
def delete_workload(names: tuple[str, ...], wait: bool) -> int:
    """Delete workloads, and with each of them its instances."""
    client = connect()
    wanted = set(names)
    if wait:  # instances name their workload by its name and its id
        wanted |= {
            str(entry[key])
            for entry in client.get("workloads.list").json()
            for key in ("id", "name")
            if entry["id"] in names or entry["name"] in names
        }
    return _delete_all(client, names, delete_one_workload, "deleted", wanted if wait else None, "workload")


def delete_one_instance(client: Client, name: str) -> None:
    """Has the instance stopped and removed; returns once that was accepted."""
    client.post("instances.delete", {"id": name})


def delete_one_workload(client: Client, name: str) -> None:
    """Deletes the workload and, with it, its instances; returns once that was accepted."""
    try:
        client.post("workloads.delete", {"name": name})
    except RequestRefused as error:
        if error.status != 404:
            raise
        entry = find(client, "workloads.list", name, "workload").json()  # its id, or a did-you-mean
        client.post("workloads.delete", {"id": entry["id"]})


def _delete_all(
    client: Client,
    names: Sequence[str],
    delete_one: Callable[[Client, str], None],
    done: str,
    awaited: set[str] | None,
    key: str,
) -> int:
    """Deletes each, going on after a refusal; `done` tells of each. `awaited` are the values of the instances' `key`
    (or their uids) that are waited for, None for not waiting."""

    accepted: list[str] = []

    def act() -> int:
        code = 0
        for name in dict.fromkeys(names):
            try:
                delete_one(client, name)
            except RequestRefused as error:
                note(f"error: {error.message}" + (f"\nnext: {error.next_step}" if error.next_step else ""))
                code = EXIT_FAILED
            else:
                accepted.append(name)
                if awaited is None:
                    say(f"{name} {done}")
        return code

    if awaited is None:
        return act()
    from rik.cli.stream import run_live

    code = run_live(delete_and_wait, client, act, lambda record: record[key] in awaited or record["uid"] in awaited)
    if key == "workload":  # the instances were told of as they went
        for name in accepted:
            say(f"{name} {done}")
    return code


async def delete_and_wait(
    client: Client, act: Callable[[], int], concerned: Callable[[dict[str, Any]], bool], quiet: bool = False
) -> int:
    """Runs `act`, then follows the instances that it `concerned` until the last of them is gone; the exit code.

    The watch starts first, so that no change is missed. What cannot be destroyed ends the wait with code 1.
    """
    from rik.cli.follow import PATIENCE_S, next_frame
    from rik.cli.stream import Frame, watching

    def tell(record: dict[str, Any]) -> None:
        if not quiet:
            say(f"{record['name']} deleted")

    left: dict[str, dict[str, Any]] = {}
    code, acted = 0, False
    watch: AbstractAsyncContextManager[Any] = watching(client.cluster, patience_s=PATIENCE_S)
    async with watch as frames:
        while left or not acted:
            frame: Frame = await next_frame(frames)
            if frame["type"] == "snapshot":
                present = {record["uid"]: record for record in frame["instances"] if concerned(record)}
                for uid in [uid for uid in left if uid not in present]:
                    tell(left.pop(uid))
                left.update(present)
                if not acted:
                    code, acted = act(), True
                    if code:
                        return code
            elif frame["type"] == "instance" and frame["instance"]["uid"] in left:
                record = frame["instance"]
                if frame["op"] == "delete":
                    tell(record)
                    del left[record["uid"]]
                elif is_final(record) and record.get("reason") == "DestroyFailed":
                    note(f"error: {record['name']} could not be destroyed: {why(record)}\nnext: {spelled('audit')}")
                    del left[record["uid"]]
                    code = EXIT_FAILED
    return code

"""`rik run`: from a file or an image to running instances, followed to their end."""

from __future__ import annotations

import secrets
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, NamedTuple

import click

from rik.cli.board import board_for
from rik.cli.client import Client
from rik.cli.command import ClientCommand, connect, listed, plural
from rik.cli.create import create_instances, current_revision, report_failures
from rik.cli.delete import delete_and_wait, delete_one_instance, delete_one_workload
from rik.cli.document import for_image, looks_like_file, named_by_content, parse, read_source, with_command
from rik.cli.errors import EXIT_INTERRUPTED, CommandError, RequestRefused, Unreachable, Usage
from rik.cli.output import note, paint, warn
from rik.cli.spelling import spelled
from rik.cli.story import exit_code, is_final, port_place

STREAMS_MAX = 32  # instances whose output is shown at once; more would be unreadable, and a websocket each


class Prepared(NamedTuple):
    """The workload to run: `made` says that this command created it, `replicas` how many instances it wants."""

    name: str
    workload_id: str
    replicas: int
    made: bool


class Outcome(NamedTuple):
    """`records` are the last ones known, by name; `shown` the names whose output was streamed."""

    records: dict[str, dict[str, Any]]
    shown: frozenset[str]


@click.command(cls=ClientCommand, context_settings={"ignore_unknown_options": False})
@click.argument("target", metavar="FILE|IMAGE")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[-- COMMAND…]")
@click.option("--rm", "remove", is_flag=True, help="Delete what was made when it ends, and exit with its exit code.")
def run(target: str, command: tuple[str, ...], remove: bool) -> int:
    """Create a workload, start its replicas, follow them until they run, then stream their output.

    FILE is a workload document (- for standard input). An IMAGE becomes a Pod of one container. Ctrl-C leaves what runs
    running, except with --rm.
    """
    document, own_name = _document(target, command)
    client = connect()
    words = sys.stderr if remove else sys.stdout  # with --rm, standard output is the program's alone
    with _ended_like_ctrl_c():
        prepared = prepare(client, document, target, own_name, alone=remove)
        names: list[str] = []
        try:
            revision = current_revision(client)
            names = create_instances(client, prepared.workload_id, prepared.replicas)
            outcome = _followed(client, names, prepared, revision, words)
            failed = [record for record in outcome.records.values() if record.get("status") == "Failed"]
            code = _report(client, failed, outcome)
            if remove:
                code = next((exit_code(record) for record in failed if exit_code(record)), code)
        except KeyboardInterrupt:
            code = EXIT_INTERRUPTED
            if not remove:
                _tell_detached(names, words)
        finally:
            if remove:
                _clean_up(client, prepared, names)
    return code


def _document(target: str, command: tuple[str, ...]) -> tuple[dict[str, Any], bool]:
    """The document to run, and whether its name is the user's own rather than made up here."""
    if not looks_like_file(target):
        return for_image(target, command), False
    source = read_source(target)
    document = parse(source)
    if not isinstance(document, dict):
        raise Usage(f"{source.name} is no workload document: it holds {type(document).__name__}, not an object")
    if command:
        return with_command(document, command, source.name), False
    return document, True


def prepare(client: Client, document: dict[str, Any], target: str, own_name: bool, *, alone: bool = False) -> Prepared:
    """Creates the workload, or finds the one of this name with this very document.

    When another document has the name, a name that the user wrote is refused, and one made up here gets a suffix. With
    `alone` a workload under a name made up here is shared with no other command: who makes it removes it at its end.
    """
    try:
        return _create(client, document)
    except RequestRefused as error:
        if error.status != 409:
            raise
    if alone and not own_name:
        nobodys = named_by_content({**document, "run": secrets.token_hex()})["name"]
        return _create(client, {**document, "name": nobodys})
    found = _same(client, document)
    if found is not None:
        return found
    if not own_name:
        other = named_by_content(document)
        try:
            return _create(client, other)
        except RequestRefused as error:
            if error.status != 409:
                raise
        found = _same(client, other)
        if found is not None:
            return found
    name = document["name"]
    raise CommandError(
        f"there is a workload `{name}` already, and its document is another than {target}",
        next_step=f"give this one another name, or remove the other: {spelled(f'delete workload {name}')}",
    )


def _create(client: Client, document: dict[str, Any]) -> Prepared:
    answer = client.post("workloads.create", document).json()
    warn(answer.get("warnings") or ())
    return Prepared(str(document["name"]), str(answer["id"]), int(document.get("replicas") or 1), made=True)


def _same(client: Client, document: dict[str, Any]) -> Prepared | None:
    """The stored workload of the same name, when its document is the same as this one."""
    from rik.model.document import validate

    for entry in client.get("workloads.list").json():
        if entry["name"] == document.get("name"):
            stored = entry["value"]
            if stored == validate(document).document:
                return Prepared(entry["name"], entry["id"], int(stored.get("replicas") or 1), made=False)
    return None


def _followed(client: Client, names: list[str], prepared: Prepared, revision: int, words: IO[str]) -> Outcome:
    from rik.cli.follow import full_record
    from rik.cli.stream import run_live

    outcome = run_live(_follow, client, names, prepared.workload_id, revision, words)
    for name, record in outcome.records.items():
        if not is_final(record):  # removed by somebody else while we were not looking: the post-mortem knows
            outcome.records[name] = dict(full_record(client, record))
    return outcome


async def _follow(client: Client, names: list[str], workload_id: str, revision: int, words: IO[str]) -> Outcome:
    """To Running or a final status, and then with their output to the end of all of them."""
    import trio

    from rik.cli.follow import PATIENCE_S, Followed, next_frame
    from rik.cli.stream import watching

    followed = Followed(names)
    shown: set[str] = set()
    async with watching(client.cluster, {"workload": workload_id}, since=revision, patience_s=PATIENCE_S) as frames:
        with board_for(names, words) as board:
            while not followed.all_settled:
                for record in followed.apply(await next_frame(frames)):
                    board.show(record)
        running = [name for name in names if not _never_ran(followed.latest[name])]
        for name in names:
            _tell_ports(client, followed.latest[name], words)
        if len(running) > STREAMS_MAX:
            click.echo(
                f"showing the output of {STREAMS_MAX} of {len(running)} instances; rik logs shows the others",
                file=words,
            )
            running = running[:STREAMS_MAX]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_stream_all, client, followed, running, shown)
            while not followed.all_over:
                followed.apply(await next_frame(frames))
    return Outcome(followed.latest, frozenset(shown))


async def _stream_all(client: Client, followed: Any, names: list[str], shown: set[str]) -> None:
    import trio

    from rik.cli.logs import LogPrinter
    from rik.cli.tail import follow_logs

    async def stream(name: str, colour: int) -> None:
        containers = [str(container.get("name")) for container in followed.latest[name].get("containers") or ()]
        write = LogPrinter(containers, instance=name if len(names) > 1 else "", colour=colour)

        def take(entries: Any) -> None:
            shown.add(name)
            write(entries)

        uid = str(followed.latest[name].get("uid") or name)
        try:
            await follow_logs(client, uid, {}, take)
        except Unreachable:
            raise
        except CommandError as error:
            note(f"warning: {error.message}")  # its output is lost to us, its fate is not

    async with trio.open_nursery() as nursery:
        for colour, name in enumerate(names):
            nursery.start_soon(stream, name, colour)


def _never_ran(record: dict[str, Any]) -> bool:
    """Whether it ended before any of its containers was started: there is no output to wait for."""
    return record.get("status") == "Failed" and not any(c.get("started_at") for c in record.get("containers") or ())


def _tell_ports(client: Client, record: dict[str, Any], words: IO[str]) -> None:
    if record.get("status") != "Running":
        return
    for port in record.get("ports") or ():
        place = port_place(port, client.cluster.host)
        click.echo(
            f"{record['name']}  {paint(place, 'cyan', stream=words)}  leads to {port.get('targetPort')}", file=words
        )


def _report(client: Client, failed: list[dict[str, Any]], outcome: Outcome) -> int:
    """Explains what failed; the last lines of output are left out where they were just streamed."""
    code = 0
    for record in failed:
        code = report_failures(client, [record], with_output=record["name"] not in outcome.shown) or code
    return code


def _tell_detached(names: list[str], words: IO[str]) -> None:
    if not names:
        return
    click.echo(f"\ndetached; {listed(names)} {'goes' if len(names) == 1 else 'go'} on running", file=words)
    click.echo(f"  see it:   {spelled('logs -f')} {names[0]}", file=words)
    click.echo(f"  stop it:  {spelled('delete instance')} {' '.join(names[:5])}", file=words)


def _clean_up(client: Client, prepared: Prepared, names: list[str]) -> None:
    """Deletes the instances, and the workload when this command made it and no other has instances of it, and waits
    until they are gone.
    """
    from rik.cli.stream import run_live

    def act() -> int:
        for name in names:
            _delete_quietly(delete_one_instance, client, name)
        if prepared.made and not _used_by_others(client, prepared, names):
            _delete_quietly(delete_one_workload, client, prepared.name)
        return 0

    try:
        run_live(delete_and_wait, client, act, lambda record: record["name"] in names, True)
    except KeyboardInterrupt:
        click.echo(f"not waiting for {plural(len(names), 'instance')} to be gone", err=True)
    except Unreachable as error:
        click.echo(f"warning: not removed: {listed(names)}: {error.message}", err=True)


def _used_by_others(client: Client, prepared: Prepared, names: list[str]) -> bool:
    """Whether a command that found the workload has instances of it, which would be destroyed with it."""
    entries = client.get("instances.list", query={"workload": prepared.workload_id}).json()
    return any(entry["name"] not in names for entry in entries)


def _delete_quietly(delete_one: Any, client: Client, name: str) -> None:
    try:
        delete_one(client, name)
    except RequestRefused as error:
        if error.status != 404:  # somebody else was faster
            click.echo(f"warning: {name} was not removed: {error.message}", err=True)


@contextmanager
def _ended_like_ctrl_c() -> Iterator[None]:
    """SIGTERM and SIGHUP end the command as Ctrl-C does, so that `--rm` removes what it made."""

    def interrupt(_number: int, _frame: object) -> None:
        signal.raise_signal(signal.SIGINT)

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""What commands have in common: where the client comes from, resource words, shared options, completion of names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from rik.cli.client import Client, Query
from rik.cli.config import load_cluster
from rik.cli.errors import CommandError
from rik.cli.main import no_such_command
from rik.cli.output import FORMATS
from rik.cli.spelling import SERVER, TOKEN
from rik.model.instance import Status

F = TypeVar("F", bound=Callable[..., Any])

COMPLETION_TIMEOUT_S = 1.0  # a shell that waits longer for a Tab feels broken
MAX_COMPLETIONS = 200


class ClientCommand(click.Command):
    """A command that talks to the server: takes `--server` and `--token` after its name, too."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name, key in (("server", SERVER), ("token", TOKEN)):
            option = click.Option([f"--{name}"], expose_value=False, hidden=True, callback=_keep_flag(key))
            self.params.append(option)


def _keep_flag(key: str) -> Callable[[click.Context, click.Parameter, str | None], None]:
    def keep(ctx: click.Context, _param: click.Parameter, value: str | None) -> None:
        if value is not None:
            ctx.meta[key] = value

    return keep


class ResourceGroup(click.Group):
    """A group whose commands are resources: the singular and the plural are the same word."""

    command_class = ClientCommand

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        for name in (cmd_name, f"{cmd_name}s", cmd_name.removesuffix("s")):
            if name in self.commands:
                return self.commands[name]
        return None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        known = self.get_command(ctx, args[0]) is not None or args[0].startswith("-")
        if not known and not ctx.resilient_parsing:
            raise no_such_command(args[0], self.commands, ctx)
        return super().resolve_command(ctx, args)


def connect() -> Client:
    """A client for the server that the command line, environment or configuration file names. Raises Usage."""
    ctx = click.get_current_context()
    client = Client(load_cluster(ctx.meta.get(SERVER), ctx.meta.get(TOKEN)))
    ctx.call_on_close(client.close)
    return client


def complete_instances(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Names of listed instances that start with `incomplete`; nothing when no server answers quickly."""
    return _complete("instances.list", ctx, incomplete)


def complete_workloads(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Names of workloads that start with `incomplete`; nothing when no server answers quickly."""
    return _complete("workloads.list", ctx, incomplete)


def complete_nodes(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Names of nodes that start with `incomplete`; nothing when no server answers quickly."""
    return _complete("nodes.list", ctx, incomplete)


def complete_images(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """References of images that nodes have, as above."""
    return _complete("images.list", ctx, incomplete)


def _complete(call: str, ctx: click.Context, incomplete: str) -> list[str]:
    try:
        client = Client(load_cluster(ctx.meta.get(SERVER), ctx.meta.get(TOKEN)))
        entries = client.get(call, timeout_s=COMPLETION_TIMEOUT_S).json()
        client.close()
    except CommandError:
        return []  # a Tab is no place for an error message
    names = (str(entry["name"]) for entry in entries)
    return [name for name in names if name.startswith(incomplete)][:MAX_COMPLETIONS]


def format_option(command: F) -> F:
    """`-o table|wide|json|yaml`; json is exactly what the API returned."""
    return click.option(
        "-o",
        "--output",
        "style",
        type=click.Choice(FORMATS),
        default="table",
        show_default=True,
        help="How to print it; json is exactly what the API returned.",
    )(command)


def filter_options(command: F) -> F:
    """`--status`, `--workload` and `--node`, as the API filters by them."""
    words = click.Choice([status.value for status in Status], case_sensitive=False)
    command = click.option("--node", help="Only those on this node.", shell_complete=complete_nodes)(command)
    command = click.option("--workload", help="Only those of this workload.", shell_complete=complete_workloads)(
        command
    )
    told = f"Only those in this status: {', '.join(status.value for status in Status)}."
    return click.option("--status", type=words, metavar="STATUS", help=told)(command)


def filters(status: str | None, workload: str | None, node: str | None) -> Query:
    return {"status": status, "workload": workload, "node": node}


def instance_argument(command: F) -> F:
    """INSTANCE: a name, or a uid."""
    return click.argument("instance", shell_complete=complete_instances)(command)


def plural(count: int, word: str, words: str = "") -> str:
    """`1 node`, `2 nodes`."""
    return f"{count} {word if count == 1 else words or word + 's'}"


def listed(names: Sequence[str], limit: int = 5) -> str:
    """`a, b, c and 4 more`."""
    head = ", ".join(names[:limit])
    return f"{head} and {len(names) - limit} more" if len(names) > limit else head

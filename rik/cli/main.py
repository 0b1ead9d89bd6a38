"""`rik`: the table of commands, the options that all of them share, and what becomes of errors.

Nothing but click is imported before a command is chosen: `rik --help` must answer within 120 ms.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple, NoReturn

import click

import rik
from rik.cli.errors import EXIT_BROKEN_PIPE, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE, CommandError
from rik.cli.spelling import SERVER, TOKEN
from rik.errors import RikError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

PROGRAM = "rik"
COMPLETE_VARIABLE = "_RIK_COMPLETE"
DEBUG_VARIABLE = "RIK_DEBUG"  # set to anything: internal errors show their traceback


class LazyCommand(NamedTuple):
    """`target` is `module:attribute`; `help` is the line that `rik --help` shows without importing it."""

    target: str
    help: str


COMMANDS = {
    "serve": LazyCommand("rik.cli.serve:serve", "Run a host: the API, the scheduler and a worker."),
    "run": LazyCommand("rik.cli.run:run", "Create a workload, start it, follow it and stream its output."),
    "create": LazyCommand("rik.cli.create:create", "Create a workload from a file, or instances of a workload."),
    "get": LazyCommand("rik.cli.get:get", "List workloads, instances, nodes or events, or show one."),
    "describe": LazyCommand("rik.cli.describe:describe", "Everything about one workload, instance or node."),
    "delete": LazyCommand("rik.cli.delete:delete", "Delete workloads or instances."),
    "logs": LazyCommand("rik.cli.logs:logs", "Show what an instance wrote."),
    "exec": LazyCommand("rik.cli.exec:exec_", "Run a command in a running instance."),
    "attach": LazyCommand("rik.cli.exec:attach", "Connect to the input and output of a running instance."),
    "watch": LazyCommand("rik.cli.watch:watch", "Follow every change of every instance."),
    "image": LazyCommand("rik.cli.image:image", "The images that nodes have: list, pull, prune."),
    "top": LazyCommand("rik.cli.top:top", "What nodes or instances use right now."),
    "explain": LazyCommand("rik.cli.explain:explain", "Why an instance is where it is, and why not elsewhere."),
    "doctor": LazyCommand("rik.cli.doctor:doctor", "What each node can do, and why not when it cannot."),
    "audit": LazyCommand("rik.cli.doctor:audit", "Every resource RIK holds on the hosts, with its owner."),
    "completion": LazyCommand("rik.cli.completion:completion", "Print the completion script of a shell."),
    "version": LazyCommand("rik.cli.version:version", "The version of this program and of the server."),
}
PLURALS = {"images": "image"}  # resources that have commands of their own are known by both words


class LazyGroup(click.Group):
    """A group that imports a command's module when the command is called, not before."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        known = COMMANDS.get(PLURALS.get(cmd_name, cmd_name))
        if known is None:
            return None
        module, _, attribute = known.target.partition(":")
        command = getattr(import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in (*COMMANDS, *PLURALS) and not args[0].startswith("-") and not ctx.resilient_parsing:
            raise no_such_command(args[0], COMMANDS, ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.help) for name, command in COMMANDS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        found = [CompletionItem(name, help=c.help) for name, c in COMMANDS.items() if name.startswith(incomplete)]
        return found + click.Command.shell_complete(self, ctx, incomplete)


def no_such_command(name: str, known: Iterable[str], ctx: click.Context) -> click.UsageError:
    """The usage error for an unknown command, with the nearest known ones."""
    from difflib import get_close_matches

    near = get_close_matches(name, list(known), n=2)
    hint = f", did you mean {' or '.join(f'`{item}`' for item in near)}?" if near else ""
    return click.UsageError(f"no such command `{name}`{hint}", ctx=ctx)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--server", metavar="URL", help="The API to talk to [default: RIK_CLUSTER_SERVER, then the config file].")
@click.option("--token", metavar="TOKEN", help="The credential to show it [default: RIK_CLUSTER_TOKEN, …].")
@click.version_option(version=rik.__version__, message="rik %(version)s")
@click.pass_context
def cli(ctx: click.Context, server: str | None, token: str | None) -> None:
    """Schedules containers and microVMs side by side under one API.

    A first look, with nothing installed: `rik serve --demo` in one terminal, `rik run examples/hello.json` in another.
    """
    ctx.meta[SERVER] = server
    ctx.meta[TOKEN] = token


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Runs the command line and ends the process with an exit code of the contract."""
    sys.exit(run_cli(sys.argv[1:] if argv is None else argv))


def run_cli(argv: Sequence[str]) -> int:
    """The exit code of one command line. Whatever goes wrong becomes `error: …` on standard error, no traceback."""
    _mend_standard_streams()
    try:
        code = _invoke(argv)
        sys.stdout.flush()
        return code
    except click.exceptions.Exit as error:
        return error.exit_code
    except BrokenPipeError:
        return _leave_quietly()
    except (KeyboardInterrupt, click.Abort):
        if sys.stderr.isatty():
            click.echo(err=True)  # the terminal has shown ^C; the prompt gets a line of its own
        return EXIT_INTERRUPTED
    except click.ClickException as error:
        return _report_click(error)
    except RikError as error:
        return _report(error)
    except Exception as error:  # the outermost edge: a bug in the program, shown as one
        if os.environ.get(DEBUG_VARIABLE):
            raise
        return _report(
            CommandError(
                f"internal error: {type(error).__name__}: {error}",
                next_step=f"this is a fault of RIK; {DEBUG_VARIABLE}=1 shows where",
            )
        )


def _invoke(argv: Sequence[str]) -> int:
    """Parses and runs; click's own `main` is not used, since it has its own words for Ctrl-C and for closed pipes."""
    instruction = os.environ.get(COMPLETE_VARIABLE)
    if instruction:
        from click.shell_completion import shell_complete

        return shell_complete(cli, {}, PROGRAM, COMPLETE_VARIABLE, instruction)
    with cli.make_context(PROGRAM, list(argv)) as ctx:
        result = cli.invoke(ctx)
    return result if isinstance(result, int) else 0


def _mend_standard_streams() -> None:
    """Those that were closed lead nowhere, and what an odd locale cannot write is replaced: neither is our business."""
    if sys.stdin is None:
        sys.stdin = open(os.devnull)  # noqa: SIM115  (to the end of the process)
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (to the end of the process)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115  (to the end of the process)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _report(error: RikError) -> int:
    lines = [f"error: {error.message}"]
    if isinstance(error, CommandError):
        lines.extend(f"  {line}" for line in error.details)
    if error.next_step:
        lines.append(f"next: {error.next_step}")
    _say_error("\n".join(lines))
    return error.exit_code if isinstance(error, CommandError) else EXIT_FAILED


def _report_click(error: click.ClickException) -> int:
    if type(error).__name__ == "NoArgsIsHelpError":  # click's way to ask for the help text
        _say_error(error.format_message())
        return EXIT_USAGE
    message = error.format_message()
    lines = [f"error: {message[:1].lower() + message[1:] if message[1:2].islower() else message}"]
    context = getattr(error, "ctx", None)
    if isinstance(error, click.UsageError) and context is not None:
        lines.append(f"next: {context.command_path} --help")
    _say_error("\n".join(lines))
    return EXIT_USAGE if isinstance(error, click.UsageError) else error.exit_code


def _say_error(text: str) -> None:
    with suppress(BrokenPipeError):  # nobody reads: the exit code says it
        sys.stdout.flush()
    with suppress(BrokenPipeError):
        click.echo(text, err=True)


def _leave_quietly() -> int:
    """The reader of our output is gone (`| head`): nothing more to say, and nothing left to flush at exit."""
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    return EXIT_BROKEN_PIPE

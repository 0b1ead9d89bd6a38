"""`rik completion`: the script that a shell needs to complete commands, options and names."""

from __future__ import annotations

import click

from rik.cli.errors import CommandError
from rik.cli.output import say

SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    r"""Print the completion script of SHELL.

    \b
    bash: eval "$(rik completion bash)" in ~/.bashrc
    zsh:  eval "$(rik completion zsh)" in ~/.zshrc
    fish: rik completion fish > ~/.config/fish/completions/rik.fish
    """
    from click.shell_completion import get_completion_class

    from rik.cli.main import COMPLETE_VARIABLE, PROGRAM, cli

    made = get_completion_class(shell)
    if made is None:
        raise CommandError(f"there is no completion for {shell}")
    try:
        say(made(cli, {}, PROGRAM, COMPLETE_VARIABLE).source())
    except RuntimeError as error:  # click looks at the version of the bash that is installed
        raise CommandError(str(error)) from error

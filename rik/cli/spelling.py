"""How a command is to be typed, when one is suggested."""

from __future__ import annotations

import os

import click

PROGRAM_VARIABLE = "RIK_PROGRAM"  # what stands for `rik` where it is not installed: `python3 rik.py`
SERVER = "rik.server"  # the key of --server in the context's meta
TOKEN = "rik.token"


def spelled(command: str) -> str:
    """`rik COMMAND`, with the program and the `--server` that the user has typed, so that it can be copied."""
    program = os.environ.get(PROGRAM_VARIABLE) or "rik"
    context = click.get_current_context(silent=True)
    server = context.meta.get(SERVER) if context is not None else None
    return f"{program} --server {server} {command}" if server else f"{program} {command}"

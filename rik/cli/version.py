"""`rik version`: of this program, and of the server when there is one."""

from __future__ import annotations

import json
import platform

import click

import rik
from rik.cli.command import ClientCommand, connect
from rik.cli.errors import CommandError
from rik.cli.output import say

TIMEOUT_S = 3.0


@click.command(cls=ClientCommand)
@click.option("-o", "--output", "style", type=click.Choice(["table", "json"]), default="table", help="How to print it.")
def version(style: str) -> None:
    """The version of this program and, when one answers, of the server."""
    client = connect()
    try:
        info, trouble = client.get("cluster.info", timeout_s=TIMEOUT_S).json(), ""
    except CommandError as error:
        info, trouble = None, error.message
    if style == "json":
        say(json.dumps({"client": {"version": rik.__version__}, "server": info}))
        return
    say(f"client  {rik.__version__}  (Python {platform.python_version()})")
    if info is None:
        say(f"server  none: {trouble}")
    else:
        say(f"server  {info.get('version')}  at {client.cluster.url}, cluster {info.get('id')}")

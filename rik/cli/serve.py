"""`rik serve`: from flags, RIK_SERVE_* variables and a file to `Settings`, then over to the host."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from pathlib import Path
from typing import Any

import click

from rik.cli.imageoptions import image_options, image_settings
from rik.cli.parameters import Address, Duration, Size, is_loopback
from rik.errors import StartupError
from rik.logging import LEVELS, configure
from rik.settings import DEFAULT_LISTEN, ROLES, ApiSettings, SchedulerSettings, Settings, WorkerSettings
from rik.settings import default_data_dir as default_directory

ENVIRONMENT_PREFIX = "RIK_SERVE"
RUNTIMES = ("auto", "process", "fake")
_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?", re.ASCII)


def _read_config(ctx: click.Context, _param: click.Parameter, value: str | None) -> str | None:
    """`--config`: its keys are the options' names; they stand below flags and variables."""
    if value is None:
        return None
    import yaml

    try:
        found = yaml.safe_load(Path(value).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise click.BadParameter(f"cannot read {value}: {error}") from None
    if found is None:
        found = {}
    if not isinstance(found, dict):
        raise click.BadParameter(f"{value} must hold a mapping of options, such as `listen: {DEFAULT_LISTEN}`")
    known = {parameter.name for parameter in ctx.command.params} - {"config"}
    defaults = {str(key).replace("-", "_"): item for key, item in found.items()}
    for key in defaults:
        if key not in known:
            from difflib import get_close_matches

            near = get_close_matches(key, [name for name in known if name], n=1)
            hint = f", did you mean `{near[0].replace('_', '-')}`?" if near else ""
            raise click.BadParameter(f"{value}: `{key}` is no option of `rik serve`{hint}")
    several = {parameter.name for parameter in ctx.command.params if getattr(parameter, "multiple", False)}
    given = {key: _as_option(item, several=key in several) for key, item in defaults.items()}
    ctx.default_map = {**given, **(ctx.default_map or {})}
    return value


def _as_option(item: Any, *, several: bool) -> Any:
    """A value of the file as the flag would have it: `label: {a: b}` and `label: a=b` are `label: [a=b]`,
    `registry-mirror: {a: [b, c]}` is `registry-mirror: [a=b, a=c]`, and `roles: [api, worker]` is `roles: api,worker`.
    """
    if isinstance(item, dict):
        item = [
            f"{key}={each}" for key, value in item.items() for each in (value if isinstance(value, list) else [value])
        ]
    if several:
        return item if isinstance(item, list) else [item]
    return ",".join(map(str, item)) if isinstance(item, list) else item


@click.command(context_settings={"auto_envvar_prefix": ENVIRONMENT_PREFIX, "show_default": True})
@click.option("--config", is_eager=True, callback=_read_config, metavar="FILE", help="Options in a YAML file.")
@click.option("--demo", is_flag=True, help="A first look: temporary data, no root, everything stopped at the end.")
@click.option("--listen", type=Address(), default=DEFAULT_LISTEN, help="Where the API listens; port 0: a free one.")
@click.option("--data-dir", type=click.Path(path_type=Path), help="[default: /var/lib/rik for root, else ~/.local/…]")
@click.option("--roles", default=",".join(ROLES), help="What this process does.")
@click.option("--node", default="", help="This node's name. [default: the hostname]")
@click.option("--label", multiple=True, metavar="KEY=VALUE", help="A label of this node; may be repeated.")
@click.option("--runtime", type=click.Choice(RUNTIMES), default="auto", help="What runs Pods.")
@click.option("--publish-address", default=None, help="Where published ports listen. [default: all; demo: loopback]")
@click.option("--placement", type=click.Choice(["spread", "binpack"]), default="spread", help="How nodes are chosen.")
@click.option("--allow-dir", multiple=True, type=click.Path(path_type=Path), help="`oci:`, archives may be read here.")
@click.option("--allow-host", multiple=True, metavar="NAME", help="A further name that clients call this server by.")
@click.option("--insecure", is_flag=True, help="Listen beyond loopback without TLS and credentials.")
@click.option("--unsafe-plain", is_flag=True, help="Without user namespaces: run pods unisolated.")
@click.option("--stop-instances", is_flag=True, help="Stop every instance before ending.")
@click.option("--keep-finished", type=Duration(), default="7d", help="How long ended instances stay listed.")
@click.option("--log-retention", type=Size(), default="1Gi", help="How much the logs of ended instances may take.")
@image_options
@click.option("--log-format", type=click.Choice(["text", "json"]), default="text", help="On standard error.")
@click.option("--log-level", type=click.Choice(LEVELS), default=None, help="[default: info; demo: warning]")
def serve(**options: Any) -> int:
    """Run a host: the API, the scheduler and a worker in one process.

    Every option is also read from RIK_SERVE_<OPTION> and from the file given by --config.
    """
    settings = make_settings(options)
    configure(settings.log_format, settings.log_level)
    from rik.host import serve as run_host

    return run_host(settings)


def make_settings(options: dict[str, Any]) -> Settings:
    """`Settings` from parsed options. Raises click's usage errors and StartupError."""
    demo = options["demo"]
    host, port = options["listen"]
    if not is_loopback(host) and not options["insecure"]:
        raise StartupError(
            f"{host}:{port} is reachable from other machines, and this API asks nobody for credentials",
            next_step="listen on 127.0.0.1, or say --insecure if everybody who can reach it may run anything here",
        )
    roles = tuple(dict.fromkeys(role.strip() for role in options["roles"].split(",")))
    unknown = [role for role in roles if role not in ROLES]
    if unknown or not {"api", "scheduler"} <= set(roles):
        problem = f"{unknown[0]!r} is no role" if unknown else "api and scheduler belong together"
        raise click.BadParameter(f"{problem}: give some of {','.join(ROLES)}", param_hint="--roles")
    labels = {}
    for label in options["label"]:
        key, separator, value = str(label).partition("=")
        if not separator or not key:
            raise click.BadParameter(f"{label!r} is no label: write KEY=VALUE", param_hint="--label")
        labels[key] = value
    publish = options["publish_address"]
    if publish:
        try:
            ipaddress.ip_address(publish)
        except ValueError:
            raise click.BadParameter(f"{publish!r} is no IP address", param_hint="--publish-address") from None
    data_dir: Path = options["data_dir"] or (Path() if demo else default_directory())
    return Settings(
        data_dir=Path(os.path.abspath(data_dir)) if options["data_dir"] or not demo else data_dir,
        roles=roles,
        demo=demo,
        allow_dirs=None if demo else tuple(Path(os.path.realpath(item)) for item in options["allow_dir"]),
        log_format=options["log_format"],
        log_level=options["log_level"] or ("warning" if demo else "info"),
        images=image_settings(options),
        scheduler=SchedulerSettings(placement=options["placement"], keep_finished_s=options["keep_finished"]),
        worker=WorkerSettings(
            node=_node_name(options["node"]),
            labels=labels,
            runtime=options["runtime"],
            publish_address=publish if publish is not None else ("127.0.0.1" if demo else ""),
            unsafe_plain=options["unsafe_plain"],
            stop_instances=demo or options["stop_instances"],
            bind_to_process=demo,
            log_retention_bytes=options["log_retention"],
        ),
        api=ApiSettings(host=host, port=port, allowed_hosts=tuple(options["allow_host"])),
    )


def _node_name(given: str) -> str:
    name = (given or socket.gethostname()).lower()
    if _NAME.fullmatch(name):
        return name
    if given:
        raise click.BadParameter(
            f"{given!r}: a node's name is 1–63 of a-z 0-9 - and ., from letter or digit to letter or digit",
            param_hint="--node",
        )
    return re.sub(r"[^a-z0-9-]+", "-", name).strip("-")[:63] or "node"

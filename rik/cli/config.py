"""Which server, with which credentials: `RIKCONFIG` or `~/.rik/config.yaml`, then the environment, then the flags."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from rik.cli.errors import Usage

DEFAULT_SERVER = "http://127.0.0.1:5000"
CONFIG_VARIABLE = "RIKCONFIG"
SERVER_VARIABLE = "RIK_CLUSTER_SERVER"
TOKEN_VARIABLE = "RIK_CLUSTER_TOKEN"
EXAMPLE = '{"cluster": {"server": "http://127.0.0.1:5000"}}'
DEFAULT_PORTS = {"http": 80, "https": 443}
_FIELDS = ("name", "server", "token", "ca")


class Cluster(NamedTuple):
    """Where the API is. `prefix` is the path before `/api`, "" or "/…"; `ca` a file with an authority to trust."""

    scheme: str
    host: str
    port: int
    prefix: str = ""
    token: str = ""
    ca: str = ""

    @property
    def authority(self) -> str:
        """`HOST:PORT`, with brackets around an IPv6 address."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.authority}{self.prefix}"


def load_cluster(server: str | None, token: str | None) -> Cluster:
    """The cluster to talk to; `server` and `token` are the flags. Raises Usage naming the source that is wrong."""
    settings = read_config_file()
    sources = (
        (server, "--server"),
        (os.environ.get(SERVER_VARIABLE), SERVER_VARIABLE),
        (settings.get("server"), str(config_path())),
    )
    url, source = next(((value, source) for value, source in sources if value), (DEFAULT_SERVER, ""))
    chosen_token = token or os.environ.get(TOKEN_VARIABLE) or settings.get("token") or ""
    if any(ord(char) < 33 or ord(char) > 126 for char in chosen_token):
        raise Usage(
            "the token holds characters that no token has", next_step="copy it again, without spaces or newlines"
        )
    cluster = parse_server(url, source)
    ca = settings.get("ca") or ""
    if ca:
        ca = str((config_path().parent / Path(ca).expanduser()).resolve())
    return cluster._replace(token=chosen_token, ca=ca)


def parse_server(url: str, source: str = "") -> Cluster:
    """The parts of `http[s]://HOST[:PORT][/PREFIX]`; a bare `HOST:PORT` is http. Raises Usage."""
    text = url if "://" in url else f"http://{url}"
    by = f" (from {source})" if source else ""
    try:
        parts = urlsplit(text.strip())
        port = parts.port
    except ValueError as error:
        raise Usage(
            f"{url!r} is no server address{by}: {error}", next_step=f"write it like {DEFAULT_SERVER}"
        ) from error
    if parts.scheme not in DEFAULT_PORTS or not parts.hostname:
        raise Usage(f"{url!r} is no server address{by}", next_step=f"write it like {DEFAULT_SERVER}")
    return Cluster(parts.scheme, parts.hostname, port or DEFAULT_PORTS[parts.scheme], parts.path.rstrip("/"))


def config_path() -> Path:
    """The configuration file that counts; it need not exist."""
    named = os.environ.get(CONFIG_VARIABLE)
    return Path(named).expanduser() if named else Path(os.environ.get("HOME") or "~").expanduser() / ".rik/config.yaml"


def read_config_file() -> dict[str, str]:
    """The `cluster` part of the configuration file; {} when there is none. Raises Usage."""
    path = config_path()
    named = bool(os.environ.get(CONFIG_VARIABLE))
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        if not named:
            return {}
        raise Usage(
            f"{CONFIG_VARIABLE} names {path}, which does not exist", next_step=f"write {EXAMPLE} to it, or unset it"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        if not named and isinstance(error, (PermissionError, NotADirectoryError)):
            return {}  # somebody else's home directory, as under sudo -u: there is no configuration of ours
        raise Usage(f"the configuration file {path} cannot be read: {error}") from error
    return _cluster_settings(parse_config(text, path), path)


def parse_config(text: str, path: Path) -> Any:
    """JSON, or else YAML. Raises Usage with the place of the error."""
    try:
        return json.loads(text)
    except ValueError:
        pass  # not JSON: YAML then, whose parser is dearer to load
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        sentence = " ".join(str(error).split())
        raise Usage(
            f"the configuration file {path} is neither JSON nor YAML: {sentence}",
            next_step=f"it must look like {EXAMPLE}",
        ) from error


def _cluster_settings(document: Any, path: Path) -> dict[str, str]:
    if document is None:
        return {}
    cluster = document.get("cluster") if isinstance(document, dict) else None
    if not isinstance(cluster, dict):
        raise Usage(f"the configuration file {path} has no `cluster`", next_step=f"it must look like {EXAMPLE}")
    settings = {}
    for name in _FIELDS:
        value = cluster.get(name)
        if value is None:
            continue
        if not isinstance(value, str):
            raise Usage(
                f"the configuration file {path}: `cluster.{name}` must be a text, not {type(value).__name__}",
                next_step=f"it must look like {EXAMPLE}",
            )
        settings[name] = value
    return settings

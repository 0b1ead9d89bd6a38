"""Who may ask at all: protection of a server on somebody's own machine from web pages that person visits.

A page may make a browser send requests here, with its own `Origin`; or, by DNS rebinding, with a `Host` of its own that
resolves to this address. Both are refused. An address that the connection really came in on is always a good Host:
what is rebound is a name.
"""

from __future__ import annotations

import ipaddress
import socket
from typing import Any
from urllib.parse import urlsplit

from rik.api.operations import Reply
from rik.api.problem import problem
from rik.settings import ApiSettings

_DEFAULT_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}


class Gate:
    """Judges requests by their headers alone."""

    def __init__(self, settings: ApiSettings) -> None:
        self._allowed = {entry.lower() for entry in settings.allowed_hosts}
        self._names = {"localhost", settings.host.lower().strip("[]"), *map(_name_of, self._allowed)}
        if not _is_loopback(settings.host):
            self._names |= {socket.gethostname().lower(), socket.getfqdn().lower()}

    def refusal(self, scope: Any) -> Reply | None:
        """A problem document (403), or None for a request that may go on."""
        hosts = [value for name, value in scope["headers"] if name.lower() in (b"host", b":authority")]
        origins = [value for name, value in scope["headers"] if name.lower() == b"origin"]
        host = hosts[0].decode("latin1").strip().lower() if hosts else ""
        server = scope.get("server") or ("", 0)
        if len(set(hosts)) > 1 or (hosts and not self._knows_host(host, str(server[0]))):
            return problem(
                403,
                f"the Host {host[:200]!r} is not a name of this server",
                reason="UnknownHost",
                next_step="ask by its address, or start the server with --allow-host and that name",
            )
        for origin in origins:
            if not self._knows_origin(origin.decode("latin1").strip().lower(), host, scope["scheme"]):
                return problem(
                    403,
                    f"requests of web pages from {origin.decode('latin1')[:200]!r} are not answered",
                    reason="ForeignOrigin",
                )
        return None

    def _knows_host(self, host: str, server: str) -> bool:
        name = _name_of(host)
        return host in self._allowed or name in self._names or name == server or (bool(name) and _is_loopback(name))

    def _knows_origin(self, origin: str, host: str, scheme: str) -> bool:
        try:
            parts = urlsplit(origin)
            port = parts.port
        except ValueError:
            return False
        if parts.scheme not in ("http", "https") or not parts.hostname:
            return False
        if parts.netloc in self._allowed or parts.hostname in self._allowed:
            return True
        return _with_port(parts.hostname, port, parts.scheme) == _with_port(_name_of(host), _port_of(host), scheme)


def _with_port(name: str, port: int | None, scheme: str) -> tuple[str, int]:
    return name, port or _DEFAULT_PORTS.get(scheme, 0)


def _name_of(host: str) -> str:
    """`name:port`, `[v6]:port` or either without a port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    name, _, port = host.rpartition(":")
    return name if name and port.isdigit() else host


def _port_of(host: str) -> int | None:
    rest = host.partition("]")[2] if host.startswith("[") else host
    port = rest.rpartition(":")[2]
    return int(port) if ":" in rest and port.isdigit() and len(port) <= 5 else None


def _is_loopback(name: str) -> bool:
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return name.lower() == "localhost"

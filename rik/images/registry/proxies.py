"""The proxy for a host, by the usual environment variables: http_proxy, https_proxy, all_proxy and no_proxy, in small
or capital letters. `no_proxy` lists host names (their subdomains too), addresses and networks, or `*`."""

from __future__ import annotations

import ipaddress
import urllib.request
from collections.abc import Mapping
from urllib.parse import urlsplit

from rik.images.registry.endpoints import is_loopback


def proxy_of(url: str, environment: Mapping[str, str]) -> str | None:
    """The proxy's URL; None for a direct connection, as always to this machine."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if is_loopback(f"[{host}]" if ":" in host else host):
        return None
    known = {key.lower(): value for key, value in environment.items() if key.lower().endswith("_proxy") and value}
    known |= {key: value for key, value in environment.items() if key.endswith("_proxy") and value}
    proxy = known.get(f"{parts.scheme}_proxy") or known.get("all_proxy")
    if not proxy:
        return None
    if _is_exempt(host, parts.netloc.rpartition("@")[2], known.get("no_proxy", "")):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def _is_exempt(host: str, host_and_port: str, listed: str) -> bool:
    if urllib.request.proxy_bypass_environment(host_and_port, {"no": listed}):  # type: ignore[attr-defined]
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return any(_holds(entry.strip(), address) for entry in listed.split(",") if "/" in entry)


def _holds(network: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    try:
        return address in ipaddress.ip_network(network, strict=False)
    except ValueError:
        return False

"""Where the images of a registry may be had: its mirrors first, then the registry itself. Pure.

A mirror is an http(s) URL. Its path is kept: `https://host/prefix` is asked under `/prefix/v2/`, and a path with a part
`v2` in it stands for itself (`https://harbor/v2/hub` is asked under `/v2/hub/`).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from urllib.parse import SplitResult, urlsplit

import msgspec

from rik.images.reference import DEFAULT_REGISTRY, RegistryReference

HUB_HOST = "registry-1.docker.io"
_HUB_NAMES = frozenset({DEFAULT_REGISTRY, "index.docker.io", HUB_HOST})
_DEFAULT_PORTS = {"http": 80, "https": 443}


class Endpoint(msgspec.Struct, frozen=True):
    """One server to ask. `bases` are the URLs that repositories are found under, in the order to try: they differ in
    their scheme only. `host` is `HOST[:PORT]` as people write it; `name` is for messages. With `plain` http may be
    spoken. `problem` says why it cannot be asked at all."""

    name: str
    host: str
    bases: tuple[str, ...]
    mirror: bool = False
    plain: bool = False
    problem: str = ""
    next_step: str = ""


def endpoints_of(
    reference: RegistryReference, mirrors: Sequence[tuple[str, str]], insecure: Sequence[str]
) -> tuple[Endpoint, ...]:
    """Never empty; the last is the registry itself."""
    registry = _canonical(reference.registry)
    found = [_mirror(url, insecure) for name, url in mirrors if _canonical(name) == registry]
    return (*found, _registry(registry, insecure))


def is_loopback(host: str) -> bool:
    """Whether `host` (`HOST[:PORT]`) is this machine by its name or address."""
    name = hostname(host)
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def is_listed(host: str, names: Sequence[str]) -> bool:
    """Whether `host` is among `names`; a name without a port stands for every port."""
    host = host.lower()
    return any(name.lower() in (host, hostname(host), f"[{hostname(host)}]") for name in names)


def hostname(host: str) -> str:
    """`HOST[:PORT]` without the port, and without the brackets of an address."""
    end = host.rfind("]")
    name = host[1:end] if host.startswith("[") and end > 0 else host.partition(":")[0]
    return name.lower()


def origin_of(url: str) -> tuple[str, str, int]:
    """Scheme, host and port: what credentials are bound to. Raises ValueError."""
    parts = urlsplit(url)
    scheme = parts.scheme.lower()
    port = parts.port if parts.port is not None else _DEFAULT_PORTS.get(scheme, 0)
    return scheme, (parts.hostname or "").lower(), port


def _canonical(registry: str) -> str:
    registry = registry.lower()
    return DEFAULT_REGISTRY if registry in _HUB_NAMES else registry


def _registry(registry: str, insecure: Sequence[str]) -> Endpoint:
    host = HUB_HOST if registry == DEFAULT_REGISTRY else registry
    listed = is_listed(registry, insecure) or is_listed(host, insecure)
    loopback = is_loopback(host)
    # On this machine https is the exception; elsewhere plain http is, and a downgrade must not be the first try.
    schemes = ("http", "https") if loopback else ("https", "http") if listed else ("https",)
    bases = tuple(f"{scheme}://{host}/v2" for scheme in schemes)
    return Endpoint(registry, registry, bases, plain=loopback or listed)


def _mirror(url: str, insecure: Sequence[str]) -> Endpoint:
    try:
        parts = urlsplit(url)
        host = _host(parts)
        if parts.scheme not in _DEFAULT_PORTS or not host or parts.query or parts.fragment:
            raise ValueError("a mirror is http://HOST[:PORT][/PATH] or https://…")
    except ValueError as error:
        # The URL may hold a password, or anything: it is not repeated.
        return Endpoint("a mirror", "", (), mirror=True, problem=f"it cannot be used: {error}")
    listed, loopback = is_listed(host, insecure), is_loopback(host)
    path = parts.path.rstrip("/")
    name = f"{parts.scheme}://{host}{path}"
    base = name if "v2" in path.split("/") else f"{name}/v2"
    if parts.scheme == "http" and not (listed or loopback):
        return Endpoint(
            name,
            host,
            (),
            mirror=True,
            problem="plain http is spoken to this machine and to insecure registries only",
            next_step=f"give its https URL, or add `--insecure-registry {host}`",
        )
    return Endpoint(name, host, (base,), mirror=True, plain=listed or loopback)


def _host(parts: SplitResult) -> str:
    name = (parts.hostname or "").lower()
    name = f"[{name}]" if ":" in name else name
    return name if parts.port is None else f"{name}:{parts.port}"

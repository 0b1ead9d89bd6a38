"""Kinds of values that options take, each with a sentence for what is none of them."""

from __future__ import annotations

import ipaddress
import re
from typing import Any

import click

from rik.settings import DEFAULT_LISTEN

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(s|m|h|d|w)?", re.ASCII)
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0, None: 1.0}
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,9})?) ?([KMGT]i?)?B?", re.ASCII | re.IGNORECASE)
_BYTES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


class Duration(click.ParamType[float]):
    """Seconds, from `90`, `90s`, `15m`, `12h`, `7d` or `2w`."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        match = _DURATION.fullmatch(str(value))
        if match is None:
            self.fail(f"{value!r} is no duration: write 90s, 15m, 12h or 7d", param, ctx)
        return float(match[1]) * _SECONDS[match[2]]


class Size(click.ParamType[int]):
    """Bytes, from `1048576`, `512Mi` (binary: 2**20 each) or `20G` and `20GB` (decimal: 10**9 each)."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = _SIZE.fullmatch(str(value))
        if match is None:
            self.fail(f"{value!r} is no size: write 512Mi, 20G or a number of bytes", param, ctx)
        return round(float(match[1]) * _BYTES[(match[2] or "").lower()])


class AtLeastOne(click.ParamType[Any]):
    """A value of another kind that must not be 0: `why` says what 0 would mean."""

    def __init__(self, kind: click.ParamType[Any], why: str) -> None:
        self.name = kind.name
        self._kind = kind
        self._why = why

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        converted = self._kind.convert(value, param, ctx)
        if not converted:
            self.fail(f"{value!r} would mean that {self._why}", param, ctx)
        return converted


class Address(click.ParamType[tuple[str, int]]):
    """(host, port), from `HOST:PORT`, `[V6]:PORT` or `:PORT`."""

    name = "host:port"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, int]:
        if isinstance(value, tuple):
            return value
        host, separator, port = str(value).rpartition(":")
        if not separator or not port.isdecimal() or not port.isascii() or int(port) > 65_535:
            self.fail(f"{value!r} is no address: write HOST:PORT, such as {DEFAULT_LISTEN}", param, ctx)
        if ":" in host and not (host.startswith("[") and host.endswith("]")):
            self.fail(f"{value!r} is no address: an IPv6 address stands in brackets, [::1]:5000", param, ctx)
        return host.strip("[]") or "0.0.0.0", int(port)


def is_loopback(host: str) -> bool:
    """Whether it is this machine by name or address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

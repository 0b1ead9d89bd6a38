"""What a registry wants to see: the challenges in its WWW-Authenticate headers (RFC 9110, section 11.6.1). Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

MAX_HEADER_CHARS = 16_384
MAX_CHALLENGES = 20
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_SCHEME = re.compile(rf"\s*,*\s*({_TOKEN})(?=\s|,|$)(?!\s*=)")
_PARAMETER = re.compile(rf'\s*,?\s*({_TOKEN})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|({_TOKEN[:-2]}/:@]+))')
_TOKEN68 = re.compile(r"\s+[A-Za-z0-9._~+/-]+=*(?=\s*(?:,|$))")
_ESCAPED = re.compile(r"\\(.)")


class Challenge(msgspec.Struct, frozen=True):
    """`scheme` and the names of `parameters` in lower case."""

    scheme: str
    parameters: dict[str, str]


def read_challenges(headers: Sequence[str]) -> tuple[Challenge, ...]:
    """Those of all headers; what cannot be read ends its header. Values may be quoted and hold commas; those that
    should be quoted and are not are taken too."""
    found: list[Challenge] = []
    for header in headers:
        text, at = header[:MAX_HEADER_CHARS], 0
        while (scheme := _SCHEME.match(text, at)) is not None and len(found) < MAX_CHALLENGES:
            at = scheme.end()
            parameters: dict[str, str] = {}
            while (parameter := _PARAMETER.match(text, at)) is not None:
                name, quoted, plain = parameter.groups()
                parameters.setdefault(name.lower(), _ESCAPED.sub(r"\1", quoted) if quoted is not None else plain)
                at = parameter.end()
            if not parameters and (token := _TOKEN68.match(text, at)) is not None:
                at = token.end()
            found.append(Challenge(scheme.group(1).lower(), parameters))
    return tuple(found)

"""How one server fails to deliver, before it is known whether another one will do."""

from __future__ import annotations

import email.utils
import http
import time
from collections.abc import Mapping
from typing import Any

import msgspec

from rik.images.errors import ImageError, ImageNotFound, ImagePullFailed, ImageUnauthorized
from rik.images.registry.attempts import TransientFailure

MAX_QUOTED_CHARS = 300
MAX_QUOTED_ERRORS = 3
# Statuses beside 5xx that say: not now.
_NOT_NOW = frozenset({408, 425, 429})
_NEVER = frozenset({501, 505})


class Refusal(Exception):
    """This server will not deliver, however often it is asked: the `kind` of error, the cause, the next step."""

    def __init__(self, cause: str, kind: type[ImageError] = ImagePullFailed, next_step: str = "") -> None:
        super().__init__(cause)
        self.cause = cause
        self.kind = kind
        self.next_step = next_step

    def amended(self, more: str, next_step: str) -> Refusal:
        """The same with a further explanation."""
        return type(self)(f"{self.cause}, {more}", self.kind, next_step)


class NotSpoken(Refusal):
    """There is a server, but it does not speak this scheme (plain http where it wants https, or the reverse)."""


class _Problem(msgspec.Struct):
    code: Any = ""
    message: Any = ""


class _Problems(msgspec.Struct):
    errors: list[_Problem] = []
    details: Any = ""


def failure_of(status: int, headers: Mapping[str, str], body: bytes, name: str) -> TransientFailure | Refusal:
    """What an answer that is no success means; `name` says whose it is."""
    if status in _NOT_NOW or (status >= 500 and status not in _NEVER):
        text = f"{name} answers {_status(status)}{_said(headers, body)}"
        return TransientFailure(text, retry_after_s=_retry_after_s(headers.get("retry-after", "")))
    return refusal_of(status, headers, body, name)


def refusal_of(
    status: int, headers: Mapping[str, str], body: bytes, name: str, kind: type[ImageError] | None = None
) -> Refusal:
    """The same, when it will not be tried again."""
    kinds = {401: ImageUnauthorized, 403: ImageUnauthorized, 404: ImageNotFound}
    return Refusal(
        f"{name} answers {_status(status)}{_said(headers, body)}", kind or kinds.get(status, ImagePullFailed)
    )


def page_of(headers: Mapping[str, str]) -> str:
    """What an answer is by its own account: `text/html`, in lower case and without parameters."""
    return headers.get("content-type", "").partition(";")[0].strip().lower()[:100]


def _status(status: int) -> str:
    try:
        return f"{status} {http.HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


def _said(headers: Mapping[str, str], body: bytes) -> str:
    """The server's own words, when they are those of a registry; of a page for people only that it is one."""
    try:
        problems = msgspec.json.decode(body, type=_Problems)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        kind = page_of(headers)
        if body and "html" in kind:
            return f" with a web page ({kind})"
        if body and kind == "text/plain":
            return f": {_short(body[: MAX_QUOTED_CHARS * 2].decode(errors='replace'))}"
        return ""
    words = [
        ": ".join(_short(str(part)) for part in (problem.code, problem.message) if part)
        for problem in problems.errors[:MAX_QUOTED_ERRORS]
    ] or [_short(str(problems.details))]
    text = "; ".join(word for word in words if word)
    return f" ({text})" if text else ""


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= MAX_QUOTED_CHARS else f"{text[:MAX_QUOTED_CHARS]}…"


def _retry_after_s(value: str) -> float | None:
    """Seconds, or a date."""
    value = value.strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        date = email.utils.parsedate_to_datetime(value)
        return max(0.0, date.timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None

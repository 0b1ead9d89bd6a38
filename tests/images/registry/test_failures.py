"""What a server's answer means that is no success."""

from __future__ import annotations

import email.utils
import time

import pytest

from rik.images.errors import ImageNotFound, ImagePullFailed, ImageUnauthorized
from rik.images.registry.attempts import TransientFailure
from rik.images.registry.failures import MAX_QUOTED_CHARS, Refusal, failure_of


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (400, ImagePullFailed),
        (401, ImageUnauthorized),
        (403, ImageUnauthorized),
        (404, ImageNotFound),
        (501, ImagePullFailed),
    ],
)
def test_refusals(code: int, kind: type) -> None:
    """What will not pass by itself has a kind."""
    failure = failure_of(code, {}, b"", "a.example")
    assert isinstance(failure, Refusal) and failure.kind is kind
    assert str(code) in failure.cause and "a.example" in failure.cause


@pytest.mark.parametrize("code", [408, 429, 500, 502, 503, 504, 599])
def test_transient(code: int) -> None:
    """What may pass by itself is tried again."""
    assert isinstance(failure_of(code, {}, b"", "a.example"), TransientFailure)


@pytest.mark.parametrize(("value", "seconds"), [("7", 7), ("", None), ("-1", None), ("soon", None), ("7.5", None)])
def test_retry_after(value: str, seconds: float | None) -> None:
    """Retry-After in seconds; what is neither that nor a date does not count."""
    failure = failure_of(429, {"retry-after": value}, b"", "a")
    assert isinstance(failure, TransientFailure) and failure.retry_after_s == seconds


def test_retry_after_a_date() -> None:
    """Retry-After as a date, past ones meaning now."""
    for distance, least, most in ((30, 25, 31), (-30, 0, 0)):
        failure = failure_of(
            503, {"retry-after": email.utils.formatdate(time.time() + distance, usegmt=True)}, b"", "a"
        )
        assert isinstance(failure, TransientFailure) and failure.retry_after_s is not None
        assert least <= failure.retry_after_s <= most


@pytest.mark.parametrize(
    ("headers", "body", "words"),
    [
        ({}, b'{"errors":[{"code":"DENIED","message":"not\\n you","detail":{"a":1}}]}', " (DENIED: not you)"),
        ({}, b'{"errors":[{"code":"A"},{"message":"b"},{}]}', " (A; b)"),
        ({}, b'{"details":"incorrect username"}', " (incorrect username)"),
        ({}, b'{"errors":"no list"}', ""),
        ({"content-type": "text/html; charset=utf-8"}, b"<html>", " with a web page (text/html)"),
        ({"content-type": "text/plain"}, b"Client sent an\n HTTP request", ": Client sent an HTTP request"),
        ({"content-type": "text/plain"}, b"\xff\xfe", ": \ufffd\ufffd"),
        ({}, b"\x00\x01", ""),
    ],
)
def test_quotations(headers: dict[str, str], body: bytes, words: str) -> None:
    """A registry's own words are quoted, on one line."""
    failure = failure_of(400, headers, body, "a")
    assert isinstance(failure, Refusal) and failure.cause == f"a answers 400 Bad Request{words}"


def test_long_quotations() -> None:
    """They are not quoted at any length."""
    body = b'{"errors":[' + b",".join([b'{"code":"%s","message":"%s"}' % (b"x" * 9999, b"y" * 9999)] * 50) + b"]}"
    failure = failure_of(400, {}, body, "a")
    assert isinstance(failure, Refusal) and len(failure.cause) < 7 * MAX_QUOTED_CHARS

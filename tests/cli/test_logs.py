"""Following output across reconnects."""

from __future__ import annotations

import pytest

from rik.cli.logs import LogPrinter
from rik.cli.tail import Entry, LogCursor, decode_entries


def entry(at: int, line: str, container: str = "main") -> Entry:
    return {"at": f"2026-01-31T12:00:00.{at:03d}Z", "container": container, "stream": "stdout", "line": line}


def test_nothing_is_repeated_after_a_reconnect() -> None:
    """What was seen before a reconnect is skipped, and lines of the very same time that are new are not."""
    cursor = LogCursor()
    before = [entry(1, "a"), entry(2, "b"), entry(2, "c")]
    assert all(cursor.is_new(item) for item in before)
    assert cursor.since == entry(2, "")["at"]
    cursor.reconnected()
    again = [entry(2, "b"), entry(2, "c"), entry(2, "d"), entry(3, "e")]
    assert [item["line"] for item in again if cursor.is_new(item)] == ["d", "e"]


def test_containers_have_their_own_place() -> None:
    """After a reconnect the stream starts at the slowest container's place, and the faster one's lines are skipped."""
    cursor = LogCursor()
    for item in (entry(1, "a"), entry(5, "b", "other")):
        assert cursor.is_new(item)
    assert cursor.since == entry(1, "")["at"]
    cursor.reconnected()
    again = [entry(1, "a"), entry(4, "x", "other"), entry(5, "b", "other"), entry(6, "c", "other"), entry(2, "d")]
    assert [item["line"] for item in again if cursor.is_new(item)] == ["c", "d"]


def test_reconnects_may_repeat() -> None:
    """A second reconnect at the same place skips what was seen before and between."""
    cursor = LogCursor()
    assert cursor.is_new(entry(1, "a"))
    cursor.reconnected()
    assert [cursor.is_new(item) for item in (entry(1, "a"), entry(1, "b"))] == [False, True]
    cursor.reconnected()
    assert [cursor.is_new(item) for item in (entry(1, "a"), entry(1, "b"), entry(1, "c"))] == [False, False, True]


def test_messages_hold_one_or_more_lines() -> None:
    """A message is one JSON object per line, with or without a newline at its end."""
    assert decode_entries('{"line": "a"}\n{"line": "b"}\n') == [{"line": "a"}, {"line": "b"}]
    assert decode_entries(b'{"line": "a"}') == [{"line": "a"}]


def test_streams_stay_apart(capfd: pytest.CaptureFixture[str]) -> None:
    """Standard output goes to ours, everything else to standard error, with the source when there are more."""
    write = LogPrinter(["main", "sidecar"])
    write(
        [
            {"at": "t", "container": "main", "stream": "stdout", "line": "hello"},
            {"at": "t", "container": "sidecar", "stream": "stderr", "line": "oh"},
            {"at": "t", "container": "main", "stream": "rik", "line": "dropped 5 bytes"},
        ]
    )
    out, err = capfd.readouterr()
    assert out == "[main] hello\n"
    assert err == "[sidecar] oh\n[main] [rik] dropped 5 bytes\n"

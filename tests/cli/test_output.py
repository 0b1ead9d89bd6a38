"""Tables and text."""

from __future__ import annotations

from rik.cli.client import Answer, refusal
from rik.cli.get import kept
from rik.cli.output import Column, aligned, clean
from rik.cli.watch import Table, change_lines

COLUMNS = (
    Column("Name", lambda row: row["name"]),
    Column("Count", lambda row: str(row["count"]), right=True),
    Column("Note", lambda row: row["note"]),
)


def test_plain_tables() -> None:
    """Plain tables are aligned, show a dash for what is empty, and have no space at the ends of lines."""
    assert aligned(COLUMNS, [["a", "5", ""], ["longer", "12", "x"]]) == [
        "NAME    COUNT  NOTE",
        "a           5  -",
        "longer     12  x",
    ]


def test_what_others_wrote_cannot_steer_the_terminal() -> None:
    """Control characters are replaced, and several lines become one."""
    assert clean("a\x1b[2Jb\nc\td") == "a�[2Jb␤c   d"


def test_filtered_json_keeps_the_bytes() -> None:
    """Entries that are filtered out on this side leave the others exactly as the API wrote them."""
    answer = Answer(200, b'[{"name": "a",  "n":1.50}, {"name":"b"}]')
    assert kept(answer, lambda entry: entry["name"] == "a").body == b'[{"name": "a",  "n":1.50}]'


def test_every_error_of_a_document_is_told() -> None:
    """A problem with several errors lists each with its JSON pointer."""
    error = refusal(
        400,
        b'{"title":"Invalid workload document","detail":"2 errors","errors":['
        b'{"pointer":"/kind","message":"must be `Pod`"},{"pointer":"","message":"`name` is required"}]}',
    )
    assert error.message == "invalid workload document"
    assert error.details == ("/kind: must be `Pod`", "/: `name` is required")


def test_answers_that_are_not_from_rik() -> None:
    """An error page of something else that listens there is said to be one."""
    assert "not in the way RIK does" in refusal(404, b"<html>").message
    assert refusal(503, b'{"title":"Unavailable"}', {"Retry-After": "2"}).next_step == "try again in 2 s"


def test_watch_lines() -> None:
    """Each change is a line; gaps and losses of the connection are told."""
    record = {"name": "a", "uid": "u", "status": "Running", "node": "n", "updated_at": "2026-01-31T12:00:00.000Z"}
    (line,) = change_lines({"type": "instance", "revision": 5, "op": "put", "instance": record})
    assert line.endswith("  a  Running  on n")
    (line,) = change_lines({"type": "instance", "revision": 6, "op": "delete", "instance": record})
    assert line.endswith("  a  removed  on n")
    assert change_lines({"type": "instance", "revision": 5, "op": "put", "instance": record}, "b") == []
    assert "gap" in change_lines({"type": "gap", "oldest": 9})[0]
    assert change_lines({"type": "sync", "revision": 9}) == []


def test_live_table() -> None:
    """The live table holds what is listed, and for a while what was removed."""
    table = Table()
    first = {"name": "a", "uid": "1", "status": "Running", "updated_at": "2026-01-31T12:00:00.000Z"}
    second = {"name": "b", "uid": "2", "status": "Creating", "updated_at": "2026-01-31T12:00:01.000Z"}
    table.apply({"type": "snapshot", "revision": 4, "instances": [first]})
    table.apply({"type": "instance", "revision": 5, "op": "put", "instance": second})
    table.apply({"type": "progress", "instance": "b", "step": "pull", "done": 1, "total": 2})
    assert [row[:3] for row in table.cells(10)] == [["a", "", "Running"], ["b", "", "Creating pull 50 %"]]
    table.apply({"type": "instance", "revision": 6, "op": "delete", "instance": first})
    assert [row[2] for row in table.cells(10)] == ["Running (removed)", "Creating pull 50 %"]
    assert table.summary == "1 Creating; revision 6"

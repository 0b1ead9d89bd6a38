"""Suggested commands can be copied."""

from __future__ import annotations

import click
import pytest

from rik.cli.main import cli
from rik.cli.spelling import SERVER, spelled


def test_suggestions_repeat_what_was_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A suggested command names the program and the --server that were typed."""
    monkeypatch.delenv("RIK_PROGRAM", raising=False)
    assert spelled("get nodes") == "rik get nodes"
    monkeypatch.setenv("RIK_PROGRAM", "python3 rik.py")
    assert spelled("get nodes") == "python3 rik.py get nodes"
    with click.Context(cli) as context:
        context.meta[SERVER] = "http://127.0.0.1:6000"
        assert spelled("get nodes") == "python3 rik.py --server http://127.0.0.1:6000 get nodes"

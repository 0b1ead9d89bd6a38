"""How a test says what it needs of a machine."""

from __future__ import annotations

import os

import pytest

from tests import conftest

NOWHERE = "no-such-program-for-rik"


def set_ci(monkeypatch: pytest.MonkeyPatch, is_ci: bool) -> None:
    monkeypatch.setattr(conftest, "RUNS_IN_CI", is_ci)


def test_what_is_there_goes_on(require: conftest.Require) -> None:
    """A program in PATH or in /sbin, or a finding of the test's own, lets the test go on."""
    require("sh", reason="it is everywhere")
    require("anything", reason="the test found out by itself", present=True)


def test_a_need_that_is_not_met_skips_on_a_developers_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The skip says what is missing and what for."""
    set_ci(monkeypatch, False)
    with pytest.raises(pytest.skip.Exception, match=f"needs {NOWHERE}: to see"):
        conftest._require(NOWHERE, "to see")


def test_a_need_that_is_not_met_fails_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    """In CI everything is installed: a skip would hide that something is not tested any more."""
    set_ci(monkeypatch, True)
    with pytest.raises(pytest.fail.Exception, match=f"needs {NOWHERE}: to see .it should be there in CI"):
        conftest._require(NOWHERE, "to see")
    with pytest.raises(pytest.skip.Exception):
        conftest._require(NOWHERE, "to see", expected_in_ci=False)


def test_who_runs_the_suite_only_skips(monkeypatch: pytest.MonkeyPatch) -> None:
    """CI runs the suite as root and as an ordinary user, so each may leave the other's tests out."""
    set_ci(monkeypatch, True)
    other = "ordinary-user" if os.geteuid() == 0 else "root"
    with pytest.raises(pytest.skip.Exception):
        conftest._require(other, "to see")

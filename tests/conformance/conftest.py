"""Every test here runs over every runtime."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from rik.runtime.base import Runtime
from tests.conformance.subjects import SUBJECTS, Bench
from tests.conftest import Require

LIMIT_S = 60.0


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(*abilities): what a runtime must not declare to lack (see subjects.py)")


@pytest.fixture(params=sorted(SUBJECTS))
async def bench(request: pytest.FixtureRequest, tmp_path: Path, require: Require) -> AsyncIterator[Bench]:
    """The runtime under test. What a test needs that it lacks is declared in its subject, and skipped by name."""
    if request.param != "fake":
        require("user-namespaces", reason="pods are made of them")
    subject = SUBJECTS[request.param](tmp_path)
    if wanted := request.node.get_closest_marker("needs"):
        missing = subject.lacks & set(wanted.args)
        if missing:
            pytest.skip(f"the {request.param} runtime declares that it has no {', '.join(sorted(missing))}")
    yield Bench(subject)
    with trio.CancelScope(shield=True), trio.fail_after(LIMIT_S):
        await subject.clean()


@pytest.fixture
async def runtime(bench: Bench) -> AsyncIterator[Runtime]:
    """An open runtime object; whatever hangs ends with the limit."""
    with trio.fail_after(LIMIT_S):
        async with bench.opened() as opened:
            yield opened

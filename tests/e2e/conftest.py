"""Servers that the end-to-end tests share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trio

from rik.images.unpack import remove_tree
from tests.e2e.server import Client, Server, serving


@pytest.fixture
def data_dir(tmp_path: Path) -> Iterator[Path]:
    """For a server that unpacks images, whose files belong to ids that are not the tests' own."""
    yield tmp_path / "data"
    trio.run(remove_tree, tmp_path / "data")


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    """A server with the process runtime and its own data directory, which may read images from the test's folder."""
    async with serving(tmp_path / "data", "--allow-dir", str(tmp_path), "--publish-address", "127.0.0.1") as running:
        yield running


@pytest.fixture
async def client(server: Server) -> AsyncIterator[Client]:
    async with Client(server.url) as connected:
        yield connected


@pytest.fixture
async def fake(tmp_path: Path) -> AsyncIterator[Client]:
    """A client of a server with the fake runtime."""
    async with serving(tmp_path / "fake", "--runtime", "fake") as running, Client(running.url) as connected:
        yield connected

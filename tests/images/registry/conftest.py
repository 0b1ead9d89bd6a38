"""Scenes to pull in, and what must not be left when one is over."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio

from rik.images.store import ImageStore
from rik.linux.idmap import IdMap, Unavailable
from rik.settings import ImageSettings
from tests.images.conftest import HOST_ID
from tests.images.registry.scene import Scene, playing
from tests.images.test_unpack import children

SETTLE_S = 2.0


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without credentials, and an environment without proxies."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name in ("DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR"):
            monkeypatch.delenv(name)
    path = tmp_path / "home"
    path.mkdir()
    monkeypatch.setenv("HOME", str(path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(path / ".config"))
    return path


@pytest.fixture
async def scene(home: Path) -> AsyncIterator[Scene]:
    async with playing(home) as scene:
        yield scene


@pytest.fixture
async def nothing_stays() -> AsyncIterator[None]:
    """No child process and no open file is left by a test that this one follows."""
    descriptors, family = open_files(), set(children())
    yield
    with trio.move_on_after(SETTLE_S):
        while open_files() - descriptors or set(children()) - family:
            await trio.sleep(0.02)
    assert open_files() - descriptors == set()
    assert set(children()) - family == set()


def open_files() -> set[str]:
    """What this process has open: files, sockets, pipes."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        try:
            found.add(os.readlink(f"/proc/self/fd/{number}"))
        except FileNotFoundError:
            pass  # the directory that was listed
    return found


def half_made(store: ImageStore) -> list[str]:
    """What a store must not have when nobody is at work: whatever is in it, but for its locks and directories."""
    found: list[str] = []
    for folder, folders, files in os.walk(store.directory):
        where = Path(folder).relative_to(store.directory)
        found += (str(where / name) for name in files if name != "lock")
        found += (str(where / name) for name in folders if name.startswith("tmp-"))
        folders[:] = [name for name in folders if name != "fs"]  # what a layer holds is its own affair
    return sorted(found)


def store_in(directory: Path, idmap: IdMap | Unavailable, **settings: Any) -> ImageStore:
    return ImageStore(directory, HOST_ID, idmap, settings=ImageSettings(**settings))


@pytest.fixture
def store(workspace: Path, detected_idmap: IdMap | Unavailable) -> ImageStore:
    return store_in(workspace / "images", detected_idmap)

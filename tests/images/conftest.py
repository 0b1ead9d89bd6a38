"""Stores of layers to test with, removed as they must be: some of their files belong to ids of a user namespace."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from rik.images.confined import Owners
from rik.images.store import ImageStore
from rik.images.unpack import remove_tree
from rik.linux.idmap import IdMap, Unavailable, detect, single
from tests.conftest import Require
from tests.images.remote import Remote

MakeStore = Callable[..., ImageStore]

HOST_ID = "0123abcd"


@pytest.fixture(scope="session")
def detected_idmap() -> IdMap | Unavailable:
    return detect()


@pytest.fixture(params=["detected", "single"])
def idmap(request: pytest.FixtureRequest, require: Require, detected_idmap: IdMap | Unavailable) -> IdMap | Unavailable:
    """The map pods get here, and the poorest one there is: one id, which everything belongs to."""
    if request.param == "single":
        require("user-namespaces", reason="layers are unpacked in one")
        return single()
    if os.geteuid() != 0:
        require("user-namespaces", reason="layers are unpacked in one")
    return detected_idmap


@pytest.fixture
def workspace() -> Iterator[Path]:
    """A directory whose contents may belong to anybody."""
    path = Path(tempfile.mkdtemp(prefix="rik-test-images-"))
    yield path
    trio.run(remove_tree, path)


@pytest.fixture
def make_store(workspace: Path, idmap: IdMap | Unavailable) -> MakeStore:
    """Makes stores that share one directory."""

    def make(**options: object) -> ImageStore:
        return ImageStore(workspace / "images", HOST_ID, idmap, **options)  # type: ignore[arg-type]

    return make


@pytest.fixture
def store(make_store: MakeStore) -> ImageStore:
    return make_store()


@pytest.fixture
def owners(idmap: IdMap | Unavailable) -> Owners:
    return Owners(idmap, os.geteuid())


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch) -> Remote:
    """What stores of this test take for all registries there are."""
    made = Remote()
    monkeypatch.setattr("rik.images.store.open_source", made.open)
    return made

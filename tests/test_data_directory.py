"""The data directory: one RIK at a time, one host id for ever, and damage told in one line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rik.data_directory import HOST_FILE, DataDirectory, read_host_id
from rik.errors import StartupError


def test_the_host_id_stays(tmp_path: Path) -> None:
    """A directory is made private, and gets an id that its later users find again."""
    path = tmp_path / "deep" / "data"
    first = DataDirectory.open(path)
    first.close()
    second = DataDirectory.open(path)
    second.close()
    assert first.host_id == second.host_id == read_host_id(path)
    assert path.stat().st_mode & 0o777 == 0o700


def test_one_at_a_time(tmp_path: Path) -> None:
    """A second user is refused, and told who has it."""
    first = DataDirectory.open(tmp_path)
    with pytest.raises(StartupError, match=f"in use by another rik \\(process {os.getpid()}\\)"):
        DataDirectory.open(tmp_path)
    first.close()
    DataDirectory.open(tmp_path).close()


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b"[]", b'{"host_id": 7}', b'{"host_id": "../../etc"}', b"[" * 100_000]
)
def test_a_damaged_host_file(tmp_path: Path, content: bytes) -> None:
    """Whatever is in it, it is refused by name and left as it is."""
    (tmp_path / HOST_FILE).write_bytes(content)
    with pytest.raises(StartupError, match="is damaged"):
        DataDirectory.open(tmp_path)
    assert (tmp_path / HOST_FILE).read_bytes() == content


def test_a_host_file_that_blocks(tmp_path: Path) -> None:
    """A FIFO in its place is refused, not waited for."""
    os.mkfifo(tmp_path / HOST_FILE)
    with pytest.raises(StartupError, match="no regular file"):
        DataDirectory.open(tmp_path)


def test_a_place_that_cannot_be_used(tmp_path: Path) -> None:
    """A file in the way is one clear line."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StartupError, match="cannot use the data directory"):
        DataDirectory.open(tmp_path / "file" / "data")

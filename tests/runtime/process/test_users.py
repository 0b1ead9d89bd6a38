"""Users are looked up in files of the container, which may hold anything."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rik.runtime.process.podinit.users import resolve

PASSWD = "root:x:0:0:root:/root:/bin/sh\nbroken\nweb:x:33:34::/srv:/bin/false\nbad:x:-1:99999999999999:::\n"
GROUP = "root:x:0:\nweb:x:34:\nmore:x:50:other,web\n"


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    passwd, group = tmp_path / "passwd", tmp_path / "group"
    passwd.write_text(PASSWD)
    group.write_text(GROUP)
    return str(passwd), str(group)


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("", (0, 0, [], "/root")),
        ("web", (33, 34, [50], "/srv")),
        ("33", (33, 34, [50], "/srv")),
        ("web:root", (33, 0, [], "/srv")),
        ("1234:5678", (1234, 5678, [], "/")),
        (":5678", (0, 5678, [], "/root")),
    ],
)
def test_who_is_meant(files: tuple[str, str], wanted: str, found: tuple[object, ...]) -> None:
    """Names and numbers, with and without a group."""
    user = resolve(wanted, *files)
    assert (user.uid, user.gid, user.groups, user.home) == found


@pytest.mark.parametrize(
    "wanted",
    [
        "nobody-here",
        "bad",
        "web:nogroup",
        "4294967295",
        "-1",
        "²",
        "9" * 5000,
        "web:²",
        "web:" + "9" * 5000,
        "x" * 100_000,
    ],
)
def test_who_is_not_there(files: tuple[str, str], wanted: str) -> None:
    """An unknown name is refused in a short sentence."""
    with pytest.raises(LookupError) as caught:
        resolve(wanted, *files)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("kind", ["fifo", "endless", "directory", "missing"])
def test_no_plain_file(tmp_path: Path, kind: str) -> None:
    """What is no plain file is not waited for, nor read without end: there are no users then."""
    path = tmp_path / "passwd"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "endless":
        path.symlink_to("/dev/zero")
    elif kind == "directory":
        path.mkdir()
    assert resolve("5", str(path), str(path)).uid == 5

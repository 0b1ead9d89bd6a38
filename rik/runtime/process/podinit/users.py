"""Who a command runs as: names and numbers looked up in the container's own /etc/passwd and /etc/group."""

from __future__ import annotations

import os
import stat

DEFAULT_HOME = "/"
_LARGEST_ID = 2**32 - 2
_MOST_DIGITS = 100  # `int` refuses thousands
_MOST_BYTES = 4 << 20
_SHOWN = 200  # characters of a name, in what is said about it


class User:
    """Ids inside the container, and the home directory."""

    __slots__ = ("gid", "groups", "home", "uid")

    def __init__(self, uid: int, gid: int, groups: list[int], home: str) -> None:
        self.uid = uid
        self.gid = gid
        self.groups = groups
        self.home = home


def resolve(wanted: str, passwd_path: str = "/etc/passwd", group_path: str = "/etc/group") -> User:
    """The user that ``wanted`` means: "", ``name``, ``uid``, ``name:group`` or ``uid:gid``; no name is root.

    Raises LookupError with a sentence when a name is not there.
    """
    name, _, group = (wanted or "0").partition(":")
    name = name or "0"
    entries = _read(passwd_path, 7)
    entry = next((e for e in entries if e[0] == name), None)
    if entry is None and _is_id(name):
        entry = next((e for e in entries if e[2] == str(int(name))), None)
    if entry is None and not _is_id(name):
        raise LookupError(f"user `{name[:_SHOWN]}` is not in its {passwd_path}")
    uid = int(entry[2]) if entry is not None else int(name)
    gid = int(entry[3]) if entry is not None else 0
    home = (entry[5] if entry is not None else "") or DEFAULT_HOME
    groups = _read(group_path, 4)
    if group:
        found = next((e for e in groups if e[0] == group), None)
        if found is None and not _is_id(group):
            raise LookupError(f"group `{group[:_SHOWN]}` is not in its {group_path}")
        return User(uid, int(found[2]) if found is not None else int(group), [], home)
    login = entry[0] if entry is not None else ""
    more = [int(e[2]) for e in groups if login and login in e[3].split(",") and int(e[2]) != gid]
    return User(uid, gid, more, home)


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS and int(text) <= _LARGEST_ID


def _read(path: str, fields: int) -> list[list[str]]:
    """Well-formed lines only, of a plain file that is not huge: it is the container's, and may be anything."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return []
            text = file.read(_MOST_BYTES).decode("utf-8", "surrogateescape")
    except OSError:
        return []
    lines = [line.split(":") for line in text.split("\n")]
    numbers = (2, 3) if fields == 7 else (2,)
    return [line for line in lines if len(line) == fields and all(_is_id(line[index]) for index in numbers)]

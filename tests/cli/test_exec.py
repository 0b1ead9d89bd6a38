"""The command line of exec, and the keys that detach."""

from __future__ import annotations

import pytest

from rik.cli.errors import Usage
from rik.cli.exec import DETACH_KEYS, split_command, watch_for


@pytest.mark.parametrize(
    ("arguments", "container", "command"),
    [
        (("--", "ls", "-l"), None, ["ls", "-l"]),
        (("-c", "web", "--", "ls"), "web", ["ls"]),
        (("--container=web", "--", "ls"), "web", ["ls"]),
        (("ls", "/"), None, ["ls", "/"]),
        (("--", "sh", "-c", "a -- b"), None, ["sh", "-c", "a -- b"]),
        (("git", "log", "--", "file"), None, ["git", "log", "--", "file"]),
    ],
)
def test_options_after_the_instance(arguments: tuple[str, ...], container: str | None, command: list[str]) -> None:
    """`rik exec INSTANCE -c CONTAINER -- COMMAND…` reads the option, and leaves the command as it is."""
    flags, found = split_command(arguments)
    assert (flags["container"], found) == (container, command)


def test_flags_after_the_instance() -> None:
    """-i and -t are read after the instance, too."""
    flags, command = split_command(("-it", "--", "sh"))
    assert (flags["stdin"], flags["tty"], command) == (True, True, ["sh"])


@pytest.mark.parametrize("arguments", [("-x", "ls"), ("-c", "--", "ls")])
def test_mistaken_options(arguments: tuple[str, ...]) -> None:
    """An option in the command's place is refused rather than run."""
    with pytest.raises(Usage):
        split_command(arguments)


def test_detach_keys() -> None:
    """Ctrl-P Ctrl-Q detaches even when the two keys come apart; a lone Ctrl-P is passed on with the next key."""
    assert watch_for(DETACH_KEYS, b"ab\x10\x11") == (b"ab", b"", True)
    assert watch_for(DETACH_KEYS, b"ab\x10") == (b"ab", b"\x10", False)
    assert watch_for(DETACH_KEYS, b"\x10" + b"c") == (b"\x10c", b"", False)
    assert watch_for(b"", b"\x10\x11") == (b"\x10\x11", b"", False)

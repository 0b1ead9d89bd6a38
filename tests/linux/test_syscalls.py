"""System calls: what they promise beyond their manual pages."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rik.linux import syscalls
from rik.linux.trees import remove_tree


def test_failure_says_what_was_attempted() -> None:
    """An error names what was attempted and keeps the errno."""
    with pytest.raises(OSError, match="mount tmpfs on /no/such/place") as caught:
        syscalls.mount("tmpfs", "/no/such/place", "tmpfs")
    assert caught.value.errno in (errno.ENOENT, errno.EPERM)


def test_close_all_but() -> None:
    """Everything is closed but what is to be kept, also with gaps."""
    program = (
        "import os; from rik.linux.syscalls import close_all_but\n"
        "fds = [os.dup(1) for _ in range(20)]; kept = {0, 1, 2, fds[3], fds[17]}; close_all_but(kept)\n"
        "for fd in range(60):\n"
        "    try: os.fstat(fd)\n"
        "    except OSError: assert fd not in kept\n"
        "    else: assert fd in kept, fd\n"
        "print('done')\n"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout == "done\n"


def test_open_in_root(tmp_path: Path) -> None:
    """Symbolic links and dots lead nowhere but into the given root."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "passwd").write_text("mine")
    (tmp_path / "link").symlink_to("/etc/passwd")
    (tmp_path / "up").symlink_to("../../../../../etc")
    root = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    try:
        for path in ("link", "/link", "up/passwd", "../../etc/passwd", "/etc/passwd"):
            with open(syscalls.open_in_root(root, path, os.O_RDONLY)) as file:
                assert file.read() == "mine", path
        with pytest.raises(FileNotFoundError):
            syscalls.open_in_root(root, "/usr", os.O_PATH)
    finally:
        os.close(root)


def test_remove_tree(tmp_path: Path) -> None:
    """A tree is removed whatever its modes, its links are not followed, and nothing there is no error."""
    outside = tmp_path / "outside"
    outside.write_text("x")
    tree = tmp_path / "tree"
    (tree / "locked" / "deep").mkdir(parents=True)
    (tree / "link").symlink_to(tmp_path)
    (tree / "locked" / "deep" / "file").touch()
    (tree / "locked").chmod(0)
    assert remove_tree(str(tree)) == []
    assert not tree.exists()
    assert outside.exists()
    assert remove_tree(str(tree)) == []


@pytest.mark.require("user-namespaces", reason="capabilities are dropped in one")
def test_capabilities_are_limited() -> None:
    """What is not allowed is gone from the bounding set and from what is held."""
    program = (
        "import os; from rik.linux import syscalls as s; from rik.linux.idmap import single; p = os.getpid();\n"
        "r, w = os.pipe()\n"
        "if os.fork() == 0:\n"
        "    os.read(r, 1); single().write(p); os._exit(0)\n"
        "s.unshare(s.CLONE_NEWUSER); os.write(w, b'x'); os.wait()\n"
        "s.limit_capabilities(frozenset({0, 7}))\n"
        "import json; wanted = ('CapBnd', 'CapEff', 'CapAmb')\n"
        "print(json.dumps([line.split()[1] for line in open('/proc/self/status') if line[:6] in wanted]))\n"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    effective, bounding, ambient = json.loads(answer.stdout)
    assert (int(effective, 16), int(bounding, 16), int(ambient, 16)) == (0x81, 0x81, 0)

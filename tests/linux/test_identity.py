"""Processes told apart for ever, though pids are used again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from rik.linux.identity import ProcessIdentity, boot_id, command_line, processes, stat_fields


def test_own_identity() -> None:
    """A process is alive, is itself, and is listed."""
    own = ProcessIdentity.own()
    assert own == ProcessIdentity.of(os.getpid())
    assert own.alive()
    assert own.pid in processes()
    assert command_line(own.pid)


def test_another_start_time_is_another_process() -> None:
    """A pid that was given to somebody else is neither alive, nor opened, nor killed."""
    own = ProcessIdentity.own()
    former = ProcessIdentity(own.pid, own.start_ticks - 1)
    assert former != own
    assert not former.alive()
    assert former.open() is None
    assert not former.kill(signal.SIGKILL)


def test_end_of_a_process() -> None:
    """A process that was killed is not alive, also while nobody has waited for it, and its pidfd tells its end."""
    with subprocess.Popen(["sleep", "600"]) as child:
        identity = ProcessIdentity.of(child.pid)
        assert identity is not None
        fd = identity.open()
        assert fd is not None
        assert identity.kill()
        os.waitid(os.P_PIDFD, fd, os.WEXITED | os.WNOWAIT)
        assert not identity.alive()
        child.wait()
        assert ProcessIdentity.of(child.pid) is None
        assert identity.open() is None
        os.close(fd)


def test_name_with_spaces_and_brackets() -> None:
    """A process may call itself what it likes without confusing the reader."""
    program = "from rik.linux.syscalls import set_process_name; set_process_name('a) R (b'); input()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE) as child:
        while b"a) R (b" not in Path(f"/proc/{child.pid}/stat").read_bytes():
            assert child.poll() is None
        fields = stat_fields(child.pid)
        assert fields is not None
        assert int(fields[1]) == os.getpid()
        child.communicate(b"\n")


def test_boot_id() -> None:
    """The boot id is the same as long as the host runs."""
    assert boot_id() == boot_id()
    assert len(boot_id()) == 36

"""Which process is meant: a pid alone may have been given to another one meanwhile.

A process is identified by its pid together with its start time (clock ticks since boot, field 22 of
``/proc/PID/stat``), and across restarts of the host by the kernel's boot id as well.
"""

from __future__ import annotations

import os
import signal


class ProcessIdentity:
    """A process for ever: ``pid`` and the time it was started at, in clock ticks since boot."""

    __slots__ = ("pid", "start_ticks")

    def __init__(self, pid: int, start_ticks: int) -> None:
        self.pid = pid
        self.start_ticks = start_ticks

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ProcessIdentity):
            return NotImplemented
        return (self.pid, self.start_ticks) == (other.pid, other.start_ticks)

    def __hash__(self) -> int:
        return hash((self.pid, self.start_ticks))

    def __repr__(self) -> str:
        return f"ProcessIdentity({self.pid}, {self.start_ticks})"

    @classmethod
    def of(cls, pid: int) -> ProcessIdentity | None:
        """Who has this pid now; None when nobody."""
        fields = stat_fields(pid)
        return None if fields is None else cls(pid, int(fields[19]))

    @classmethod
    def own(cls) -> ProcessIdentity:
        """This very process."""
        identity = cls.of(os.getpid())
        if identity is None:
            raise ProcessLookupError("/proc does not show this process: is /proc mounted?")
        return identity

    def alive(self) -> bool:
        """Whether it still runs; a zombie that nobody has waited for does not."""
        fields = stat_fields(self.pid)
        return fields is not None and int(fields[19]) == self.start_ticks and fields[0] not in ("Z", "X")

    def open(self) -> int | None:
        """A pidfd of exactly this process, for the caller to close; None when it is gone."""
        try:
            fd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return None
        # The descriptor was opened first: if the identity is right now, the descriptor is that process's.
        if ProcessIdentity.of(self.pid) == self:
            return fd
        os.close(fd)
        return None

    def kill(self, number: int = signal.SIGKILL) -> bool:
        """Sends a signal to exactly this process; False when it is gone. Raises PermissionError."""
        fd = self.open()
        if fd is None:
            return False
        try:
            signal.pidfd_send_signal(fd, number)
        except ProcessLookupError:
            return False
        finally:
            os.close(fd)
        return True


def stat_fields(pid: int) -> list[str] | None:
    """The fields of ``/proc/PID/stat`` from the third (state) on; None when there is no such process.

    Index 0 state, 1 parent, 2 process group, 3 session, 11 and 12 user and system time in ticks, 19 start time in
    ticks, 21 resident pages.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    return text[text.rindex(b")") + 2 :].decode("ascii").split()


def boot_id() -> str:
    """Changes with every boot of the host."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def processes() -> list[int]:
    """Every pid that ``/proc`` shows now."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def command_line(pid: int) -> list[str]:
    """Its arguments; empty when it is gone, a zombie, or a kernel thread."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            text = file.read()
    except OSError:  # gone, or hidden from this user
        return []
    return [part.decode("utf-8", "surrogateescape") for part in text.split(b"\0")[:-1]]

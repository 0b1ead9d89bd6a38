"""Which user and group ids the processes of a pod have on the host, and how the kernel is told.

Three ways, best first:

``root-range``   RIK is root: the pod's ids 0-65535 are the host's 1000000-1065535, owned by nobody else.
``subordinate``  an ordinary user with ranges in /etc/subuid and /etc/subgid: 0 is the user, the rest are the ranges
                 (written by the set-uid programs newuidmap and newgidmap).
``single``       an ordinary user alone: 0 is the user, no other id exists. Files of others appear to belong to nobody.

Real root is never mapped: a pod whose root is the host's root could write the host's /proc and read its secrets.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

ROOT_RANGE = "root-range"
SUBORDINATE = "subordinate"
SINGLE = "single"

ROOT_RANGE_FIRST = 1_000_000
ROOT_RANGE_COUNT = 65_536
# Inside a container of somebody else's, a part of the ids given to us will do, if it holds the ids images usually use.
NESTED_RANGE_LEAST = 1024
PROBE_TIMEOUT_S = 10.0
_ALL_IDS = 2**32 - 1

Range = tuple[int, int, int]  # first id inside, first id outside, how many


class Unavailable:
    """User namespaces cannot be used: ``reason`` is a sentence with the cause verbatim, ``next_step`` what to do."""

    def __init__(self, reason: str, next_step: str) -> None:
        self.reason = reason
        self.next_step = next_step

    def __repr__(self) -> str:
        return f"Unavailable({self.reason!r})"


class IdMap:
    """One map of ids. ``note`` says why it is not a better one ("" when it is the best)."""

    def __init__(self, mode: str, uid_ranges: tuple[Range, ...], gid_ranges: tuple[Range, ...], note: str = "") -> None:
        self.mode = mode
        self.uid_ranges = uid_ranges
        self.gid_ranges = gid_ranges
        self.note = note

    def __eq__(self, other: object) -> bool:
        return isinstance(other, IdMap) and self.to_json() == other.to_json()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"IdMap({self.mode!r}, {self.uid_ranges}, {self.gid_ranges})"

    def to_json(self) -> dict[str, Any]:
        return {"mode": self.mode, "uids": self.uid_ranges, "gids": self.gid_ranges, "note": self.note}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> IdMap:
        uids, gids = (tuple((i, o, n) for i, o, n in value[key]) for key in ("uids", "gids"))
        return cls(str(value["mode"]), uids, gids, str(value.get("note", "")))

    def outside_uid(self, inside: int) -> int | None:
        """The host's id of the pod's user ``inside``; None when it has none."""
        return _outside(self.uid_ranges, inside)

    def outside_gid(self, inside: int) -> int | None:
        """The host's id of the pod's group ``inside``; None when it has none."""
        return _outside(self.gid_ranges, inside)

    def write(self, pid: int) -> None:
        """Gives the new user namespace of process ``pid`` this map; called by a process in the parent namespace.

        Once only per namespace. Raises OSError; its message carries what newuidmap said.
        """
        if self.mode == SUBORDINATE:
            for program, ranges in (("newuidmap", self.uid_ranges), ("newgidmap", self.gid_ranges)):
                _run(program, [str(pid), *(str(number) for entry in ranges for number in entry)])
            return
        if self.mode == SINGLE:
            _write(f"/proc/{pid}/setgroups", "deny")
        for name, ranges in (("gid_map", self.gid_ranges), ("uid_map", self.uid_ranges)):
            _write(f"/proc/{pid}/{name}", "".join(f"{i} {o} {n}\n" for i, o, n in ranges))


def _outside(ranges: tuple[Range, ...], inside: int) -> int | None:
    for first, outside, count in ranges:
        if first <= inside < first + count:
            return outside + inside - first
    return None


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode("ascii"))
    except OSError as error:
        raise OSError(error.errno, error.strerror, f"write {text.strip()!r} to {path}") from None
    finally:
        os.close(fd)


def _run(program: str, arguments: list[str]) -> None:
    path = _find(program)
    if path is None:
        raise FileNotFoundError(2, "not installed", program)
    said, write_end = os.pipe()
    try:
        actions = [(os.POSIX_SPAWN_DUP2, write_end, 2)]
        pid = os.posix_spawn(path, [program, *arguments], {"PATH": os.defpath}, file_actions=actions)
    finally:
        os.close(write_end)
    with open(said, encoding="utf-8", errors="replace") as output:
        text = output.read().strip()
    _, status = os.waitpid(pid, 0)
    if status != 0:
        raise PermissionError(1, text or f"ended with status {os.waitstatus_to_exitcode(status)}", program)


def _find(program: str) -> str | None:
    for folder in (*os.environ.get("PATH", "").split(":"), "/usr/local/bin", "/usr/bin", "/bin", "/sbin"):
        path = os.path.join(folder, program)
        if folder and os.access(path, os.X_OK):
            return path
    return None


def single() -> IdMap:
    """The present user as the only id."""
    return IdMap(SINGLE, ((0, os.geteuid(), 1),), ((0, os.getegid(), 1),))


def candidates() -> list[IdMap]:
    """The maps worth trying for the present user, best first."""
    return _root_candidates() if os.geteuid() == 0 else _user_candidates()


def _root_candidates() -> list[IdMap]:
    uids, gids = _free_range("/proc/self/uid_map"), _free_range("/proc/self/gid_map")
    found = []
    if uids is not None and gids is not None:
        found.append(IdMap(ROOT_RANGE, (uids,), (gids,)))
    if _own_ranges("/proc/self/uid_map")[0][1:] != (0, _ALL_IDS):
        # Root inside somebody's user namespace is an ordinary user of the host, and may be mapped as one.
        alone = single()
        alone.note = "only one user id is free in this user namespace; files of other owners belong to nobody in a pod"
        found.append(alone)
    return found


def _free_range(path: str) -> Range | None:
    """A range of ids that this user namespace has and that is not its root: the usual one, or else the upper half."""
    for first, _, count in _own_ranges(path):
        if first <= ROOT_RANGE_FIRST and first + count >= ROOT_RANGE_FIRST + ROOT_RANGE_COUNT:
            return (0, ROOT_RANGE_FIRST, ROOT_RANGE_COUNT)
    first, _, count = max(_own_ranges(path), key=lambda entry: entry[2])
    if count < 2 * NESTED_RANGE_LEAST:
        return None
    half = min(count // 2, ROOT_RANGE_COUNT)
    return (0, first + count - half, half)


def _own_ranges(path: str) -> list[Range]:
    with open(path, encoding="ascii") as file:
        lines = [line.split() for line in file]
    return [(int(inside), int(outside), int(count)) for inside, outside, count in lines] or [(0, 0, 1)]


def _user_candidates() -> list[IdMap]:
    alone = single()
    missing = [name for name in ("newuidmap", "newgidmap") if _find(name) is None]
    uids, gids = _subordinate("/etc/subuid", os.geteuid()), _subordinate("/etc/subgid", os.geteuid())
    if missing:
        alone.note = f"{' and '.join(missing)} not installed: a pod has one user id, and chown in it fails"
        return [alone]
    if uids is None or gids is None:
        where = "/etc/subuid" if uids is None else "/etc/subgid"
        alone.note = f"{where} gives this user no ids: a pod has one user id, and chown in it fails"
        return [alone]
    uid_ranges, gid_ranges = ((0, os.geteuid(), 1), uids), ((0, os.getegid(), 1), gids)
    return [IdMap(SUBORDINATE, uid_ranges, gid_ranges), alone]


def _subordinate(path: str, uid: int) -> Range | None:
    """The largest range that ``path`` gives the user, as the pod's ids from 1 on."""
    import pwd

    try:
        names = {str(uid), pwd.getpwuid(uid).pw_name}
    except KeyError:
        names = {str(uid)}
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            entries = [line.strip().split(":") for line in file]
    except OSError:
        return None
    ranges = [(1, int(e[1]), min(int(e[2]), ROOT_RANGE_COUNT - 1)) for e in entries if len(e) == 3 and e[0] in names]
    return max(ranges, key=lambda entry: entry[2], default=None)


def detect() -> IdMap | Unavailable:
    """The best map that works here, found by making a user namespace with it in a short-lived child.

    Blocks for some 30 ms: call it in a thread, once.
    """
    failures: list[str] = []
    for idmap in candidates():
        problem = _try(idmap)
        if problem is None:
            if failures and not idmap.note:
                idmap.note = f"{failures[0]}: a pod has one user id, and chown in it fails"
            return idmap
        failures.append(problem)
    return _explain(failures[-1] if failures else "this user namespace has too few ids")


_PROBE = """
import os, sys
sys.path.insert(0, sys.argv[1])
from rik.linux import syscalls as s
try:
    s.unshare(s.CLONE_NEWUSER)
    os.write(1, b"u")
    os.read(0, 1)
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    s.unshare(s.CLONE_NEWNS | s.CLONE_NEWPID | s.CLONE_NEWIPC | s.CLONE_NEWUTS | s.CLONE_NEWNET)
    os.write(1, b"k")
except OSError as error:
    os.write(2, f"{error.filename}: {error.strerror}".encode())
"""


def base_interpreter() -> str:
    """The Python this one's virtual environment was made from (it needs nothing installed, and starts faster)."""
    return str(getattr(sys, "_base_executable", "") or sys.executable)


def package_root() -> str:
    """The directory that ``import rik`` needs on the path of a new interpreter."""
    return os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def _try(idmap: IdMap) -> str | None:
    """None when a child could live in a user namespace with this map, else what stopped it."""
    import subprocess

    command = [base_interpreter(), "-I", "-S", "-c", _PROBE, package_root()]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env={}) as child:
        assert child.stdin is not None and child.stdout is not None
        if child.stdout.read(1) == b"u":
            try:
                idmap.write(child.pid)
            except OSError as error:
                child.kill()
                return f"{error.filename}: {error.strerror}"
        try:
            output, said = child.communicate(b"m", PROBE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            child.kill()
            return "making a user namespace did not end in time"
    if output.endswith(b"k"):
        return None
    return said.decode("utf-8", "replace").strip().splitlines()[-1] if said.strip() else f"exit {child.returncode}"


_SWITCHES = (
    ("/proc/sys/user/max_user_namespaces", "0", "15000"),
    ("/proc/sys/kernel/unprivileged_userns_clone", "0", "1"),
    ("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1", "0"),
)


def _explain(problem: str) -> Unavailable:
    for path, closed, opened in _SWITCHES:
        try:
            with open(path, encoding="ascii") as file:
                value = file.read().strip()
        except OSError:
            continue
        if value == closed and not (os.geteuid() == 0 and "kernel" in path):
            return Unavailable(
                f"user namespaces are forbidden: {path} is {value} ({problem})", f"as root: echo {opened} > {path}"
            )
    return Unavailable(
        f"user namespaces cannot be made here: {problem}",
        "inside a container, its seccomp profile must allow unshare, clone and mount; else run with --unsafe-plain",
    )

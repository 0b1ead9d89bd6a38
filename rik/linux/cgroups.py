"""Control groups: limits, use, and evidence of being out of memory; version 1, version 2 and hybrids of both.

Which controllers are usable is found by trying, each by itself: on a hybrid host some are version 1 and some version 2.
The tree is the same for each: ``rik-<host id>/<uid>/<container>``, with a pod's limits at ``<uid>``.
All of it is small reads and writes of kernel files; removing may have to be tried again while processes are dying.
"""

from __future__ import annotations

import errno
import os

CONTROLLERS = ("cpu", "memory", "pids")
CPU_PERIOD_US = 100_000
CPU_QUOTA_LEAST_US = 1_000  # the kernel refuses less
_PREFIX = "rik-"


class Place:
    """A directory in which cgroups can be made that have a controller. ``version`` is 1 or 2."""

    __slots__ = ("directory", "version")

    def __init__(self, directory: str, version: int) -> None:
        self.directory = directory
        self.version = version

    def __repr__(self) -> str:
        return f"Place({self.directory!r}, {self.version})"


class Usage:
    """What the processes of a cgroup use; None where no controller tells."""

    __slots__ = ("cpu_seconds", "memory_bytes", "pids")

    def __init__(self, cpu_seconds: float | None, memory_bytes: int | None, pids: int | None) -> None:
        self.cpu_seconds = cpu_seconds
        self.memory_bytes = memory_bytes
        self.pids = pids


class Cgroups:
    """The cgroups of one RIK host. ``reasons`` says of each controller that is not in ``places`` why not."""

    def __init__(self, host_id: str, places: dict[str, Place], reasons: dict[str, str]) -> None:
        self.host_id = host_id
        self.places = places
        self.reasons = reasons

    @classmethod
    def find(cls, host_id: str) -> Cgroups:
        """Looks where cgroups of this host id can be made, by making ``rik-<host id>`` there."""
        places: dict[str, Place] = {}
        reasons: dict[str, str] = {}
        mounts = _mounts()
        for controller in (*CONTROLLERS, "cpuacct"):
            place, reason = _find(controller, mounts, _PREFIX + host_id)
            if place is not None:
                places[controller] = place
            elif controller != "cpuacct":  # version 1 only, and only told, not limited
                reasons[controller] = reason
        return cls(host_id, places, reasons)

    def create(self, uid: str, containers: list[str], cpu_millis: int, memory_bytes: int, pids: int) -> dict[str, str]:
        """Makes a pod's cgroups and sets its limits (0: none). Returns why a wanted limit is not enforced, by name."""
        failed: dict[str, str] = {}
        wanted = {"cpu": cpu_millis, "memory": memory_bytes, "pids": pids}
        for controller, place in self.places.items():
            pod = os.path.join(place.directory, uid)
            try:
                try:
                    _make(pod)
                except FileNotFoundError:  # somebody has tidied up while no pod was in it
                    self._make_anew(place)
                    _make(pod)
                if place.version == 2:
                    _enable(pod, [name for name, other in self.places.items() if other.directory == place.directory])
                for name in containers:
                    _make(os.path.join(pod, name))
            except OSError as error:
                failed[controller] = _why(error)
                continue
            amount = wanted.get(controller, 0)
            if amount:
                try:
                    _limit(pod, place.version, controller, amount)
                except OSError as error:
                    failed[controller] = _why(error)
        for controller in CONTROLLERS:
            if wanted[controller] and controller not in self.places:
                failed[controller] = self.reasons[controller]
        return {name: reason for name, reason in failed.items() if wanted.get(name)}

    def _make_anew(self, place: Place) -> None:
        base, name = os.path.split(place.directory)
        _make(place.directory)
        for controller, other in self.places.items():
            if place.version == 2 and other.directory == place.directory:
                _enable_below(base, name, controller)

    def directories(self, uid: str, container: str = "") -> list[str]:
        """The directories of a pod's (or its container's) cgroup that exist, one for each hierarchy."""
        paths = {os.path.join(place.directory, uid, container).rstrip("/") for place in self.places.values()}
        return sorted(path for path in paths if os.path.isdir(path))

    def oom_file(self, uid: str, container: str) -> str:
        """The file whose line ``oom_kill N`` counts killed processes of a container; "" when there is none."""
        place = self.places.get("memory")
        if place is None:
            return ""
        name = "memory.events" if place.version == 2 else "memory.oom_control"
        directory = os.path.join(place.directory, uid, container)
        return os.path.join(directory, name) if os.path.isdir(directory) else ""

    def usage(self, uid: str, container: str = "") -> Usage:
        """What it uses now; fields are None where it has no cgroup."""
        return Usage(self._cpu_seconds(uid, container), self._memory(uid, container), self._pids(uid, container))

    def _file(self, controller: str, uid: str, container: str, name: str) -> str | None:
        place = self.places.get(controller)
        return None if place is None else _read(os.path.join(place.directory, uid, container, name))

    def _cpu_seconds(self, uid: str, container: str) -> float | None:
        nanoseconds = self._file("cpuacct", uid, container, "cpuacct.usage")
        if nanoseconds is not None:
            return int(nanoseconds) / 1e9
        microseconds = _entry(self._file("cpu", uid, container, "cpu.stat"), "usage_usec")
        return None if microseconds is None else microseconds / 1e6

    def _memory(self, uid: str, container: str) -> int | None:
        """As `docker stats` counts: without the page cache that would be given back first."""
        used = self._file("memory", uid, container, "memory.current")
        key = "inactive_file"
        if used is None:
            used, key = self._file("memory", uid, container, "memory.usage_in_bytes"), "total_inactive_file"
        if used is None:
            return None
        cache = _entry(self._file("memory", uid, container, "memory.stat"), key) or 0
        return max(0, int(used) - cache)

    def _pids(self, uid: str, container: str) -> int | None:
        current = self._file("pids", uid, container, "pids.current")
        return None if current is None else int(current)

    def owners(self) -> dict[str, str]:
        """Every cgroup of a pod of this host: its directory and the uid that its name carries."""
        found: dict[str, str] = {}
        for directory in {place.directory for place in self.places.values()}:
            for name in _subdirectories(directory):
                found[os.path.join(directory, name)] = name
        return found

    def processes(self, uid: str) -> list[int]:
        """The pids of everything in a pod's cgroups."""
        pids: set[int] = set()
        for directory in self.directories(uid):
            for path in (directory, *(os.path.join(directory, name) for name in _subdirectories(directory))):
                pids.update(int(line) for line in (_read(os.path.join(path, "cgroup.procs")) or "").split())
        return sorted(pids)

    def remove(self, uid: str) -> list[str]:
        """Removes a pod's cgroups; returns the directories that are still busy."""
        return [path for directory in self.directories(uid) for path in _remove(directory)]

    def close(self) -> None:
        """Removes this host's own directories where no pod is left in them."""
        for directory in {place.directory for place in self.places.values()}:
            try:
                os.rmdir(directory)
            except OSError:  # pods are in it, or it is gone
                continue


def oom_kills(text: str) -> int:
    """How many processes were killed, from the text of `Cgroups.oom_file`."""
    return _entry(text, "oom_kill") or 0


def _mounts() -> list[tuple[int, str, str, frozenset[str]]]:
    """Mounted hierarchies: (version, mount point, own path in it, controllers)."""
    own: dict[str, str] = {}
    with open("/proc/self/cgroup", encoding="utf-8") as file:
        for line in file:
            _, names, path = line.rstrip("\n").split(":", 2)
            own.update(dict.fromkeys(names.split(","), path))
    found = []
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        for line in file:
            before, _, after = line.partition(" - ")
            point, (kind, _, options) = before.split()[4], after.split()[:3]
            if kind == "cgroup2":
                controllers = frozenset((_read(os.path.join(point, "cgroup.controllers")) or "").split())
                found.append((2, point, own.get("", "/"), controllers))
            elif kind == "cgroup":
                controllers = frozenset(options.split(","))
                path = next((own[name] for name in controllers if name in own), "/")
                found.append((1, point, path, controllers))
    return found


def _find(controller: str, mounts: list[tuple[int, str, str, frozenset[str]]], name: str) -> tuple[Place | None, str]:
    reason = f"no {controller} controller is mounted under /sys/fs/cgroup"
    for version, point, own, controllers in mounts:
        if controller not in controllers:
            continue
        for base in _bases(point, own):
            directory = os.path.join(base, name)
            try:
                if version == 2:
                    _enable_below(base, name, controller)
                else:
                    _make(directory)
                os.close(os.open(os.path.join(directory, "cgroup.procs"), os.O_WRONLY | os.O_CLOEXEC))
            except OSError as error:
                reason = f"no writable {controller} cgroup: {_why(error)}"
                continue
            return Place(directory, version), ""
    return None, reason


def _bases(point: str, own: str) -> list[str]:
    """Where to try, best first: the hierarchy's root, then from the own cgroup up."""
    bases = [point]
    path = own if not own.startswith("/..") else "/"
    while path not in ("/", ""):
        bases.append(point + path)
        path = os.path.dirname(path)
    return bases


def _enable_below(base: str, name: str, controller: str) -> None:
    directory = os.path.join(base, name)
    if controller not in (_read(os.path.join(base, "cgroup.subtree_control")) or "").split():
        try:
            _enable(base, [controller])
        except OSError as error:
            if error.errno != errno.EBUSY or not _step_aside(base, name):
                raise
            _enable(base, [controller])
    _make(directory)
    _enable(directory, [controller])


def _step_aside(base: str, name: str) -> bool:
    """Moves this process, if it is the only one of its cgroup, into a leaf: a cgroup with processes cannot have limits
    for its children (the "no internal processes" rule of version 2)."""
    if (_read(os.path.join(base, "cgroup.procs")) or "").split() != [str(os.getpid())]:
        return False
    leaf = os.path.join(base, name + "-host")
    _make(leaf)
    _write(os.path.join(leaf, "cgroup.procs"), str(os.getpid()))
    return True


def _enable(directory: str, controllers: list[str]) -> None:
    for controller in controllers:
        _write(os.path.join(directory, "cgroup.subtree_control"), f"+{controller}")


def _limit(pod: str, version: int, controller: str, amount: int) -> None:
    if controller == "pids":
        _write(os.path.join(pod, "pids.max"), str(amount))
    elif controller == "cpu":
        quota = max(CPU_QUOTA_LEAST_US, amount * CPU_PERIOD_US // 1000)
        if version == 2:
            _write(os.path.join(pod, "cpu.max"), f"{quota} {CPU_PERIOD_US}")
        else:
            _write(os.path.join(pod, "cpu.cfs_period_us"), str(CPU_PERIOD_US))
            _write(os.path.join(pod, "cpu.cfs_quota_us"), str(quota))
    elif version == 2:
        _write(os.path.join(pod, "memory.max"), str(amount))
        _write_if_there(os.path.join(pod, "memory.swap.max"), "0")
    else:
        _write(os.path.join(pod, "memory.limit_in_bytes"), str(amount))
        _write_if_there(os.path.join(pod, "memory.memsw.limit_in_bytes"), str(amount))


def _make(directory: str) -> None:
    try:
        os.mkdir(directory, 0o755)
    except FileExistsError:
        return


def _remove(directory: str) -> list[str]:
    busy = [path for name in _subdirectories(directory) for path in _remove(os.path.join(directory, name))]
    try:
        os.rmdir(directory)
    except FileNotFoundError:
        return busy
    except OSError:
        return [*busy, directory]
    return busy


def _subdirectories(directory: str) -> list[str]:
    try:
        with os.scandir(directory) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []


def _read(path: str) -> str | None:
    try:
        with open(path, encoding="ascii") as file:
            return file.read().strip()
    except OSError:  # gone with its cgroup, or not a file of this version
        return None


def _entry(text: str | None, key: str) -> int | None:
    for line in (text or "").splitlines():
        name, _, value = line.partition(" ")
        if name == key:
            return int(value)
    return None


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode("ascii"))
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None
    finally:
        os.close(fd)


def _write_if_there(path: str, text: str) -> None:
    if os.path.exists(path):
        _write(path, text)


def _why(error: OSError) -> str:
    return f"{error.filename}: {error.strerror}"

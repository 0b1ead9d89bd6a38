"""What a pod is, in the form its supervisor reads (``pod.json``): the document and its images, resolved."""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import signal
from pathlib import Path
from typing import Any

from rik.images.manifest import ImageConfig
from rik.images.store import Image
from rik.linux.cgroups import Cgroups
from rik.linux.idmap import SINGLE, IdMap
from rik.model.workload import HOST_IMAGE, ContainerSpec
from rik.runtime.base import Pod
from rik.runtime.process.layout import Layout
from rik.runtime.process.podinit.logs import FILE_BYTES, FILE_COUNT

PLAIN = "plain"
NAMESPACES = "namespaces"


def pod_spec(
    pod: Pod, layout: Layout, images: dict[str, Image], cgroups: Cgroups, idmap: IdMap | None, enforced: dict[str, Any]
) -> dict[str, Any]:
    """`images` by container name; `idmap` None: plainly, without namespaces."""
    name = pod.assignment.name[:63] or "pod"
    mode = PLAIN if idmap is None else NAMESPACES
    return {
        "uid": pod.uid,
        "token": secrets.token_hex(16),
        "mode": mode,
        "idmap": idmap.to_json() if idmap is not None else None,
        "owner_uid": os.geteuid(),
        "host_network": pod.spec.host_network,
        "hostname": name,
        "resolv_conf": _resolv_conf(),
        "socket": str(layout.socket(pod.uid)),
        "log_directory": str(layout.log_directory(pod.uid)),
        "log_file_bytes": FILE_BYTES,
        "log_files": FILE_COUNT,
        "grace_s": pod.spec.stop_grace_s,
        "memory_bytes": pod.spec.resources.memory_bytes,
        "hidden": _hidden(layout),
        "sockets": sockets_of_the_host(),
        "enforced": enforced,
        "containers": [
            _container(container, pod.uid, name, images.get(container.name), cgroups, layout.host_id, mode)
            for container in pod.spec.containers
        ],
    }


_OWN_OF_PODS = ("/tmp/", "/var/tmp/", "/run/", "/var/run/", "/home/", "/root/", "/dev/", "/proc/", "/sys/")
NOT_ASKED = "no limit was asked for"
_MOST_SIGNAL_CHARS = 100


def enforced(pod: Pod, unlimited: dict[str, str], idmap: IdMap | None) -> dict[str, bool | str]:
    """What of the document's wishes holds here; `unlimited` says why a wanted limit does not."""
    wanted = pod.spec.resources
    found: dict[str, bool | str] = {}
    for limit, amount in (("cpu", wanted.cpu_millis), ("memory", wanted.memory_bytes), ("pids", wanted.pids)):
        found[limit] = (unlimited.get(limit) or True) if amount else NOT_ASKED
    if idmap is None:
        found["isolation"] = "none: it runs plainly, without namespaces, because of --unsafe-plain"
        found["network"] = "the host's network is shared: it runs plainly"
        return found
    found["isolation"] = True
    found["network"] = "the host's network is shared, as spec.hostNetwork asks" if pod.spec.host_network else True
    if idmap.mode == SINGLE:
        found["users"] = idmap.note or "a pod has one user id"
    return found


def _container(
    container: ContainerSpec,
    uid: str,
    hostname: str,
    image: Image | None,
    cgroups: Cgroups,
    host_id: str,
    mode: str,
) -> dict[str, Any]:
    config = image.config if image is not None else ImageConfig()
    env = [tuple(entry.partition("=")[::2]) for entry in config.env]
    env += list(container.env)
    if mode == PLAIN:
        # Without a pid namespace its processes can get away: this is how the sweep knows them.
        env.append((INSTANCE_VARIABLE, instance_mark(host_id, uid)))
    return {
        "name": container.name,
        "image": HOST_IMAGE if image is None else "layers",
        "reference": container.image,
        "layers": [str(path) for path in image.layers] if image is not None else [],
        "argv": argv(container, config),
        "env": env,
        "user": container.user or config.user,
        "cwd": container.working_dir or config.working_dir or ("/" if mode == NAMESPACES else "/tmp"),
        "stdin": container.stdin,
        "tty": container.tty,
        "stop_signal": stop_signal(config.stop_signal),
        "hostname": hostname,
        "cgroups": cgroups.directories(uid, container.name),
        "oom_file": cgroups.oom_file(uid, container.name),
    }


INSTANCE_VARIABLE = "RIK_INSTANCE"


def instance_mark(host_id: str, uid: str) -> str:
    """The value of `INSTANCE_VARIABLE` in the environment of a plain pod's processes."""
    return f"{host_id}.{uid}"


def argv(container: ContainerSpec, config: ImageConfig) -> list[str]:
    """`command` takes the place of the image's entrypoint (and of its arguments), `args` that of its arguments."""
    if container.command is not None:
        return [*container.command, *(container.args or ())]
    return [*config.entrypoint, *(container.args if container.args is not None else config.cmd)]


def stop_signal(name: str) -> int:
    """The number of a signal written as `SIGQUIT`, `QUIT` or `3`; SIGTERM when it is none."""
    text = name.strip().upper()[:_MOST_SIGNAL_CHARS]  # `int` refuses thousands of digits
    if text.isdecimal() and 0 < int(text) <= 64:
        return int(text)
    try:
        return int(signal.Signals[text if text.startswith("SIG") else f"SIG{text}"])
    except KeyError:
        pass
    base, _, offset = text.removeprefix("SIG").partition("+")
    if base == "RTMIN" and offset.isdecimal():
        return min(64, int(signal.SIGRTMIN) + int(offset))
    return int(signal.SIGTERM)


def sockets_of_the_host() -> list[str]:
    """The paths of unix sockets that this host's network namespace has now; those in directories that a pod has of its
    own are left out."""
    try:
        text = Path("/proc/net/unix").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:  # hidden by whoever contains RIK
        return []
    paths = {line.split(maxsplit=7)[-1] for line in text.splitlines()[1:]}
    named = {path for path in paths if path.startswith("/") and not path.startswith(_OWN_OF_PODS)}
    return sorted(path for path in named if Path(path).is_socket())  # else it is one of another mount namespace


def _hidden(layout: Layout) -> list[str]:
    """Whatever of RIK's own, and of its user's, a pod on the `host` image must not see."""
    paths = {str(layout.data_dir), str(layout.run_dir.parent)}
    homes = {os.environ.get("HOME", "")}
    with contextlib.suppress(KeyError):  # a user without an entry in the password file
        homes.add(pwd.getpwuid(os.geteuid()).pw_dir)
    return sorted(paths | {home for home in homes if home.startswith("/") and Path(home) != Path("/")})


def _resolv_conf() -> str:
    try:
        return Path("/etc/resolv.conf").read_text(encoding="utf-8", errors="replace")
    except OSError:  # none: names are not resolved on this host either
        return ""

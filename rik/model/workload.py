"""A workload: the stored definition, and the typed form of its spec that schedulers and runtimes read.

`rik.model.document` checks documents; what is here trusts a checked one and only gives it types and defaults.
"""

from __future__ import annotations

from typing import Any

from rik.model.instance import Port, Record
from rik.model.resources import Resources, parse_cpu_millis, parse_memory_bytes

POD = "Pod"
FUNCTION = "Function"
HOST_IMAGE = "host"
# When an image is asked for at its registry: never when it is here, each time, or never at all.
IF_NOT_PRESENT = "IfNotPresent"
ALWAYS = "Always"
NEVER = "Never"
DEFAULT_NAMESPACE = "default"

DEFAULT_STOP_GRACE_S = 10.0
DEFAULT_PENDING_S = 600.0
DEFAULT_CREATING_S = 600.0
FUNCTION_DEFAULT_TARGET_PORT = 8080


class Workload(Record, frozen=True):
    """The record of one workload; `document` is normalised: containers and replicas are filled in."""

    id: str
    name: str
    namespace: str
    document: dict[str, Any]
    created_at: int
    revision: int = 0

    @property
    def kind(self) -> str:
        return str(self.document["kind"])


class ContainerSpec(Record, frozen=True):
    """One container of a pod; `command` and `args` None means what the image says; `image_pull_policy` is
    IfNotPresent, Always or Never."""

    name: str
    image: str
    command: tuple[str, ...] | None = None
    args: tuple[str, ...] | None = None
    env: tuple[tuple[str, str], ...] = ()
    working_dir: str = ""
    user: str = ""
    stdin: bool = False
    tty: bool = False
    ports: tuple[Port, ...] = ()
    image_pull_policy: str = IF_NOT_PRESENT


class FunctionSpec(Record, frozen=True):
    """A function's root file system and what runs in it; `exposure` None: a free port leads to 8080."""

    rootfs: str
    sha256: str = ""
    init: str = ""
    command: tuple[str, ...] | None = None
    exposure: Port | None = None


class Spec(Record, frozen=True):
    """What one instance asks for. Durations are seconds; `resources` bind all containers together."""

    kind: str
    containers: tuple[ContainerSpec, ...] = ()
    function: FunctionSpec | None = None
    resources: Resources = Resources()
    node_selector: dict[str, str] = {}
    host_network: bool = False
    stop_grace_s: float = DEFAULT_STOP_GRACE_S
    pending_s: float = DEFAULT_PENDING_S
    creating_s: float = DEFAULT_CREATING_S

    @property
    def ports(self) -> tuple[Port, ...]:
        """Every port the instance wants published, in the document's order."""
        if self.kind == FUNCTION:
            exposure = self.function.exposure if self.function else None
            return (exposure or Port(port=0, target_port=FUNCTION_DEFAULT_TARGET_PORT),)
        return tuple(port for container in self.containers for port in container.ports)


def parse_spec(kind: str, spec: dict[str, Any]) -> Spec:
    """The typed form of the `spec` of a document that `rik.model.document.validate` has accepted."""
    resources = spec.get("resources") or {}
    deadlines = spec.get("deadlines") or {}
    function = spec.get("function") if kind == FUNCTION else None
    return Spec(
        kind=kind,
        containers=tuple(_container(item) for item in spec.get("containers") or ()) if kind == POD else (),
        function=_function(function) if function else None,
        resources=Resources(
            cpu_millis=parse_cpu_millis(resources["cpu"]) if resources.get("cpu") is not None else 0,
            memory_bytes=parse_memory_bytes(resources["memory"]) if resources.get("memory") is not None else 0,
            pids=int(resources.get("pids") or 0),
        ),
        node_selector={str(key): str(value) for key, value in (spec.get("nodeSelector") or {}).items()},
        host_network=bool(spec.get("hostNetwork")),
        stop_grace_s=float(_default(spec.get("stopGraceSeconds"), DEFAULT_STOP_GRACE_S)),
        pending_s=float(_default(deadlines.get("pendingSeconds"), DEFAULT_PENDING_S)),
        creating_s=float(_default(deadlines.get("creatingSeconds"), DEFAULT_CREATING_S)),
    )


def _default(value: Any, default: float) -> Any:
    return default if value is None else value


def _container(item: dict[str, Any]) -> ContainerSpec:
    command, args = item.get("command"), item.get("args")
    return ContainerSpec(
        name=item["name"],
        image=item["image"],
        command=tuple(command) if command is not None else None,
        args=tuple(args) if args is not None else None,
        env=tuple((entry["name"], str(entry.get("value", ""))) for entry in item.get("env") or ()),
        working_dir=item.get("workingDir") or "",
        user=str(item.get("user") or "") if item.get("user") != 0 else "0",
        stdin=bool(item.get("stdin")),
        tty=bool(item.get("tty")),
        ports=_ports(item.get("ports")),
        image_pull_policy=item.get("imagePullPolicy") or IF_NOT_PRESENT,
    )


def _function(item: dict[str, Any]) -> FunctionSpec:
    execution = item["execution"]
    command = execution.get("command")
    exposure = _ports(item.get("exposure"))
    return FunctionSpec(
        rootfs=execution["rootfs"],
        sha256=execution.get("sha256") or "",
        init=execution.get("init") or "",
        command=tuple(command) if command is not None else None,
        exposure=exposure[0] if exposure else None,
    )


def _ports(value: Any) -> tuple[Port, ...]:
    items = [value] if isinstance(value, dict) else list(value or ())
    return tuple(_port(item) for item in items)


def _port(item: dict[str, Any]) -> Port:
    kind = str(item.get("type") or "NodePort").lower()
    target = item.get("targetPort", item.get("target_port"))
    port = int(item.get("port") or 0)
    return Port(
        port=0 if kind == "clusterip" else port,
        target_port=int(target or port),
        protocol=str(item.get("protocol") or "TCP").upper(),
        type="ClusterIP" if kind == "clusterip" else "NodePort",
    )

"""An instance in words: where it stands, why it ended, where its ports are. Pure functions from a record to text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rik.cli.amounts import absolute, amount, between
from rik.cli.output import clean
from rik.cli.progress import percent, phrase
from rik.cli.spelling import spelled

FINAL = ("Failed", "Terminated")
LAST_LINES = 10
LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")
ANY_ADDRESSES = ("", "0.0.0.0", "::", "*")
EXIT_NOT_FOUND = 127  # what shells report for a command that does not exist
EXIT_SIGNAL_BASE = 128

Record = Mapping[str, Any]


def is_final(instance: Record) -> bool:
    return instance.get("status") in FINAL


def status_phrase(instance: Record) -> str:
    """The status, with the step and its progress while it is being created: `Creating pull 43 %`."""
    status = str(instance.get("status") or "?")
    if status == "Creating" and instance.get("step"):
        return f"{status} {progress_phrase(instance)}"
    if instance.get("stale_since") and not is_final(instance):
        return f"{status} (node silent)"
    return status


def progress_phrase(instance: Record) -> str:
    """`pull 43 %`, `pull 12.3 MiB` when the total is unknown, `start` without numbers."""
    step = str(instance.get("step") or "")
    progress = instance.get("progress") or {}
    share, done = percent(progress), progress.get("done") or 0
    if share is not None:
        return f"{step} {share} %"
    return f"{step} {amount(done, progress.get('unit') or 'bytes')}" if done else step


def progress_in_full(instance: Record, room: int | None = None) -> str:
    """`pull 43 % (108 of 250 MB, 2 of 6 layers, 12 s)`, for a line of its own; as much of it as has `room`."""
    return phrase(str(instance.get("step") or ""), instance.get("progress") or {}, room)


def why(instance: Record) -> str:
    """`Reason: sentence`, or either alone, or ""."""
    reason, message = str(instance.get("reason") or ""), str(instance.get("message") or "")
    return f"{reason}: {message}" if reason and message else reason or message


def remarkable(instance: Record) -> str:
    """As `why`, for a column or a line: nothing about what simply runs."""
    return "" if instance.get("status") == "Running" and not instance.get("reason") else why(instance)


def ending(container: Record) -> str:
    """How a container ended: `exit code 3`, `killed by SIGKILL (out of memory)`, or "" while it has not."""
    signal, code = container.get("signal"), container.get("exit_code")
    oom = " (out of memory)" if container.get("oom_killed") else ""
    if signal:
        return f"killed by {signal}{oom}"
    return f"exit code {code}{oom}" if code is not None else ""


def exit_code(instance: Record) -> int:
    """The code that `rik run --rm` ends with: that of the first container that did not end well, as a shell has it."""
    if instance.get("status") == "Terminated":
        return 0
    for container in instance.get("containers") or ():
        code = container_exit_code(container)
        if code:
            return code
    return EXIT_NOT_FOUND if instance.get("reason") == "CommandNotFound" else 1


def container_exit_code(container: Record) -> int | None:
    """0 to 255: the exit code, or 128 + the signal's number; None while there is neither."""
    code, name = container.get("exit_code"), container.get("signal")
    if code is not None:
        return int(code) & 0xFF
    if not name:
        return None
    import signal

    try:
        return EXIT_SIGNAL_BASE + signal.Signals[str(name)].value
    except KeyError:
        return EXIT_SIGNAL_BASE


def explanation(instance: Record, *, with_output: bool = True) -> list[str]:
    """The lines that a failure deserves: what, why, each container's end, its last words, and what to do next."""
    name = str(instance.get("name"))
    lines = [f"{name} {str(instance.get('status')).lower()}: {clean(why(instance)) or 'no reason was given'}"]
    for container in instance.get("containers") or ():
        end = ending(container)
        if end:
            lived = between(container.get("started_at"), container.get("ended_at"))
            lines.append(f"  container {container.get('name')}: {end}{f' after {lived}' if lived else ''}")
    if with_output:
        tail = list(instance.get("log_tail") or ())[-LAST_LINES:]
        if tail:
            lines.append("  last lines of output:")
            lines.extend(f"    {line}" for line in tail_lines(tail))
    lines.append(f"  next: {spelled(f'describe instance {name}')}")
    return lines


def tail_lines(tail: Iterable[Record], *, times: bool = False) -> list[str]:
    """One text per log line; the container is named when there are several, and a note of RIK's own is marked."""
    entries = list(tail)
    several = len({entry.get("container") for entry in entries}) > 1
    lines = []
    for entry in entries:
        head = f"{absolute(entry.get('at'))} " if times else ""
        who = f"{entry.get('container')} " if several else ""
        mark = "! " if entry.get("stream") == "stderr" else "~ rik: " if entry.get("stream") == "rik" else "| "
        lines.append(f"{head}{who}{mark}{clean(entry.get('line', ''))}")
    return lines


def port_place(port: Record, server_host: str = "127.0.0.1") -> str:
    """Where a port can be reached: a URL for a published TCP port (terminals make it clickable), else `ADDRESS:PORT`.

    A port that listens on every address is shown at the address by which we reach the server.
    """
    host, number = _split_address(str(port.get("address") or ""), int(port.get("port") or 0))
    if str(port.get("type")) == "ClusterIP":
        number = number or int(port.get("targetPort") or 0)
        return f"{bracketed(host)}:{number}" if host else f"port {number} of the pod"
    if host in ANY_ADDRESSES:
        host = "127.0.0.1" if server_host in LOOPBACK_HOSTS else server_host
    place = f"{bracketed(host)}:{number}"
    return f"http://{place}" if str(port.get("protocol", "TCP")).upper() == "TCP" else f"{place}/udp"


def port_line(port: Record, server_host: str = "127.0.0.1") -> str:
    """`http://127.0.0.1:18080 -> 8080/TCP (NodePort)`."""
    known = port.get("port") or port.get("address") or str(port.get("type")) == "ClusterIP"
    place = port_place(port, server_host) if known else "(not chosen yet)"
    return f"{place} -> {port.get('targetPort')}/{port.get('protocol', 'TCP')} ({port.get('type', 'NodePort')})"


def short_ports(instance: Record) -> str:
    """`18080->8080, 53->53/UDP`, for a table."""
    parts = []
    for port in instance.get("ports") or ():
        udp = "/UDP" if str(port.get("protocol", "TCP")).upper() == "UDP" else ""
        parts.append(f"{port.get('port') or '?'}->{port.get('targetPort')}{udp}")
    return ", ".join(parts)


def bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _split_address(address: str, port: int) -> tuple[str, int]:
    """Host and port of `HOST`, `HOST:PORT`, `[V6]:PORT` or `V6`."""
    if address.startswith("["):
        host, _, rest = address[1:].partition("]")
        return host, int(rest[1:]) if rest[1:].isdecimal() else port
    if address.count(":") == 1:
        host, _, rest = address.partition(":")
        return host, int(rest) if rest.isdecimal() else port
    return address, port

"""Where pod inits are forked from: a process that has everything imported already and does nothing else.

A pod init made from it is there 25 ms sooner than a new interpreter, and shares most of its memory with all the others.
The zygote belongs to one RIK and ends with it; the pod inits live on.

    python -I -S -c "…; main(ARGUMENTS)" CHANNEL_FD PADDING

A packet on the channel (SOCK_SEQPACKET): JSON ``{"directory": …}`` with the descriptors of the lock, the control
socket, standard error and, if pods are bound to RIK, the death pipe. The answer: ``{"pid": …}`` or ``{"error": …}``.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import socket

from rik.linux import syscalls
from rik.linux.identity import stat_fields
from rik.runtime.process.podinit import main as pod_init

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

PACKET_BYTES = 65_536
_MOST_FDS = 4
# What a pod's processes show as their arguments is written over the zygote's own, which must be as long.
PADDING_BYTES = 1024
_ARGUMENTS_START, _ARGUMENTS_END = 45, 46  # of `stat_fields`


def main(arguments: list[str]) -> None:
    """Returns when RIK has gone."""
    syscalls.close_all_but({0, 1, 2, int(arguments[0])})  # RIK may have inherited what is not for us
    channel = socket.socket(fileno=int(arguments[0]))
    channel.set_inheritable(False)
    os.chdir("/")
    syscalls.set_process_name("rik-zygote")
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # whatever ends RIK is not meant for us: its end is
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel buries pod inits by itself
    gc.collect()
    gc.freeze()
    while True:
        try:
            data, fds, _, _ = socket.recv_fds(channel, PACKET_BYTES, _MOST_FDS)
        except ConnectionError:
            return
        if not data:
            return
        try:
            directory = str(json.loads(data)["directory"])
            pid = os.fork()
            if pid == 0:
                _become(directory, fds)
            answer: dict[str, object] = {"pid": pid}
        except (OSError, ValueError, KeyError) as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        for fd in fds:
            os.close(fd)
        try:
            channel.send(json.dumps(answer).encode())
        except OSError:  # RIK has gone; the pod lives on
            return


def _become(directory: str, fds: list[int]) -> NoReturn:
    """The pod init, from here on."""
    status = 1
    try:
        os.setsid()
        os.dup2(fds[2], 2)
        lock, listener, death = fds[0], fds[1], fds[3] if len(fds) > 3 else -1
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        show_arguments(["rik-pod", pod_init.__name__, directory])
        pod_init.main([directory, str(lock), str(listener), str(death)])
        status = 0
    except BaseException as error:  # noqa: BLE001 - a forked child has nobody above it
        os.write(2, f"{type(error).__name__}: {error} (line {_line(error)})\n".encode())
    finally:
        os._exit(status)


def _line(error: BaseException) -> str:
    """Where it was raised. The traceback module may no longer be readable."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace is not None else "?"


def show_arguments(arguments: list[str]) -> None:
    """Makes `/proc/PID/cmdline` of this process say ``arguments``: by them a pod's processes are known."""
    fields = stat_fields(os.getpid())
    if fields is None:
        return
    start, end = int(fields[_ARGUMENTS_START]), int(fields[_ARGUMENTS_END])
    text = b"".join(os.fsencode(argument) + b"\0" for argument in arguments)
    if start and len(text) <= end - start:
        ctypes.memmove(start, text.ljust(end - start, b"\0"), end - start)

"""The control socket: SOCK_SEQPACKET, one JSON message a packet, descriptors by SCM_RIGHTS.

A connection's first packet is its request: ``{"v": 1, "token": …, "op": …}``. Ops and what comes back:

``watch``   ``{"state": …}`` now and after every change; one that is not read in time is replaced by the next
``stop``    ``grace_s``: ``{"ok": true}`` at once; the end is seen by watching. A later, shorter grace replaces it
``exec``    `execution.Execution`; in: ``{"signal": N}``. Closing the connection kills the command
``attach``  ``{"attached": {"tty"}}``, then packets of bytes: first byte 1 stdout, 2 stderr; in: first byte 0 stdin
            (nothing after it: end of input), 3 JSON ``{"resize": [columns, rows]}``. ``{"exited": …}`` at the end
``socket``  ``type`` tcp or udp, ``family`` 4 or 6: ``{"ok": true}`` with an unconnected socket of the pod's network

Anything wrong is answered by ``{"error": …}`` where possible, and the connection is closed; the pod does not notice.
"""

from __future__ import annotations

import array
import json
import os
import socket
import struct

from rik.runtime.process.podinit.execution import Execution
from rik.runtime.process.podinit.loop import READ, WRITE, Loop
from rik.runtime.process.podinit.records import PROTOCOL

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from rik.runtime.process.podinit.container import Container
    from rik.runtime.process.podinit.pod import Pod

PACKET_BYTES = 200_000
CONNECTIONS = 256
QUEUE_BYTES = 1 << 20  # of output that one attached client may be behind
_CREDENTIALS = struct.Struct("3i")


class Server:
    """Accepts on a listening socket; ``peer_uid`` is how the user who may connect looks from in here."""

    def __init__(self, listener: socket.socket, pod: Pod, loop: Loop, peer_uid: int) -> None:
        self._listener = listener
        self.pod = pod
        self.loop = loop
        self._peer_uid = peer_uid
        self.connections: set[Connection] = set()
        listener.setblocking(False)
        self._listen()

    def changed(self) -> None:
        """Tells every watcher."""
        for connection in list(self.connections):
            connection.state_changed()

    def flush(self) -> None:
        """Last words before the pod init exits."""
        for connection in list(self.connections):
            connection.flush()

    def closed(self, connection: Connection) -> None:
        """There is room again."""
        self.connections.discard(connection)
        self._listen()

    def _listen(self) -> None:
        self.loop.watch(self._listener.fileno(), READ, self._accept)

    def _accept(self, events: int) -> None:
        if len(self.connections) >= CONNECTIONS:
            self.loop.forget(self._listener.fileno())  # the others wait in the kernel's queue
            return
        try:
            peer, _ = self._listener.accept()
        except OSError:  # it went away again, or there are no descriptors left: the rest of the pod goes on
            return
        credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        if _CREDENTIALS.unpack(credentials)[1] != self._peer_uid:
            peer.close()
            return
        peer.setblocking(False)
        self.connections.add(Connection(peer, self))


class Connection:
    """One client: its request, and what is still to be sent to it."""

    def __init__(self, peer: socket.socket, server: Server) -> None:
        self._peer = peer
        self._server = server
        self._queue: list[tuple[bytes, list[int]]] = []
        self._queued_bytes = 0
        self._op = ""
        self._stale = False
        self._execution: Execution | None = None
        self._container: Container | None = None
        self._input = b""
        self._input_ended = False
        self._closing = False
        self._watch()

    def send(self, message: dict[str, Any], fds: list[int]) -> None:
        """Takes over the descriptors."""
        self._put(json.dumps(message).encode(), fds)

    def state_changed(self) -> None:
        if self._op == "watch":
            self._stale = True
            self.flush()

    def flush(self) -> None:
        """Sends what can be sent now."""
        try:
            while self._queue or self._stale:
                if not self._queue:
                    self._stale = False
                    self._queue.append((json.dumps({"state": self._server.pod.describe()}).encode(), []))
                data, fds = self._queue[0]
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
                self._peer.sendmsg([data], rights, socket.MSG_NOSIGNAL)
                self._queue.pop(0)
                self._queued_bytes -= len(data)
                _close_all(fds)
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            return
        if self._closing and not self._queue:
            self.close()
            return
        self._watch()

    def close(self) -> None:
        if self not in self._server.connections and self._peer.fileno() < 0:
            return
        self._server.loop.forget(self._peer.fileno())
        self._peer.close()
        self._server.closed(self)
        for _, fds in self._queue:
            _close_all(fds)
        self._queue.clear()
        if self._execution is not None and not self._execution.over:
            self._execution.abandon()
        if self._container is not None and self._output in self._container.listeners:
            self._container.listeners.remove(self._output)

    def _put(self, data: bytes, fds: list[int]) -> None:
        if self._peer.fileno() < 0:
            _close_all(fds)
            return
        self._queue.append((data, fds))
        self._queued_bytes += len(data)
        self.flush()

    def _watch(self) -> None:
        events = 0 if self._input else READ  # input that the container does not take yet holds up its sender
        events |= WRITE if self._queue or self._stale else 0
        self._server.loop.watch(self._peer.fileno(), events, self._ready)

    def _ready(self, events: int) -> None:
        if events & WRITE:
            self.flush()
        if events & ~WRITE and self._peer.fileno() >= 0:
            self._receive()

    def _receive(self) -> None:
        try:
            data, fds, _, _ = socket.recv_fds(self._peer, PACKET_BYTES, 8)
        except BlockingIOError:
            return
        except OSError:
            data, fds = b"", []
        _close_all(fds)  # nobody is asked for descriptors
        if not data:
            self.close()
            return
        try:
            if self._op == "attach":
                self._take_input(data)
                return
            request = json.loads(data)
            if self._op:
                self._more(request)
            else:
                self._begin(request)
        except OSError as error:
            self._refuse(f"{error.filename or self._op}: {error.strerror or error}")
        except Exception as error:  # noqa: BLE001 - whatever is sent, or wrong with the answer, the pod must not notice
            self._refuse(f"{type(error).__name__}: {error}")

    def _refuse(self, text: str, reason: str = "InternalError") -> None:
        self._closing = True
        self.send({"error": text, "reason": reason}, [])

    def _begin(self, request: dict[str, Any]) -> None:
        # Comparing takes no constant time, which hmac would give for a megabyte: only our own user gets this far.
        if request["token"] != self._server.pod.token:
            self.close()
            return
        if request["v"] != PROTOCOL:
            self._refuse(f"this pod's supervisor speaks version {PROTOCOL} of the protocol, not {request['v']}")
            return
        op = str(request["op"])
        action = {"watch": self._watching, "stop": self._stop, "exec": self._exec, "attach": self._attach}.get(op)
        action = self._socket if op == "socket" else action
        if action is None:
            self._refuse(f"there is no operation {op!r}")
            return
        self._op = op
        action(request)

    def _more(self, request: dict[str, Any]) -> None:
        if self._op == "exec" and self._execution is not None and "signal" in request:
            os.kill(self._execution.pid, int(request["signal"]))

    def _watching(self, request: dict[str, Any]) -> None:
        self.state_changed()

    def _stop(self, request: dict[str, Any]) -> None:
        self._server.pod.stop(float(request["grace_s"]))
        self.send({"ok": True}, [])

    def _running(self, request: dict[str, Any]) -> Container | None:
        container = self._server.pod.container(str(request.get("container") or ""))
        if container is None:
            self._refuse(f"there is no container `{request.get('container')}`", "NotFound")
        elif container.state != "running":
            self._refuse(f"container `{container.name}` is not running", "NotRunning")
        else:
            return container
        return None

    def _exec(self, request: dict[str, Any]) -> None:
        container = self._running(request)
        if container is None:
            return
        execution = Execution(container, request, self._server.loop, self._executed, self._server.pod.isolated)
        execution.start()
        self._execution = execution

    def _executed(self, message: dict[str, Any], fds: list[int]) -> None:
        self._closing = "started" not in message
        self.send(message, fds)

    def _attach(self, request: dict[str, Any]) -> None:
        self._container = self._running(request)
        if self._container is not None:
            self.send({"attached": {"tty": bool(self._container.spec.get("tty"))}}, [])
            self._container.listeners.append(self._output)

    def _output(self, stream: int, data: bytes) -> None:
        assert self._container is not None
        if not data:
            described = self._container.describe()
            self._closing = True
            self.send({"exited": {"exit_code": described["exit_code"], "signal": described["signal"]}}, [])
        elif self._queued_bytes + len(data) > QUEUE_BYTES:
            self._container.listeners.remove(self._output)
            self._refuse("the output came faster than it was read; the log has all of it", "TooSlow")
        else:
            self._put(bytes([stream]) + data, [])

    def _take_input(self, data: bytes) -> None:
        container = self._container
        if container is None:
            return
        if data[0] == 3:
            columns, rows = json.loads(data[1:])["resize"]
            container.resize(int(columns), int(rows))
            return
        if data[0] != 0 or (container.stdin < 0 and container.master < 0):
            return
        if len(data) == 1:
            self._input_ended = True
        self._input += data[1:]
        self._feed()

    def _feed(self) -> None:
        """Passes input on; what does not fit waits, and so does the sender."""
        container = self._container
        assert container is not None
        fd = container.master if container.master >= 0 else container.stdin
        while self._input and fd >= 0:
            try:
                self._input = self._input[os.write(fd, self._input) :]
            except BlockingIOError:
                self._server.loop.after(0.02, self._feed_again)
                break
            except OSError:  # it has closed its input
                self._input = b""
        if fd < 0:
            self._input = b""
        if not self._input and self._input_ended:
            if container.master >= 0:
                self._input, self._input_ended = b"\x04", False  # what a terminal calls the end of input
                self._feed()
                return
            container.close_stdin()
        if self._peer.fileno() >= 0:
            self._watch()

    def _feed_again(self) -> None:
        if self._peer.fileno() >= 0:
            self._feed()

    def _socket(self, request: dict[str, Any]) -> None:
        family = socket.AF_INET6 if request.get("family") == 6 else socket.AF_INET
        kind = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}[request["type"]]
        made = socket.socket(family, kind)
        self._closing = True
        self.send({"ok": True}, [made.detach()])


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)

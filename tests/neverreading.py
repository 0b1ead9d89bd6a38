"""A client that asks to watch and then never reads: a real websocket, without a library that would read for it."""

from __future__ import annotations

import base64
import os
import socket


def never_reading_watcher(port: int, query: str = "", buffer_bytes: int = 2048) -> socket.socket:
    """Connected to a server on this host; `buffer_bytes` is what the kernel takes in its stead."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
    client.connect(("127.0.0.1", port))
    key = base64.b64encode(os.urandom(16)).decode()
    client.sendall(
        f"GET /api/v0/instances.watch{query} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
        f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    return client

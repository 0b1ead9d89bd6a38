"""An HTTP server that answers the calls of the API with what a test has written down, and notes what it was asked.

For answers that a real server gives seldom or slowly: several nodes, errors of registries, a connection that breaks.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PREFIX = "/api/v0/"


class Lines(list[Any]):
    """An answer in chunks, each one line of JSON, `pause_s` apart. `cut` ends the connection in the middle of it."""

    def __init__(self, lines: Sequence[Any], *, cut: bool = False, pause_s: float = 0) -> None:
        super().__init__(lines)
        self.cut = cut
        self.pause_s = pause_s


class Problem(dict[str, Any]):
    """An answer that is an error, as the API writes it."""

    def __init__(self, status: int, detail: str, reason: str = "", next_step: str = "") -> None:
        super().__init__(type="about:blank", title="", status=status, detail=detail, errors=[], reason=reason)
        if next_step:
            self["next"] = next_step


class Scripted:
    """`answers` by call, such as `images.list`; `asked` are the (method, path and query, body) of every request.
    `headers` go with every answer.
    """

    def __init__(self, answers: Mapping[str, Any]) -> None:
        self.answers = answers
        self.asked: list[tuple[str, str, Any]] = []
        self.headers: dict[str, str] = {}
        self.url = ""

    @contextmanager
    def serving(self) -> Iterator[Scripted]:
        server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            thread.join()
            server.server_close()

    def _handler(script: Scripted) -> type[BaseHTTPRequestHandler]:  # noqa: N805  (`self` is the handler's in there)
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._answer(None)

            def do_POST(self) -> None:
                self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def _answer(self, body: Any) -> None:
                path = self.path.removeprefix(PREFIX)
                script.asked.append((self.command, path, body))
                answer = script.answers[path.partition("?")[0]]
                if isinstance(answer, Lines):
                    self._answer_lines(answer)
                    return
                content = json.dumps(answer).encode()
                self.send_response(answer["status"] if isinstance(answer, Problem) else 200)
                self.send_header("Content-Type", "application/json")
                for name, value in script.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def _answer_lines(self, lines: Lines) -> None:
                self.send_response(200)
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                for line in lines:
                    time.sleep(lines.pause_s)
                    content = json.dumps(line).encode() + b"\n"
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(content), content))
                if not lines.cut:
                    self.wfile.write(b"0\r\n\r\n")
                self.close_connection = True

            def log_message(self, format: str, *args: Any) -> None:
                """Nothing: the test knows what it asked."""

        return Handler

"""Logging to standard error: readable text, or one JSON object a line."""

from __future__ import annotations

import logging
import sys
import time
from typing import TextIO

import msgspec

LEVELS = ("debug", "info", "warning", "error")


class _QuietStream(logging.StreamHandler[TextIO]):
    """A standard error that was closed must not end, or slow, anything."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (the library's name)
        if isinstance(sys.exc_info()[1], (OSError, ValueError)):
            return
        super().handleError(record)


class _Text(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s.%(msecs)03dZ %(levelname)-7s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S")
        self.converter = time.gmtime


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        entry = {
            "at": f"{at}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return msgspec.json.encode(entry).decode()


def configure(log_format: str, level: str) -> None:
    """Sets up the root logger; `log_format` is text or json, `level` one of LEVELS."""
    handler = _QuietStream(sys.stderr)
    handler.setFormatter(_Json() if log_format == "json" else _Text())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # A request each is noise; the metrics count them.
    logging.getLogger("hypercorn").setLevel(logging.WARNING)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    # Its debugging texts hold whole headers, and with them signatures and cookies.
    logging.getLogger("httpcore").setLevel(logging.WARNING)

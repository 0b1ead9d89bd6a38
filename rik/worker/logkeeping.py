"""Keeps the logs of ended instances within bounds, oldest first."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import trio

log = logging.getLogger(__name__)

# Between two looks: logs of ended instances do not grow, so that only new ends matter.
INTERVAL_S = 60.0


async def keep_logs(directory: Path, limit_bytes: int, live: Callable[[], frozenset[str]]) -> None:
    """Looks until cancelled; `live` are the instances whose logs are still written."""
    while True:
        try:
            removed = await trio.to_thread.run_sync(trim, directory, limit_bytes, live())
        except OSError as error:
            log.warning("the logs in %s cannot be kept within bounds: %s", directory, error)
            removed = []
        if removed:
            log.info("dropped the logs of %d ended instances to stay within %d bytes", len(removed), limit_bytes)
        await trio.sleep(INTERVAL_S)


def trim(directory: Path, limit_bytes: int, live: frozenset[str]) -> list[str]:
    """Removes the oldest logs of ended instances until the rest is within the limit; returns their uids."""
    kept: list[tuple[float, int, str]] = []
    try:
        uids = os.listdir(directory)
    except FileNotFoundError:
        return []
    for uid in uids:
        if uid not in live:
            size, changed_at = _measure(directory / uid)
            kept.append((changed_at, size, uid))
    total = sum(size for _, size, _ in kept)
    removed = []
    for _, size, uid in sorted(kept):
        if total <= limit_bytes:
            break
        shutil.rmtree(directory / uid, ignore_errors=True)
        total -= size
        removed.append(uid)
    return removed


def _measure(directory: Path) -> tuple[int, float]:
    """Bytes on disk, and when it last changed."""
    size, changed_at = 0, 0.0
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                status = entry.stat(follow_symlinks=False)
                size += status.st_blocks * 512
                changed_at = max(changed_at, status.st_mtime)
    except OSError:  # gone meanwhile, or a file where a directory should be
        pass
    return size, changed_at

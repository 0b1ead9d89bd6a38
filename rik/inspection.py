"""A host looked at from outside of a running RIK: doctor and audit without a server, and what dead demos left."""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import trio

from rik.data_directory import DataDirectory, read_host_id
from rik.environment import Environment, SystemEnvironment
from rik.errors import RikError, StartupError
from rik.images.unpack import remove_tree
from rik.runtimes import equip
from rik.settings import DEMO_PREFIX, ImageSettings, default_data_dir
from rik.worker.audit import audit
from rik.worker.doctor import examine
from rik.worker.images import NodeImages
from rik.worker.sqlitejournal import read_uids

log = logging.getLogger(__name__)


def local_doctor(data_dir: Path | None = None) -> list[dict[str, Any]]:
    """The checks of this host, in the shape of `nodes.doctor`; tries every runtime, and leaves nothing behind."""
    path = data_dir or default_data_dir()

    async def look() -> list[dict[str, Any]]:
        with tempfile.TemporaryDirectory(prefix="rik-doctor-") as scratch:
            runtimes = equip("auto", SystemEnvironment(), Path(scratch), os.urandom(4).hex()).runtimes
            capabilities = []
            for runtime in runtimes:
                async with runtime.open():
                    capabilities.append(await runtime.probe())
            place = path if path.is_dir() else Path(scratch)
            store = equip("auto", SystemEnvironment(), place, os.urandom(4).hex()).images
            images = NodeImages(store, ImageSettings()) if store is not None else None
            checks = await examine(capabilities, place, "", os.urandom(4).hex(), images=images)
        return [msgspec.to_builtins(check) for check in checks]

    return trio.run(look)


def local_audit(data_dir: Path | None = None) -> dict[str, Any]:
    """What RIK holds on this host, in the shape of `nodes.audit`, by the journal in the data directory."""
    path = data_dir or default_data_dir()
    host_id = read_host_id(path) if path.is_dir() else ""
    if not host_id:
        return {"resources": [], "orphans": []}

    async def look() -> dict[str, Any]:
        runtimes = equip("auto", SystemEnvironment(), path, host_id).runtimes
        owned = await trio.to_thread.run_sync(read_uids, path / "worker.db")
        found = await audit(runtimes, lambda: owned, data_dir=path)
        return {
            "resources": [msgspec.to_builtins(resource) for resource in found.resources],
            "orphans": [msgspec.to_builtins(resource) for resource in found.orphans],
        }

    return trio.run(look)


async def sweep_dead_demos(environment: Environment) -> None:
    """Removes what demos of this user left that were killed before they could clean up.

    Their pods died with them; cgroups, sockets and the directory itself may be left.
    """
    for path in Path(tempfile.gettempdir()).glob(f"{DEMO_PREFIX}*"):
        try:
            if path.is_symlink() or path.stat().st_uid != os.geteuid():
                continue
            if not any(path.iterdir()):
                # Killed before it had begun; or beginning just now, and then it makes the directory again.
                path.rmdir()
                continue
            data = DataDirectory.open(path)
        except (OSError, StartupError):
            continue  # alive, or not a demo
        try:
            for runtime in equip("auto", environment, path, data.host_id).runtimes:
                await runtime.sweep(frozenset())
            await remove_tree(path)
        except (OSError, RikError, RuntimeError) as error:
            log.warning("cannot remove what a dead demo left in %s: %s", path, error)
        finally:
            data.close()

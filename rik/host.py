"""The composition root: reads settings, opens the nursery, and wires the roles by links. Only it knows everybody."""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio
from msgspec.structs import replace

from rik.api.server import Api, ClusterInfo
from rik.data_directory import DataDirectory
from rik.environment import Environment, SystemEnvironment
from rik.errors import StartupError
from rik.images.unpack import remove_tree
from rik.inspection import local_audit, local_doctor, sweep_dead_demos
from rik.link.base import Link
from rik.link.local import LocalLink, link_pair
from rik.link.switchboard import Switchboard
from rik.linux.memory import share_arenas
from rik.messages import FromWorker, ToApi, ToScheduler, ToWorker
from rik.network.publisher import ProxyPublisher
from rik.runtimes import equip
from rik.scheduler.scheduler import Scheduler
from rik.settings import DEFAULT_LISTEN, DEMO_PREFIX, Settings
from rik.store.base import Store
from rik.store.sqlite import SqliteStore
from rik.worker.images import NodeImages
from rik.worker.node import SystemHost
from rik.worker.sqlitejournal import SqliteJournal
from rik.worker.worker import Worker

__all__ = ["local_audit", "local_doctor", "running", "serve"]

log = logging.getLogger(__name__)

# How long `listening on` waits for this host's worker, so that the first `rik run` finds a node.
WORKER_START_PATIENCE_S = 2.0
DESCRIPTORS = 65_536
# What the user typed to get here, when it was not `rik` (set by rik.py).
PROGRAM_VARIABLE = "RIK_PROGRAM"


def serve(settings: Settings) -> int:
    """Runs a host until it is told to stop; returns the exit code. Raises StartupError when it cannot start."""
    _raise_descriptor_limit()
    share_arenas()
    temporary = settings.demo and settings.data_dir == Path()
    if temporary:
        settings = replace(settings, data_dir=Path(tempfile.mkdtemp(prefix=DEMO_PREFIX)))
    code = 0
    refusal: StartupError | None = None
    try:
        trio.run(_main, settings, SystemEnvironment(), temporary)
    except* StartupError as group:
        refusal = _first(group)  # what is raised in here would be wrapped in a group again
    except* Exception:
        log.exception("a fault in RIK itself ended this host; its instances %s", _fate(settings))
        code = 1
    if refusal is not None:
        raise refusal
    return code


def _fate(settings: Settings) -> str:
    return "ended with it" if settings.worker.bind_to_process else "run on, and are adopted at the next start"


def _raise_descriptor_limit() -> None:
    """Every pod, connection and watcher takes some; the usual soft limit of 1,024 is for programs that use select."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _first(group: BaseExceptionGroup[StartupError]) -> StartupError:
    inner = group.exceptions[0]
    return _first(inner) if isinstance(inner, BaseExceptionGroup) else inner


async def _main(settings: Settings, environment: Environment, temporary: bool) -> None:
    data = DataDirectory.open(settings.data_dir)
    try:
        with _stopping_on_signals() as stop:
            if temporary:
                await sweep_dead_demos(environment)
            async with running(settings, data, environment) as url:
                _announce(url, settings)
                await stop.wait()
    finally:
        if temporary:
            with trio.CancelScope(shield=True):
                await remove_tree(settings.data_dir)
        data.close()


@contextlib.contextmanager
def _stopping_on_signals() -> Iterator[trio.Event]:
    """The first SIGINT or SIGTERM asks for an orderly end, the second ends the process at once.

    Handlers of Python's own, so that the second one works even when no task gets to run any more.
    """
    stop, token, asked = trio.Event(), trio.lowlevel.current_trio_token(), False

    def handle(number: int, _frame: object) -> None:
        nonlocal asked
        if asked:
            os._exit(128 + number)
        asked = True
        token.run_sync_soon(_begin_stop, number, stop)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _begin_stop(number: int, stop: trio.Event) -> None:
    log.info("stopping: %s", signal.Signals(number).name)
    stop.set()


@asynccontextmanager
async def running(settings: Settings, data: DataDirectory, environment: Environment) -> AsyncIterator[str]:
    """Every role that the settings name, wired and ready; yields the API's URL.

    The end has an order: the worker stops its instances if it is to (watchers see it), then the API says goodbye to
    its clients, then the rest is cancelled. Otherwise instances run on.
    """
    switchboard = Switchboard()
    store = await SqliteStore.open(data.path / "cluster.db", journal_revisions=settings.journal_revisions)
    async with _closing(store), trio.open_nursery() as nursery:
        scheduler = Scheduler(environment, store, settings.scheduler, switchboard)
        await nursery.start(scheduler.run)

        async def connect_api() -> Link[ToScheduler, ToApi]:
            pair: tuple[LocalLink[ToScheduler, ToApi], LocalLink[ToApi, ToScheduler]] = link_pair()
            nursery.start_soon(scheduler.serve_api, pair[1])
            return pair[0]

        async def connect_worker() -> Link[FromWorker, ToWorker]:
            pair: tuple[LocalLink[FromWorker, ToWorker], LocalLink[ToWorker, FromWorker]] = link_pair()
            nursery.start_soon(scheduler.serve_node, pair[1])
            return pair[0]

        worker = None
        if "worker" in settings.roles:
            equipment = equip(
                settings.worker.runtime,
                environment,
                data.path,
                data.host_id,
                images=settings.images,
                allow_dirs=settings.allow_dirs,
                bind_to_process=settings.worker.bind_to_process,
                unsafe_plain=settings.worker.unsafe_plain,
            )
            worker = Worker(
                environment,
                settings.worker,
                equipment.runtimes,
                SqliteJournal(data.path / "worker.db", environment),
                connect_worker,
                publisher=ProxyPublisher(settings.worker.publish_address),
                host=SystemHost(data.path),
                roles=settings.roles,
                data_dir=data.path,
                images=NodeImages(equipment.images, settings.images) if equipment.images is not None else None,
            )
            nursery.start_soon(worker.run)
        info = ClusterInfo(id=store.cluster_id, leader=settings.worker.node, store=store.name)
        api = Api(environment, settings.api, info, store, connect_api, switchboard)
        api_ended = trio.Event()

        async def run_api(task_status: trio.TaskStatus[str]) -> None:
            try:
                await api.run(task_status)
            finally:
                api_ended.set()

        url = await nursery.start(run_api)
        if worker is not None:
            with trio.move_on_after(WORKER_START_PATIENCE_S):
                await worker.joined.wait()
        yield url
        environment.step("host.stopping")
        if worker is not None:
            await worker.shutdown()
        api.shutdown()
        await api_ended.wait()
        environment.step("host.stopped")
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def _closing(store: Store) -> AsyncIterator[None]:
    try:
        yield
    finally:
        with trio.CancelScope(shield=True):
            await store.aclose()


def _announce(url: str, settings: Settings) -> None:
    """Standard output may have been closed: then nobody wants to know."""
    lines = [f"listening on {url}"]
    with contextlib.suppress(OSError, ValueError):
        if settings.demo or sys.stdout.isatty():
            lines += _hint(url, settings)
        print("\n".join(lines), flush=True)


def _hint(url: str, settings: Settings) -> list[str]:
    program = os.environ.get(PROGRAM_VARIABLE, "rik")
    server = "" if url == f"http://{DEFAULT_LISTEN}" else f" --server {url}"
    ending = "Ctrl-C ends it, with everything it runs." if settings.worker.stop_instances else ""
    return [
        "",
        "Now, in another terminal:",
        f"  {program}{server} run examples/hello.json",
        f"  {program}{server} get instances",
        *([ending] if ending else []),
    ]

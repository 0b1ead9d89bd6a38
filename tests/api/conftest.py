"""A real api on a real socket, with the scheduler's end of its link in the test's hands."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
import trio

from rik.api.server import Api, ClusterInfo
from rik.environment import SystemEnvironment
from rik.link.switchboard import Switchboard
from rik.settings import ApiSettings
from tests.api.client import ApiClient
from tests.api.scheduler import Scheduler

LIMIT_S = 30
# So long that a test which ends in time has not been helped by the connections being cut.
PATIENT_SHUTDOWN_S = 15.0
ENDS_WITHIN_S = 5.0


class Running:
    """What a test holds."""

    def __init__(
        self, api: Api, client: ApiClient, scheduler: Scheduler, switchboard: Switchboard, nursery: trio.Nursery
    ) -> None:
        self.api = api
        self.client = client
        self.scheduler = scheduler
        self.switchboard = switchboard
        self.nursery = nursery
        self.ended = trio.Event()

    @property
    def port(self) -> int:
        return int(self.client.url.rpartition(":")[2])


Serve = Callable[..., AbstractAsyncContextManager[Running]]


@pytest.fixture
def serve() -> Serve:
    """`async with serve(scheduler, watch_queue=10) as running:`."""

    @asynccontextmanager
    async def serving(scheduler: Scheduler | None = None, **settings: Any) -> AsyncIterator[Running]:
        scheduler = scheduler or Scheduler()
        switchboard = Switchboard()
        api = Api(
            SystemEnvironment(),
            ApiSettings(**{"port": 0, "shutdown_s": PATIENT_SHUTDOWN_S, **settings}),
            ClusterInfo("cluster-id", "node-a", "memory"),
            scheduler.store,
            scheduler.connect,
            switchboard,
        )
        with trio.fail_after(LIMIT_S):
            async with trio.open_nursery() as nursery:
                await nursery.start(scheduler.run)
                running: Running

                async def run(task_status: trio.TaskStatus[str]) -> None:
                    await api.run(task_status)
                    running.ended.set()

                url = await nursery.start(run)
                async with ApiClient(url) as client:
                    running = Running(api, client, scheduler, switchboard, nursery)
                    yield running
                nursery.cancel_scope.cancel()

    return serving


@pytest.fixture
async def running(serve: Serve) -> AsyncIterator[Running]:
    async with serve() as started:
        yield started

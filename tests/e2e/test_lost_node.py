"""A worker that is silent or gone, and instances that will not die, seen through the API of a real server.

The roles are composed here as `rik.host` composes them, with short leases and a link that the test can cut.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio

from rik.api.server import Api, ClusterInfo
from rik.environment import SystemEnvironment
from rik.link.base import Link, LinkClosed
from rik.link.local import LocalLink, link_pair
from rik.link.switchboard import Switchboard
from rik.messages import FromWorker, ToApi, ToScheduler, ToWorker
from rik.network.publisher import ProxyPublisher
from rik.runtime.fake import FakeMachine, FakeRuntime
from rik.scheduler.scheduler import Scheduler
from rik.settings import ApiSettings, SchedulerSettings, WorkerSettings
from rik.store.sqlite import SqliteStore
from rik.worker.node import PretendedHost
from rik.worker.sqlitejournal import SqliteJournal
from rik.worker.worker import Worker
from tests.e2e.server import Client, pod
from tests.e2e.test_reasons import explained

LEASE_S = 0.6
# Long enough for a mended link to be found again: a worker rests up to a second between its tries.
LOST_S = 4.0


class Cluster:
    """A primary and its worker in this process; `cut` silences the link until `mend`."""

    def __init__(self, path: Path, nursery: trio.Nursery) -> None:
        self.client: Client
        self._path = path
        self._nursery = nursery
        self._link: Link[FromWorker, ToWorker] | None = None
        self._mended = trio.Event()
        self._mended.set()

    async def start(self) -> None:
        environment = SystemEnvironment()
        switchboard = Switchboard()
        store = await SqliteStore.open(self._path / "cluster.db")
        settings = SchedulerSettings(lease_s=LEASE_S, lost_after_s=LOST_S, tick_s=0.05)
        self._scheduler = Scheduler(environment, store, settings, switchboard)
        await self._nursery.start(self._scheduler.run)
        self.machine = FakeMachine()
        self.worker = Worker(
            environment,
            WorkerSettings(node="n1", heartbeat_interval_s=0.1, destroy_s=0.5, publish_address="127.0.0.1"),
            [FakeRuntime(environment, self.machine)],
            SqliteJournal(self._path / "worker.db", environment),
            self._connect,
            publisher=ProxyPublisher("127.0.0.1"),
            host=PretendedHost(),
            data_dir=self._path,
        )
        await self._nursery.start(self.worker.run)
        info = ClusterInfo(id=store.cluster_id, leader="n1", store=store.name)
        api = Api(environment, ApiSettings(port=0), info, store, self._connect_api, switchboard)
        url = await self._nursery.start(api.run)
        await self.worker.joined.wait()
        self.client = Client(url)

    async def _connect_api(self) -> Link[ToScheduler, ToApi]:
        pair: tuple[LocalLink[ToScheduler, ToApi], LocalLink[ToApi, ToScheduler]] = link_pair()
        self._nursery.start_soon(self._scheduler.serve_api, pair[1])
        return pair[0]

    async def _connect(self) -> Link[FromWorker, ToWorker]:
        if not self._mended.is_set():
            await self._mended.wait()
            raise LinkClosed
        pair: tuple[LocalLink[FromWorker, ToWorker], LocalLink[ToWorker, FromWorker]] = link_pair()
        self._nursery.start_soon(self._scheduler.serve_node, pair[1])
        self._link = pair[0]
        return pair[0]

    def cut(self) -> None:
        """As if the network between the two were gone."""
        self._mended = trio.Event()
        assert self._link is not None
        self._link.close()

    def mend(self) -> None:
        self._mended.set()


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with trio.open_nursery() as nursery:
        made = Cluster(tmp_path, nursery)
        await made.start()
        async with made.client:
            yield made
        nursery.cancel_scope.cancel()


def container(**env: str) -> dict[str, Any]:
    return {
        "name": "main",
        "image": "host",
        "command": ["x"],
        "env": [{"name": name, "value": value} for name, value in env.items()],
    }


async def run_one(cluster: Cluster, **env: str) -> dict[str, Any]:
    await cluster.client.post("workloads.create", pod("w", container(**env), stopGraceSeconds=0))
    await cluster.client.post("instances.create", {"workload_id": "w", "name": "it"})
    return await cluster.client.until("it", "Running")


async def until_stale(client: Client, stale: bool) -> dict[str, Any]:
    with trio.fail_after(10):
        while True:
            record: dict[str, Any] = await client.get("instances.get/it")
            if bool(record["stale_since"]) is stale:
                return record
            await trio.sleep(0.02)


async def test_node_unreachable_and_back(cluster: Cluster) -> None:
    """A silent node's instances keep their status, say NodeUnreachable since when, and recover when it is back."""
    await run_one(cluster)
    cluster.cut()
    record = await until_stale(cluster.client, True)
    assert (record["status"], record["reason"]) == ("Running", "NodeUnreachable")
    assert "n1" in record["message"]
    assert (await cluster.client.get("nodes.get/n1"))["status"] == "NotReady"
    assert (await cluster.client.http.get("/api/v0/instances.stats/it")).status_code == 503
    cluster.mend()
    record = await until_stale(cluster.client, False)
    assert (record["status"], record["reason"]) == ("Running", "")


async def test_node_lost(cluster: Cluster) -> None:
    """What a node holds that stays silent is Failed NodeLost; when the node is back after all, it stops it."""
    uid = (await run_one(cluster))["uid"]
    cluster.cut()
    record = await cluster.client.until("it", "Failed")
    assert cluster.machine.live() == [uid], "nobody could tell it to stop"
    await explained(cluster.client, record, "NodeLost")
    cluster.mend()
    with trio.fail_after(10):
        while cluster.machine.live():
            await trio.sleep(0.02)


async def test_destroy_failed(cluster: Cluster) -> None:
    """What will not die is Failed DestroyFailed, named, and its removal goes on in the background."""
    await run_one(cluster, FAKE_HANG="stop")
    await cluster.client.post("instances.delete", {"id": "it"})
    with trio.fail_after(20):
        while True:
            record = await cluster.client.get("instances.get/it")
            if record["status"] == "Failed":
                break
            await trio.sleep(0.02)
    assert record["reason"] == "DestroyFailed"
    assert len(record["message"].split()) >= 4

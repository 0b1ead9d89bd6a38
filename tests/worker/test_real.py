"""The worker with its real journal, real sockets and real files, on the real clock."""

from __future__ import annotations

import json
from pathlib import Path

import trio

from rik.environment import SystemEnvironment
from rik.messages import Audit, Doctor, Run
from rik.model.instance import Status
from rik.network.publisher import ProxyPublisher
from rik.worker.sqlitejournal import SqliteJournal, read_uids
from tests.worker.harness import Site, received


def site_in(directory: Path) -> Site:
    journal = SqliteJournal(directory / "worker.db", SystemEnvironment())
    return Site(journal=journal, publisher=ProxyPublisher("127.0.0.1"), data_dir=directory)


async def echo(port: int) -> bytes:
    async with await trio.open_tcp_stream("127.0.0.1", port) as client:
        await client.send_all(b"hello")
        return await client.receive_some()


async def test_a_published_port_survives_a_restart(tmp_path: Path) -> None:
    """Clients reach an instance through its node's port, before a crash of RIK and after it, at the same number."""
    site = site_in(tmp_path)
    with trio.fail_after(30):
        async with site.running(welcome=False):
            node_id = (await site.scheduler.hello()).journal_id
            await site.scheduler.welcome()
            assignment = site.assignment("a", ports=[{"port": 0, "targetPort": 80}], node_id=node_id)
            await site.scheduler.run(assignment)
            (port,) = (await site.scheduler.until("a", Status.RUNNING)).ports
            assert await echo(port.port) == b"hello"
        async with site.running(welcome=False):
            await site.scheduler.hello(1)
            await site.scheduler.welcome(Run(assignment))
            while True:
                try:
                    assert await echo(port.port) == b"hello"
                    break
                except OSError:  # it is published again in the background
                    await trio.sleep(0.01)
            await site.scheduler.stop("a")
            await site.scheduler.final("a")
            while read_uids(tmp_path / "worker.db"):
                await trio.sleep(0.01)


async def test_rounds_over_this_host(tmp_path: Path) -> None:
    """An audit lists the worker's own files, sockets and kept logs with their owners; the doctor looks at the host."""
    (tmp_path / "logs" / "ended-long-ago").mkdir(parents=True)
    site = site_in(tmp_path)
    with trio.fail_after(30):
        async with site.running(welcome=False):
            node_id = (await site.scheduler.hello()).journal_id
            await site.scheduler.welcome()
            await site.scheduler.run(site.assignment("a", ports=[{"port": 0, "targetPort": 80}], node_id=node_id))
            await site.scheduler.until("a", Status.RUNNING)
            audited = json.loads(b"".join(await received(await site.scheduler.stream(Audit()))))
            owners = {(resource["kind"], resource["owner"]) for resource in audited["resources"]}
            assert owners == {("fake", "a"), ("socket", "a"), ("file", "rik"), ("log", "ended-long-ago")}
            assert audited["orphans"] == []
            checks = json.loads(b"".join(await received(await site.scheduler.stream(Doctor()))))["checks"]
            assert {"python", "kernel", "runtime fake", "disk"} <= {check["name"] for check in checks}

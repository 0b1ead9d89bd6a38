"""The store alone: durable commits per second, how long one waits, loading, and reading the journal.

Run with `python -m benchmarks.store`; `--directory` is on the disk to be measured. Every commit is one change of one
instance with its event, as the scheduler makes them, and returns when it is on the disk (synchronous=FULL).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import trio

from benchmarks.report import Figure, at_least, report
from rik.model.change import INSTANCE, PUT, Change, Event
from rik.model.instance import Instance, Status, Transition
from rik.store.sqlite import SqliteStore, open_sqlite

AT = 1_700_000_000_000
WRITERS = 100
TARGET_PER_S = 5_000
SPEC = {
    "containers": [
        {
            "name": "main",
            "image": "host",
            "command": ["python3", "-m", "http.server", "8080"],
            "env": [{"name": "GREETING", "value": "hello"}],
            "ports": [{"port": 0, "targetPort": 8080, "protocol": "TCP", "type": "NodePort"}],
        }
    ],
    "resources": {"cpu": "500m", "memory": "256Mi"},
}


def change(number: int) -> Change:
    """As when an instance becomes Running: the record, the one before, and an event."""
    before = Instance(
        uid=f"{number:020d}",
        name=f"cobra-citer-{number}",
        kind="Pod",
        namespace="default",
        workload_id="w" * 20,
        workload="hello",
        spec=SPEC,
        created_at=AT,
        updated_at=AT,
        status=Status.CREATING,
        node="alpha",
        node_id="n" * 20,
        decision="node alpha: the only one that fits",
        history=(Transition(Status.PENDING, AT, "accepted"), Transition(Status.CREATING, AT, "placed on node alpha")),
        revision=number + 1,
    )
    running = Transition(Status.RUNNING, AT + 50, "every command is alive")
    after = msgspec.structs.replace(before, status=Status.RUNNING, history=(*before.history, running))
    event = Event(f"instance/{before.name}", "Normal", "Running", running.message, "default", "alpha", before.uid)
    return Change(INSTANCE, PUT, before.uid, after, AT, before, event)


async def commits(store: SqliteStore, writers: int, duration_s: float) -> tuple[float, list[float]]:
    """Commits per second, and how long each waited in ms."""
    waits: list[float] = []
    batches = [[change(number)] for number in range(writers)]

    async def write(number: int) -> None:
        while time.perf_counter() < ends:
            began = time.perf_counter()
            await store.commit(batches[number])
            waits.append((time.perf_counter() - began) * 1000)

    started = time.perf_counter()
    ends = started + duration_s
    async with trio.open_nursery() as nursery:
        for number in range(writers):
            nursery.start_soon(write, number)
    return len(waits) / (time.perf_counter() - started), waits


async def main(options: argparse.Namespace) -> None:
    rates: dict[int, list[float]] = {1: [], WRITERS: []}
    waits: dict[int, list[float]] = {1: [], WRITERS: []}
    for _ in range(options.runs):
        for writers in (1, WRITERS):
            with TemporaryDirectory(dir=options.directory) as directory:
                async with open_sqlite(Path(directory) / "cluster.db") as store:
                    rate, waited = await commits(store, writers, options.seconds)
            rates[writers].append(rate)
            waits[writers] += sorted(waited)
    figures = [
        at_least(f"durable commits, {WRITERS} writers", rates[WRITERS], "/s", TARGET_PER_S),
        Figure(f"a commit waits, {WRITERS} writers", waits[WRITERS], "ms"),
        Figure(f"a commit waits, {WRITERS} writers, p99", [percentile(waits[WRITERS], 99)], "ms"),
        Figure("durable commits, 1 writer", rates[1], "/s"),
        Figure("a commit waits, 1 writer", waits[1], "ms"),
    ]
    report("store", figures + await reading(options))


async def reading(options: argparse.Namespace) -> list[Figure]:
    """Of a store with many instances, one batch of 1,000 after the other."""
    with TemporaryDirectory(dir=options.directory) as directory:
        path = Path(directory) / "cluster.db"
        async with open_sqlite(path) as store:
            began = time.perf_counter()
            for first in range(0, options.instances, 1000):
                await store.commit([change(number) for number in range(first, first + 1000)])
            bulk = options.instances / (time.perf_counter() - began)
        began = time.perf_counter()
        async with open_sqlite(path) as store:
            opened = time.perf_counter() - began
            began = time.perf_counter()
            await store.changes_since(options.instances - 1000)
            tail = (time.perf_counter() - began) * 1000
            began = time.perf_counter()
            await store.events(uid=change(5).key)
            events = (time.perf_counter() - began) * 1000
    return [
        Figure("changes in batches of 1,000", [bulk], "/s"),
        Figure(f"open, check and load {options.instances} instances", [opened], "s"),
        Figure("the last 1,000 changes", [tail], "ms"),
        Figure("the events of one instance", [events], "ms"),
    ]


def percentile(values: list[float], percent: int) -> float:
    return sorted(values)[min(len(values) - 1, len(values) * percent // 100)]


def parse() -> Any:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3, help="runs of each kind, in turn")
    parser.add_argument("--seconds", type=float, default=3.0, help="how long each run writes")
    parser.add_argument("--instances", type=int, default=50_000, help="how many the store to be loaded holds")
    parser.add_argument("--directory", default=None, help="where the store lies (default: the system's for such)")
    return parser.parse_args()


if __name__ == "__main__":
    trio.run(main, parse())

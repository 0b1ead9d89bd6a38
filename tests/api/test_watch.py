"""`instances.watch`: gapless, resumable, never slowed by a slow peer."""

from __future__ import annotations

import json
import time
from itertools import pairwise
from typing import Any

import msgspec
import pytest
import trio
from trio_websocket import ConnectionClosed

from rik.api import connections
from rik.model.instance import Progress, Status
from tests.api.client import Frames
from tests.api.conftest import ENDS_WITHIN_S, Running, Serve
from tests.api.scheduler import DOCUMENT, Scheduler, instance
from tests.neverreading import never_reading_watcher


async def expect(frames: Frames, *revisions: int) -> None:
    """The next numbered frames are these."""
    for revision in revisions:
        assert (await frames.until("instance"))["revision"] == revision


async def test_a_watch_begins_with_a_snapshot_and_goes_on_in_order(running: Running) -> None:
    """First everything there is, then every change of an instance, once, in order."""
    await running.scheduler.put(instance(1))
    async with running.client.watch() as frames:
        first = await frames.next()
        assert (first["type"], first["revision"]) == ("snapshot", 1)
        assert [record["name"] for record in first["instances"]] == ["instance-1"]
        await running.scheduler.put(instance(2, Status.PENDING))
        await running.client.do("workloads.create", DOCUMENT)
        await running.scheduler.put(instance(2, Status.CREATING))
        await running.scheduler.put(instance(2, Status.FAILED, reason="Killed"))
        await running.scheduler.remove(instance(2).uid)
        told = [await frames.next() for _ in range(4)]
    assert [(frame["op"], frame["instance"]["status"]) for frame in told] == [
        ("put", "Pending"), ("put", "Creating"), ("put", "Failed"), ("delete", "Failed")]  # fmt: skip
    revisions = [frame["revision"] for frame in told]
    assert revisions == sorted(set(revisions))
    assert told[0]["instance"]["revision"] == told[0]["revision"]


async def test_the_frame_of_a_final_status_explains_itself(running: Running) -> None:
    """A final status comes with spec, history and the last output; other frames are summaries."""
    async with running.client.watch() as frames:
        await frames.next()
        await running.scheduler.put(instance(1))
        assert "log_tail" not in (await frames.next())["instance"]
        await running.scheduler.put(instance(1, Status.TERMINATED))
        final = (await frames.next())["instance"]
    assert final["log_tail"][0]["line"] == "last words" and final["history"] and final["spec"]


async def test_a_watch_resumes_where_it_was(running: Running) -> None:
    """`since=R` gives every change after R, then `sync`, then what comes."""
    for number in range(1, 6):
        await running.scheduler.put(instance(number))
    async with running.client.watch("since=2") as frames:
        told = [await frames.next() for _ in range(4)]
        assert [(frame["type"], frame["revision"]) for frame in told] == [
            ("instance", 3), ("instance", 4), ("instance", 5), ("sync", 5)]  # fmt: skip
        await running.scheduler.put(instance(6))
        assert (await frames.next())["revision"] == 6


async def test_a_resumed_watch_that_missed_nothing(running: Running) -> None:
    """Resuming at the present begins with `sync` alone."""
    last = await running.scheduler.put(instance(1))
    async with running.client.watch(f"since={last}") as frames:
        assert await frames.next() == {"type": "sync", "revision": last}


async def test_replay_and_live_changes_join_without_a_seam(serve: Serve) -> None:
    """While changes pour in, watchers that start anywhere see every later revision once and in order."""
    async with serve(watch_queue=50) as running:
        total = 600

        async def pour() -> None:
            for number in range(1, total + 1):
                await running.scheduler.put(instance(number))
                await trio.lowlevel.checkpoint()

        async def watch(since: int) -> None:
            async with running.client.watch(f"since={since}") as frames:
                await expect(frames, *range(since + 1, total + 1))

        await running.scheduler.put(instance(0))
        total += 1
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pour)
            for since in (0, 1, 1, 0):
                nursery.start_soon(watch, since)
                await trio.sleep(0.05)


async def test_one_great_batch_is_no_gap(serve: Serve) -> None:
    """A commit larger than what is kept in memory still reaches every watcher change by change."""
    async with serve(watch_queue=50) as running, running.client.watch() as frames:
        await frames.next()
        await running.scheduler.put(*(instance(number) for number in range(1, 401)))
        for revision in range(1, 401):
            frame = await frames.until("instance", "gap")
            assert frame.get("revision") == revision


async def test_revisions_that_are_no_longer_kept_are_a_gap(serve: Serve) -> None:
    """`since` before the journal's beginning gives a gap that names the oldest revision, and a snapshot."""
    async with serve(Scheduler(journal_revisions=5), watch_queue=5) as running:
        for number in range(1, 21):
            await running.scheduler.put(instance(number))
        async with running.client.watch("since=3") as frames:
            assert await frames.next() == {"type": "gap", "oldest": 15}
            snapshot = await frames.next()
            assert (snapshot["type"], snapshot["revision"], len(snapshot["instances"])) == ("snapshot", 20, 20)
            await running.scheduler.put(instance(1, Status.FAILED))
            await expect(frames, 21)


async def test_a_revision_of_the_future_is_a_gap(running: Running) -> None:
    """`since` beyond what is committed cannot be of this cluster's life: gap and snapshot."""
    await running.scheduler.put(instance(1))
    async with running.client.watch("since=1000") as frames:
        assert (await frames.next())["type"] == "gap"
        assert (await frames.next())["revision"] == 1
        await running.scheduler.put(instance(2))
        await expect(frames, 2)


async def test_filters_show_entering_and_leaving(running: Running) -> None:
    """With a filter a change is put when it matches afterwards, and delete when it matched only before."""
    await running.scheduler.put(instance(1, Status.PENDING), instance(2))
    async with (
        running.client.watch("status=Running") as by_status,
        running.client.watch("node=node-b") as by_node,
        running.client.watch("workload=other&namespace=default") as by_workload,
    ):
        assert [record["name"] for record in (await by_status.next())["instances"]] == ["instance-2"]
        assert (await by_node.next())["instances"] == (await by_workload.next())["instances"] == []
        await running.scheduler.put(instance(1))
        await running.scheduler.put(instance(1, enforced={"cpu": True}))
        await running.scheduler.put(instance(3, Status.PENDING, workload="other"))
        await running.scheduler.put(instance(1, Status.FAILED))
        await running.scheduler.remove(instance(1).uid)
        await running.scheduler.remove(instance(2).uid)
        told = [await by_status.until("instance") for _ in range(4)]
        assert [(frame["op"], frame["instance"]["name"], frame["instance"]["status"]) for frame in told] == [
            ("put", "instance-1", "Running"),
            ("put", "instance-1", "Running"),
            ("delete", "instance-1", "Failed"),
            ("delete", "instance-2", "Running"),
        ]
        assert (await by_workload.until("instance"))["instance"]["name"] == "instance-3"
        await running.scheduler.put(instance(9, node="node-b"))
        assert (await by_node.until("instance"))["instance"]["name"] == "instance-9"


async def test_replays_are_filtered_alike(running: Running) -> None:
    """A replay shows entering and leaving as the live stream would have."""
    await running.scheduler.put(instance(1, Status.PENDING))
    await running.scheduler.put(instance(1))
    await running.scheduler.put(instance(1, Status.FAILED))
    async with running.client.watch("since=0&status=Running") as frames:
        told = [await frames.next() for _ in range(3)]
    assert [(frame["type"], frame.get("op")) for frame in told] == [
        ("instance", "put"), ("instance", "delete"), ("sync", None)]  # fmt: skip


async def test_sync_comes_when_nothing_happens(serve: Serve) -> None:
    """At least every sync interval a watcher is told how far the stream has come, also past what it does not see."""
    async with serve(sync_interval_s=0.3) as running, running.client.watch("status=Failed") as frames:
        await frames.next()
        last = await running.scheduler.put(instance(1))
        started = trio.current_time()
        assert await frames.next() == {"type": "sync", "revision": last}
        assert trio.current_time() - started < 1


async def test_progress_is_rare_and_the_latest(running: Running) -> None:
    """Progress comes at most twice a second an instance, the latest winning, and stops with creation."""
    await running.scheduler.put(instance(1, Status.CREATING))
    async with running.client.watch() as frames:
        await frames.next()
        seen: list[tuple[float, int]] = []

        async def report() -> None:
            for done in range(1, 131):
                running.scheduler.progress(instance(1).uid, Progress("pull", done, 130, "bytes"))
                await trio.sleep(0.01)

        running.nursery.start_soon(report)
        while not seen or seen[-1][1] < 130:
            frame = await frames.until("progress")
            assert (frame["instance"], frame["step"], frame["total"]) == ("instance-1", "pull", 130)
            seen.append((trio.current_time(), frame["done"]))
        assert len(seen) <= 5
        assert all(later[0] - earlier[0] > 0.25 for earlier, later in pairwise(seen))
        await running.scheduler.put(instance(1))
        running.scheduler.progress(instance(1).uid, Progress("pull", 7, 130, "bytes"))
        await running.scheduler.put(instance(2))
        assert [(await frames.next())["type"] for _ in range(2)] == ["instance", "instance"]


async def test_progress_of_an_image_has_layers_and_seconds(running: Running) -> None:
    """The frame of a pull says how many layers are complete, and how long it has taken; of anything else neither."""
    await running.scheduler.put(instance(1, Status.CREATING))
    async with running.client.watch() as frames:
        await frames.next()
        running.scheduler.progress(instance(1).uid, Progress("unpack", 43, 100, "bytes", 2, 6, 1.26))
        assert await frames.until("progress") == {
            "type": "progress",
            "instance": "instance-1",
            "step": "unpack",
            "done": 43,
            "total": 100,
            "unit": "bytes",
            "layers": {"done": 2, "total": 6},
            "seconds": 1.3,
        }
        running.scheduler.progress(instance(1).uid, Progress("start"))
        frame = await frames.until("progress")
        assert (frame["step"], frame["layers"], frame["seconds"]) == ("start", None, 0.0)


async def test_batches_are_coalesced(running: Running) -> None:
    """With `batch=true` changes come many to a frame, in order and each once."""
    async with running.client.watch("batch=true") as frames:
        assert (await frames.next())["type"] == "snapshot"
        for number in range(1, 101):
            await running.scheduler.put(instance(number))
        revisions: list[int] = []
        count = 0
        while len(revisions) < 100:
            frame = await frames.until("batch")
            count += 1
            revisions += [change["revision"] for change in frame["changes"]]
        assert revisions == list(range(1, 101)) and count < 20


async def test_reconnecting_to_the_scheduler_is_seamless(running: Running) -> None:
    """When the api's link to the scheduler breaks, watchers miss nothing of what was committed meanwhile."""
    await running.scheduler.put(instance(1))
    async with running.client.watch() as frames:
        await frames.next()
        running.scheduler.hang_up()
        await running.scheduler.put(instance(2))
        await running.scheduler.put(instance(2, Status.FAILED))
        told = [await frames.until("instance", "gap", "snapshot") for _ in range(2)]
        assert [frame["revision"] for frame in told] == [2, 3]
        await running.scheduler.put(instance(3))
        assert (await frames.until("instance", "gap"))["instance"]["name"] == "instance-3"


async def test_the_end_is_announced(running: Running) -> None:
    """At shutdown a watcher gets `bye`, close code 1001, and the server ends at once."""
    async with running.client.watch() as frames:
        await frames.next()
        started = trio.current_time()
        running.api.shutdown()
        assert await frames.next() == {"type": "bye"}
        with pytest.raises(ConnectionClosed) as closed:
            await frames.socket.get_message()
        assert closed.value.reason is not None and closed.value.reason.code == 1001
        await running.ended.wait()
    assert trio.current_time() - started < ENDS_WITHIN_S


@pytest.mark.parametrize("query", ["", "batch=true"])
async def test_nothing_known_is_missing_before_the_end(running: Running, query: str) -> None:
    """What was committed before a shutdown is told before `bye`, to those whose frames are coalesced too."""
    async with running.client.watch(query) as frames:
        await frames.next()
        await running.scheduler.put(instance(1))
        await frames.until("instance", "batch")
        for number in range(2, 6):
            await running.scheduler.put(instance(number))
        while len(await running.client.call("instances.list")) < 5:
            await trio.lowlevel.checkpoint()
        running.api.shutdown()
        told: list[Any] = []
        while (frame := await frames.next())["type"] != "bye":
            told += frame["changes"] if frame["type"] == "batch" else [frame]
        assert [change["revision"] for change in told] == [2, 3, 4, 5]


async def test_what_a_watcher_says_is_ignored(running: Running) -> None:
    """A watcher may send what it likes; nobody listens, and nothing waits for it."""
    async with running.client.watch() as frames:
        await frames.next()
        for _ in range(100):
            await frames.socket.send_message("hello")
            await frames.socket.send_message(b"")
        await running.scheduler.put(instance(1))
        assert (await frames.next())["revision"] == 1


async def test_one_that_never_reads_slows_nobody(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    """Beside clients that never read, another watcher gets every frame in order and in time; then the server ends."""
    async with serve(watch_queue=100, shutdown_s=1.0) as running:
        slow = [never_reading_watcher(running.port, query) for query in ("", "?batch=true", "?since=0")]
        delays: list[float] = []
        async with running.client.watch() as frames:
            await frames.next()
            for round_number in range(50):
                sent = time.perf_counter()
                await running.scheduler.put(
                    *(instance(number, enforced={"padding": "x" * 2000}) for number in range(20))
                )
                for number in range(20):
                    frame = await frames.until("instance", "gap")
                    assert frame["revision"] == round_number * 20 + number + 1
                    delays.append(time.perf_counter() - sent)
        with capsys.disabled():
            delays.sort()
            print(f"\nwatching beside three that never read: p99 {delays[int(len(delays) * 0.99)] * 1000:.0f} ms")
        started = trio.current_time()
        running.api.shutdown()
        await running.ended.wait()
        assert trio.current_time() - started < ENDS_WITHIN_S
        for client in slow:
            client.close()


async def test_one_that_reads_again_gets_a_gap_and_a_snapshot(serve: Serve) -> None:
    """A watcher that was too far behind is told so, and where things stand; nothing is silently left out."""
    async with serve(watch_queue=10) as running:
        await running.scheduler.put(instance(0))
        slow = never_reading_watcher(running.port, buffer_bytes=2**18)
        while not running.api.watchers:
            await trio.sleep(0.01)
        for _ in range(60):
            records = [instance(number, enforced={"padding": "x" * 4000}) for number in range(50)]
            await running.scheduler.put(*records)
        await trio.sleep(0.1)
        await running.scheduler.put(instance(777))
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(slow))
        received = b""
        with trio.fail_after(10):
            while b'"name":"instance-777"' not in received:
                received += await stream.receive_some(2**20)
        await stream.aclose()
    gap = received.index(b'{"type":"gap","oldest":')
    assert b'{"type":"snapshot"' in received[gap:]


async def test_one_that_never_reads_is_dropped(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """A watcher that takes nothing for longer than the limit loses its connection; others keep theirs."""
    monkeypatch.setattr(connections, "SEND_LIMIT_S", 0.5)
    monkeypatch.setattr(connections, "LOOK_INTERVAL_S", 0.1)
    async with serve() as running:
        slow = never_reading_watcher(running.port)
        async with running.client.watch() as frames:
            await frames.next()
            for _ in range(40):
                records = [instance(number, enforced={"padding": "x" * 4000}) for number in range(50)]
                await running.scheduler.put(*records)
                for _ in records:
                    await frames.until("instance")
            with trio.fail_after(5):
                while running.api.watchers > 1:
                    await trio.sleep(0.05)
            await running.scheduler.put(instance(777))
            assert (await frames.until("instance"))["instance"]["name"] == "instance-777"
        slow.close()


async def test_many_watchers_share_one_frame(running: Running) -> None:
    """A crowd of watchers gets the same frames, each complete and in order."""
    total = 20
    got: list[list[int]] = []

    async def watch() -> None:
        async with running.client.socket("instances.watch") as opened:
            revisions: list[int] = []
            while len(revisions) < total:
                frame = json.loads(await opened.get_message())
                if frame["type"] == "instance":
                    revisions.append(frame["revision"])
            got.append(revisions)

    async with trio.open_nursery() as nursery:
        for _ in range(80):
            nursery.start_soon(watch)
        while running.api.watchers < 80:
            await trio.sleep(0.02)
        for number in range(total):
            await running.scheduler.put(msgspec.structs.replace(instance(number), message=f"{number}"))
    assert got == [list(range(1, total + 1))] * 80


async def test_a_new_snapshot_in_a_session_is_seamless(running: Running) -> None:
    """When the scheduler begins anew with a snapshot, watchers get what they missed from the store, and no gap."""
    await running.scheduler.put(instance(1))
    async with running.client.watch() as frames:
        await frames.next()
        await running.scheduler.put_silently(instance(2))
        await running.scheduler.put_silently(instance(3))
        await running.scheduler.begin_anew()
        told = [await frames.until("instance", "gap", "snapshot") for _ in range(2)]
        assert [frame["revision"] for frame in told] == [2, 3]
        assert len(await running.client.call("instances.list")) == 3

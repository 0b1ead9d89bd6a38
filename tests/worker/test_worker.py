"""The worker's link: hello, heartbeats, reconnecting, acknowledgements, streams, the orderly end."""

from __future__ import annotations

import errno
import json

import pytest
import trio
from trio.testing import MockClock

from rik.link.base import MAX_FRAME_BYTES, StreamFailed
from rik.messages import Attach, Audit, Doctor, Exec, ReadLogs, ReadStats, Run, StreamRequest
from rik.model.instance import LogLine, Status
from rik.runtime.fake import FakeRuntime
from rik.runtime.fakemachine import Facts
from rik.settings import WorkerSettings
from rik.worker.logtail import LINE_BYTES, TAIL_BYTES
from rik.worker.streams import frames
from tests.worker.harness import JOURNAL_ID, Site, received


async def test_hello_describes_the_node(autojump_clock: MockClock) -> None:
    """The first message says who the worker is, what its host has, and what its runtimes can do."""
    site = Site(settings=WorkerSettings(node="n7", labels={"zone": "a"}), roles=("api", "worker"))
    async with site.running():
        hello = site.scheduler.hellos[0]
        assert (hello.journal_id, hello.epoch, hello.inventory) == (JOURNAL_ID, 1, ())
        assert (hello.node.name, hello.node.labels, hello.node.roles) == ("n7", {"zone": "a"}, ("api", "worker"))
        assert [(c.runtime, c.ok) for c in hello.node.capabilities] == [("fake", True)]
        assert hello.node.capacity.cpu_millis > 0
        assert site.worker.joined.is_set()


async def test_heartbeats_every_two_seconds(autojump_clock: MockClock) -> None:
    """The lease is renewed every two seconds, with numbers."""
    site = Site()
    async with site.running():
        await trio.sleep(19)
        assert [h.sequence for h in site.scheduler.heartbeats] == list(range(1, 11))
        assert site.scheduler.heartbeats[-1].metrics == {"instances": 0}


async def test_reconnects_with_everything_it_holds(autojump_clock: MockClock) -> None:
    """When the link breaks instances run on, and the next hello carries what was not acknowledged, whole."""
    site = Site()
    async with site.running():
        assignment = site.assignment("a", {"FAKE_RUN_SECONDS": "20"})
        await site.scheduler.run(assignment)
        await site.scheduler.until("a", Status.RUNNING)
        site.scheduler.refuses = ConnectionRefusedError("nobody listens")
        site.scheduler.link.close()
        await trio.sleep(60)
        assert len(site.scheduler.hellos) == 1
        site.scheduler.refuses = None
        hello = await site.scheduler.hello(1)
        (report,) = hello.inventory
        assert report.status is Status.TERMINATED
        assert [t.status for t in report.transitions] == [Status.TERMINATED], "Creating and Running were acknowledged"
        assert hello.epoch == 1
        await site.scheduler.welcome(Run(assignment))
        await trio.sleep(20)
        assert site.scheduler.latest["a"].status is Status.TERMINATED, "told again until acknowledged"
        assert site.memory.entries() == {}


async def test_unacknowledged_reports_are_sent_again(autojump_clock: MockClock) -> None:
    """On a link that stays, what was not acknowledged is repeated with all its statuses."""
    site = Site()
    site.scheduler.acknowledges = False
    async with site.running():
        await site.scheduler.run(site.assignment("a", {"FAKE_RUN_SECONDS": "1"}))
        await site.scheduler.final("a")
        before = len(site.scheduler.reports)
        await trio.sleep(25)
        assert len(site.scheduler.reports) > before
        statuses = [t.status for t in site.scheduler.latest["a"].transitions]
        assert statuses == [Status.CREATING, Status.RUNNING, Status.TERMINATED]
        site.scheduler.acknowledges = True
        await trio.sleep(25)
        assert site.memory.entries() == {}


async def test_rejected(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    """A node that may not take part says so, and asks again later."""
    from rik.messages import Rejected

    site = Site()
    async with site.running(welcome=False):
        await site.scheduler.hello()
        await site.scheduler.link.send(Rejected("the name n1 is taken"))
        await trio.sleep(5)
        assert "the name n1 is taken" in caplog.text
        assert not site.worker.joined.is_set()
        assert len(site.scheduler.hellos) == 1
        await trio.sleep(60)
        assert len(site.scheduler.hellos) == 2


async def test_orderly_end_leaves_instances(autojump_clock: MockClock) -> None:
    """A shutdown lets instances run on."""
    site = Site()
    async with site.running() as worker:
        await site.scheduler.run(site.assignment("a"))
        await site.scheduler.until("a", Status.RUNNING)
        with trio.fail_after(1):
            await worker.shutdown()
    assert site.machine.live() == ["a"]


async def test_orderly_end_with_stop_instances(autojump_clock: MockClock) -> None:
    """With `stop_instances` a shutdown stops everything first, and tells it while the link is there."""
    site = Site(settings=WorkerSettings(node="n1", stop_instances=True))
    async with site.running() as worker:
        await site.scheduler.run(site.assignment("a", {"FAKE_IGNORE_STOP": "1"}))
        await site.scheduler.run(site.assignment("b"))
        await site.scheduler.run(site.assignment("c", {"FAKE_PREPARE_SECONDS": "1000"}))
        await site.scheduler.until("a", Status.RUNNING)
        began = trio.current_time()
        await worker.shutdown()
        assert 9 <= trio.current_time() - began <= 15
        assert {r.status for r in site.scheduler.latest.values()} == {Status.TERMINATED}
    assert site.machine.live() == []
    assert site.memory.entries() == {}


async def ask(site: Site, request: StreamRequest) -> list[bytes]:
    return await received(await site.scheduler.stream(request))


async def test_logs(autojump_clock: MockClock) -> None:
    """Logs come as JSON lines with their times; also of an instance that has ended and was forgotten."""
    site = Site()
    async with site.running():
        env = {"FAKE_LOG_LINES": "3", "FAKE_LOG_SECONDS": "1", "FAKE_RUN_SECONDS": "10"}
        await site.scheduler.run(site.assignment("a", env))
        await site.scheduler.final("a")
        await trio.sleep(1)
        assert site.memory.entries() == {}
        sent = await ask(site, ReadLogs("a"))
        lines = [json.loads(line) for frame in sent for line in frame.splitlines()]
        assert [line["line"] for line in lines] == ["line 0", "line 1", "line 2"]
        assert set(lines[0]) == {"at", "container", "stream", "line"}
        assert lines[0]["at"].endswith("Z")


async def test_following_logs_waits_for_the_start(autojump_clock: MockClock) -> None:
    """Following the logs of an instance in creation delivers them all, and ends with it."""
    site = Site()
    async with site.running():
        env = {"FAKE_LOG_LINES": "3", "FAKE_LOG_SECONDS": "1", "FAKE_RUN_SECONDS": "10", "FAKE_PREPARE_SECONDS": "30"}
        await site.scheduler.run(site.assignment("a", env))
        await site.scheduler.until("a", Status.CREATING)
        sent = await ask(site, ReadLogs("a", follow=True))
        assert len(sent) == 3


async def test_a_log_reader_that_leaves_is_let_go(autojump_clock: MockClock) -> None:
    """When the reader goes away the worker stops reading, also while there is nothing to send."""
    site = Site()
    async with site.running() as worker:
        await site.scheduler.run(site.assignment("a"))
        await site.scheduler.until("a", Status.RUNNING)
        stream = await site.scheduler.stream(ReadLogs("a", follow=True))
        await trio.sleep(1)
        assert worker._streams._open == 1
        await stream.aclose()
        await trio.sleep(1)
        assert worker._streams._open == 0


async def test_exec(autojump_clock: MockClock) -> None:
    """A command's output and exit code come back in the contract's frames."""
    site = Site()
    async with site.running():
        await site.scheduler.run(site.assignment("a"))
        await site.scheduler.until("a", Status.RUNNING)
        sent = await ask(site, Exec("a", ("sh", "-c", "echo out; echo err >&2; exit 7")))
        assert sent == [b"\x01out\n", b"\x02err\n", b'\x03{"exit": 7}']


async def test_exec_into_nothing(autojump_clock: MockClock) -> None:
    """Exec into what does not run is refused with the reason, as a status of HTTP."""
    site = Site()
    async with site.running():
        with pytest.raises(StreamFailed, match="not on this node") as gone:
            await ask(site, Exec("nobody", ("true",)))
        assert gone.value.http_status == 404
        await site.scheduler.run(site.assignment("a", {"FAKE_PREPARE_SECONDS": "50"}))
        await site.scheduler.until("a", Status.CREATING)
        with pytest.raises(StreamFailed, match="it is Creating") as early:
            await ask(site, Attach("a"))
        assert early.value.http_status == 409
        await site.scheduler.until("a", Status.RUNNING)
        with pytest.raises(StreamFailed, match="no-such-command") as missing:
            await ask(site, Exec("a", ("no-such-command",)))
        assert missing.value.http_status == 400


async def test_stats(autojump_clock: MockClock) -> None:
    """The use of each container comes with its present share of the processors."""
    site = Site()
    async with site.running():
        await site.scheduler.run(site.assignment("a"))
        await site.scheduler.until("a", Status.RUNNING)
        (frame,) = await ask(site, ReadStats("a"))
        (container,) = json.loads(frame)["containers"]
        assert (container["name"], container["cpu_millis"], container["pids"]) == ("c0", 0, 1)


async def test_audit_finds_an_orphan(autojump_clock: MockClock) -> None:
    """Every resource is listed with its owner, and what nobody owns is an orphan."""
    site = Site()
    async with site.running():
        await site.scheduler.run(site.assignment("a"))
        await site.scheduler.until("a", Status.RUNNING)
        (frame,) = await ask(site, Audit())
        assert json.loads(frame)["orphans"] == []
        site.machine.put(Facts(site.assignment("stray"), started_at=1))
        (frame,) = await ask(site, Audit())
        audited = json.loads(frame)
        assert [r["owner"] for r in audited["resources"]] == ["a", ""]
        (orphan,) = audited["orphans"]
        assert "stray" in orphan["detail"]
        assert (await ask(site, Doctor())) == [b'{"checks":[]}']


async def test_a_disk_that_refuses_to_be_looked_at(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """When what a runtime keeps cannot be read or swept, the worker starts all the same, and the audit says why."""

    async def refused(*arguments: object) -> list[object]:
        raise OSError(errno.EROFS, "Read-only file system", "/data/images/lock")

    monkeypatch.setattr(FakeRuntime, "sweep", refused)
    monkeypatch.setattr(FakeRuntime, "inventory", refused)
    site = Site()
    async with site.running():
        await site.scheduler.run(site.assignment("a"))
        await site.scheduler.until("a", Status.RUNNING)
        with pytest.raises(StreamFailed, match="Read-only file system") as caught:
            await ask(site, Audit())
        assert caught.value.http_status == 503
    assert "cannot be swept" in caplog.text and "Traceback" not in caplog.text


async def test_a_fault_in_a_stream_is_told_to_its_reader(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A bug met while serving a stream fails that stream and reaches the log; the worker goes on."""
    site = Site()
    async with site.running() as worker:
        await site.scheduler.run(site.assignment("a"))
        await site.scheduler.until("a", Status.RUNNING)
        supervisor = worker.supervisor("a")
        assert supervisor is not None

        async def broken(uid: str) -> list[object]:
            raise ZeroDivisionError("a bug")

        monkeypatch.setattr(supervisor.runtime, "stats", broken)
        with pytest.raises(StreamFailed, match="ZeroDivisionError"):
            await ask(site, ReadStats("a"))
        assert "Traceback" in caplog.text
        assert len(await ask(site, Exec("a", ("true",)))) == 1


async def test_the_log_tail_is_bounded(autojump_clock: MockClock) -> None:
    """The last lines in a final report are cut to 4 KiB each and 16 KiB together."""
    site = Site()
    async with site.running():
        env = {"FAKE_LOG_LINES": "25", "FAKE_LOG_TEXT": "é" * 5_000, "FAKE_RUN_SECONDS": "1"}
        await site.scheduler.run(site.assignment("a", env))
        tail = (await site.scheduler.final("a")).log_tail
        sizes = [len(line.line.encode()) for line in tail]
        assert max(sizes) <= LINE_BYTES
        assert LINE_BYTES * 3 < sum(sizes) <= TAIL_BYTES


def test_long_lines_are_cut_over_frames() -> None:
    """No frame is larger than a frame may be, and joined they are the lines."""
    lines = [LogLine("c", "stdout", 1, "x" * 200_000), *(LogLine("c", "stdout", 1, "y" * 1_000) for _ in range(100))]
    sent = frames(lines)
    assert max(map(len, sent)) <= MAX_FRAME_BYTES
    assert [json.loads(line)["line"] for line in b"".join(sent).splitlines()] == [line.line for line in lines]

"""Images over real HTTP, with the workers' ends in the test's hands; each answer is checked against /openapi.json."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import msgspec
import pytest
import trio
import trio.testing

from rik.api import images
from rik.link.base import LinkClosed, Stream
from rik.messages import ListImages, PruneImages, PullImage
from rik.model.node import NodeStatus
from tests.api.conftest import Running, Serve
from tests.api.scheduler import NODE_A, Worker

NODE_B = msgspec.structs.replace(NODE_A, id="node-id-b", name="node-b")
GONE = msgspec.structs.replace(NODE_A, id="node-id-c", name="node-c", status=NodeStatus.NOT_READY)
DIGEST = "sha256:" + "1" * 64
TIME = "2026-11-22T10:51:02.123Z"
FIGURES = {"layers": 3, "pulled_bytes": 10, "size_bytes": 20, "seconds": 1.2, "pulled_at": TIME}
PULLED = {
    "reference": "alpine:3.20",
    "digest": DIGEST,
    "origin": "docker.io",
    "cached": False,
    "pulled_layers": 2,
    "exposed_ports": ["80/tcp"],
    "dropped": {"devices": 1},
    "labels": {"org.opencontainers.image.version": "3.20"},
    **FIGURES,
}
STORED = {
    "references": ["alpine:3.20", "alpine:latest"],
    "digest": DIGEST,
    "origin": "docker.io",
    "used_at": TIME,
    "instances": ["cobra-citer-1923"],
    "exposed_ports": [],
    "dropped": {},
    "labels": {"a": "b"},
    **FIGURES,
}

Handler = Callable[[Any, Stream], Awaitable[None]]


def progress(done: int) -> dict[str, Any]:
    layers = {"done": 1, "total": 3}
    figures = {"done": done, "total": 10, "unit": "bytes", "layers": layers, "seconds": 0.4}
    return {"type": "progress", "step": "pull", **figures}


def line(value: dict[str, Any]) -> bytes:
    return msgspec.json.encode(value) + b"\n"


async def pulls_at_once(request: Any, stream: Stream) -> None:
    """In frames that are cut in the middle of a line."""
    text = line(progress(3)) + line({"type": "image", **PULLED})
    await stream.send(text[:150])
    await stream.send(text[150:])
    await stream.end()


async def add(running: Running, handler: Handler, node: Any = NODE_A) -> Worker:
    """A Ready node with a worker that serves every stream by `handler`."""
    worker = Worker(handler)
    await running.scheduler.add_node(node)
    running.nursery.start_soon(worker.run, running.switchboard, node.id)
    await trio.testing.wait_all_tasks_blocked()
    return worker


def answering(answer: dict[str, Any]) -> Handler:
    async def handler(request: Any, stream: Stream) -> None:
        await stream.send(msgspec.json.encode(answer))
        await stream.end()

    return handler


def refusing(status: int, reason: str) -> Handler:
    async def handler(request: Any, stream: Stream) -> None:
        await stream.fail("alpine:9 from docker.io: its manifest: 404", status, reason=reason, next_step="look there")

    return handler


LISTING = {"images": [STORED], "size_bytes": 20, "cache_bytes": 0, "keep_unused_s": 0.0}

# --- list


async def test_every_image_of_every_node_is_listed(running: Running) -> None:
    """An entry for each node that has it, with the names of the instances that use it."""
    first = await add(running, answering(LISTING))
    await add(running, answering(LISTING), NODE_B)
    listed = await running.client.call("images.list")
    assert [(entry["id"], entry["name"], entry["value"]["node"]) for entry in listed] == [
        (DIGEST, "alpine:3.20", "node-a"),
        (DIGEST, "alpine:3.20", "node-b"),
    ]
    assert listed[0]["value"] == {"node": "node-a", **STORED}
    assert first.requests == [ListImages()]
    assert [entry["value"]["node"] for entry in await running.client.call("images.list", node="node-b")] == ["node-b"]


async def test_nodes_that_cannot_be_asked_are_named_by_a_header(running: Running) -> None:
    """The list is of those that answer; `Rik-Unanswered` says whose images are not in it."""
    await add(running, answering(LISTING))
    await running.scheduler.add_node(NODE_B)
    await running.scheduler.add_node(GONE)
    answer = await running.client.get("/api/v0/images.list")
    assert [entry["value"]["node"] for entry in answer.json()] == ["node-a"]
    assert answer.headers["rik-unanswered"] == "node-b,node-c"


async def test_a_list_that_nobody_can_give_is_a_problem(running: Running) -> None:
    """When the chosen node, or every node, cannot be asked, the answer is 503 and names it."""
    assert await running.client.call("images.list") == []
    await running.scheduler.add_node(NODE_B)
    for query in ({}, {"node": "node-b"}):
        answer = await running.client.get("/api/v0/images.list", params=query)
        assert (answer.status_code, answer.json()["reason"]) == (503, "NodeUnavailable")
        assert "node-b" in answer.json()["detail"]


# --- pull


async def test_a_pull_answers_when_every_ready_node_has_it(running: Running) -> None:
    """Without `node` the image goes to all that are Ready; the answer says for each what came, and how long it took."""
    workers = [await add(running, pulls_at_once), await add(running, pulls_at_once, NODE_B)]
    await running.scheduler.add_node(GONE)
    answer = await running.client.do("images.pull", {"image": "alpine:3.20"})
    assert answer == {
        "image": "alpine:3.20",
        "pulled": [{"node": "node-a", **PULLED}, {"node": "node-b", **PULLED}],
    }
    assert [worker.requests for worker in workers] == [[PullImage("alpine:3.20")]] * 2


async def test_a_pull_to_one_node(running: Running) -> None:
    """With `node` (id or name) nobody else is asked."""
    await add(running, pulls_at_once)
    other = await add(running, pulls_at_once, NODE_B)
    for name in ("node-a", "node-id-a"):
        answer = await running.client.do("images.pull", {"image": "alpine:3.20", "node": name})
        assert [one["node"] for one in answer["pulled"]] == ["node-a"]
    assert other.requests == []


async def test_a_followed_pull_is_lines_of_json(running: Running) -> None:
    """`?stream=true`: progress while it goes, then the image, a line each, all with their node."""
    await add(running, pulls_at_once)
    answer = await running.client.post("/api/v0/images.pull?stream=true", json={"image": "alpine:3.20"})
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert [json.loads(text) for text in answer.text.splitlines()] == [
        {"node": "node-a", **progress(3)},
        {"node": "node-a", "type": "image", **PULLED},
    ]


async def test_followed_lines_come_at_once(running: Running) -> None:
    """A line is delivered when the worker says it, not when the pull is over."""
    seen = trio.Event()

    async def stepwise(request: Any, stream: Stream) -> None:
        await stream.send(line(progress(1)))
        await seen.wait()
        await stream.send(line({"type": "image", **PULLED}))
        await stream.end()

    await add(running, stepwise)
    body = {"image": "alpine:3.20"}
    types = []
    async with running.client.stream("POST", "/api/v0/images.pull?stream=true", json=body) as answer:
        async for text in answer.aiter_lines():
            types.append(json.loads(text)["type"])
            seen.set()
    assert types == ["progress", "image"]


async def test_a_failed_pull_keeps_its_reason(running: Running) -> None:
    """Status, reason, sentence and next step are the worker's; of several nodes the sentence names the one."""
    await add(running, refusing(404, "ImageNotFound"))
    answer = await running.client.post("/api/v0/images.pull", json={"image": "alpine:9"})
    assert (answer.status_code, answer.json()["reason"]) == (404, "ImageNotFound")
    assert answer.json()["detail"] == "alpine:9 from docker.io: its manifest: 404"
    assert answer.json()["next"] == "look there"
    await add(running, pulls_at_once, NODE_B)
    answer = await running.client.post("/api/v0/images.pull", json={"image": "alpine:9"})
    assert answer.json()["detail"] == "node node-a: alpine:9 from docker.io: its manifest: 404"


@pytest.mark.parametrize(
    ("status", "reason"), [(404, "ImageNotFound"), (403, "ImageUnauthorized"), (503, "ImagePullFailed")]
)
async def test_a_followed_pull_tells_of_each_failure(running: Running, status: int, reason: str) -> None:
    """A node that fails is one line with its problem; the other goes on to its image."""
    await add(running, refusing(status, reason))
    await add(running, pulls_at_once, NODE_B)
    answer = await running.client.post("/api/v0/images.pull?stream=true", json={"image": "alpine:9"})
    lines = [json.loads(text) for text in answer.text.splitlines()]
    (failure,) = [one for one in lines if one["type"] == "error"]
    assert (failure["node"], failure["problem"]["status"], failure["problem"]["reason"]) == ("node-a", status, reason)
    assert [one["node"] for one in lines if one["type"] == "image"] == ["node-b"]


async def test_a_node_that_cannot_be_reached(running: Running) -> None:
    """503 names the node; when others are asked too and the pull is followed, it is a line of its own."""
    await running.scheduler.add_node(NODE_B)
    for body in ({"image": "alpine"}, {"image": "alpine", "node": "node-b"}):
        answer = await running.client.post("/api/v0/images.pull", json=body)
        assert (answer.status_code, answer.json()["reason"]) == (503, "NodeUnavailable")
        assert "node-b" in answer.json()["detail"]
    await add(running, pulls_at_once)
    answer = await running.client.post("/api/v0/images.pull?stream=true", json={"image": "alpine"})
    lines = [json.loads(text) for text in answer.text.splitlines()]
    assert sorted((one["node"], one["type"]) for one in lines) == [
        ("node-a", "image"),
        ("node-a", "progress"),
        ("node-b", "error"),
    ]


async def test_nobody_to_pull(running: Running) -> None:
    """Without a Ready node a pull is 503, and says so."""
    await running.scheduler.add_node(GONE)
    answer = await running.client.post("/api/v0/images.pull", json={"image": "alpine"})
    assert (answer.status_code, answer.json()["detail"]) == (503, "no node is Ready")


@pytest.mark.parametrize("query", ["", "?stream=true"])
async def test_a_worker_that_vanishes_ends_the_pull(running: Running, query: str) -> None:
    """A stream that ends without an image is a failure, not an image."""

    async def vanishes(request: Any, stream: Stream) -> None:
        await stream.send(line(progress(1)))

    await add(running, lambda request, stream: _then_close(vanishes, request, stream))
    answer = await running.client.post(f"/api/v0/images.pull{query}", json={"image": "alpine"})
    problem = json.loads(answer.text.splitlines()[-1])
    problem = problem.get("problem", problem)
    assert (problem["status"], problem["detail"]) == (503, "node node-a disconnected before it had the image")


async def _then_close(handler: Handler, request: Any, stream: Stream) -> None:
    await handler(request, stream)
    await stream.aclose()


async def test_a_worker_that_says_nothing_is_given_up(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pull may take as long as it likes, but not in silence: its worker speaks every 5 s, or is gone."""
    monkeypatch.setattr(images, "SILENCE_S", 0.2)

    async def says_nothing(request: Any, stream: Stream) -> None:
        await trio.sleep_forever()

    async def says_something(request: Any, stream: Stream) -> None:
        for done in range(6):
            await trio.sleep(0.1)
            await stream.send(line(progress(done)))
        await pulls_at_once(request, stream)

    await add(running, says_nothing)
    await add(running, says_something, NODE_B)
    answer = await running.client.post("/api/v0/images.pull", json={"image": "alpine", "node": "node-a"})
    assert answer.status_code == 503 and "node-a has said nothing" in answer.json()["detail"]
    assert (await running.client.do("images.pull", {"image": "alpine", "node": "node-b"}))["pulled"]


@pytest.mark.parametrize("query", ["", "?stream=true"])
async def test_a_client_that_leaves_ends_its_pull(running: Running, query: str) -> None:
    """The worker's stream is closed when nobody waits for the pull any more."""
    begun, given_up = trio.Event(), trio.Event()

    async def endless(request: Any, stream: Stream) -> None:
        begun.set()
        try:
            while True:
                await stream.send(line(progress(1)))
                await trio.sleep(0.05)
        except LinkClosed:
            given_up.set()
            raise

    await add(running, endless)

    async def ask() -> None:
        async with running.client.stream("POST", f"/api/v0/images.pull{query}", json={"image": "alpine"}) as answer:
            async for _ in answer.aiter_lines():
                pass

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await begun.wait()
        await trio.sleep(0.1)
        nursery.cancel_scope.cancel()
    with trio.fail_after(5):
        await given_up.wait()


@pytest.mark.parametrize("query", ["", "?stream=true"])
async def test_a_server_that_shuts_down_ends_pulls(running: Running, query: str) -> None:
    """Whoever waits for a pull is told that the server goes."""
    begun = trio.Event()
    answers: list[httpx.Response] = []

    async def endless(request: Any, stream: Stream) -> None:
        begun.set()
        await trio.sleep_forever()

    await add(running, endless)
    await running.client.call("cluster.info")  # what answers must look like is asked for by then

    async def ask() -> None:
        answers.append(await running.client.post(f"/api/v0/images.pull{query}", json={"image": "alpine"}))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await begun.wait()
        running.api.shutdown()
    assert "shutting down" in answers[0].text


@pytest.mark.parametrize(
    ("body", "pointer", "sentence"),
    [
        ({}, "/image", "is required"),
        ({"image": None}, "/image", "is required"),
        ({"image": ""}, "/image", "the image is empty"),
        ({"image": "host"}, "/image", "nothing to pull"),
        ({"image": "Alpine"}, "/image", "did you mean `alpine`"),
        ({"image": "https://a/b"}, "/image", "leave out `https://`"),
        ({"image": "a:b:c"}, "/image", "the tag"),
        ({"image": "a" * 5000}, "/image", "characters"),
        ({"image": 5}, "/image", "got int"),
        ({"image": "alpine", "node": []}, "/node", "got array"),
        ([], "", "Expected object"),
    ],
)
async def test_what_is_no_image_is_refused(running: Running, body: Any, pointer: str, sentence: str) -> None:
    """400 with the sentence and its pointer, before any worker is asked."""
    worker = await add(running, pulls_at_once)
    for query in ("", "?stream=true"):
        answer = await running.client.post(f"/api/v0/images.pull{query}", json=body)
        assert answer.status_code == 400
        assert answer.json()["errors"][0]["pointer"] == pointer
        assert sentence in answer.json()["errors"][0]["message"]
    assert worker.requests == []


async def test_an_unparsable_reference_has_the_reason_of_a_bad_image(running: Running) -> None:
    """Programs see ImageInvalid, as they would from a worker."""
    answer = await running.client.post("/api/v0/images.pull", json={"image": "Alpine"})
    assert (answer.status_code, answer.json()["reason"]) == (400, "ImageInvalid")


@pytest.mark.parametrize("call", ["images.pull", "images.pull?stream=true", "images.prune"])
async def test_a_node_that_is_not_there(running: Running, call: str) -> None:
    """404, like everywhere."""
    answer = await running.client.post(f"/api/v0/{call}", json={"image": "alpine", "node": "nobody"})
    assert answer.status_code == 404 and "'nobody'" in answer.json()["detail"]
    assert (await running.client.get("/api/v0/images.list?node=nobody")).status_code == 404


# --- prune


async def test_pruning_sums_up_what_went(running: Running) -> None:
    """Each Ready node says what it removed; the sum is given too; what is asked reaches the workers."""
    pruned = {"removed": [STORED], "freed_bytes": 20, "kept": 1, "size_bytes": 7}
    worker = await add(running, answering(pruned))
    await add(running, answering({**pruned, "removed": [], "freed_bytes": 0}), NODE_B)
    answer = await running.client.do("images.prune", {"unused_s": 60, "dry_run": True})
    assert answer["freed_bytes"] == 20
    assert answer["nodes"][0] == {"node": "node-a", **pruned}
    assert [one["node"] for one in answer["nodes"]] == ["node-a", "node-b"]
    assert worker.requests == [PruneImages(60.0, True)]


async def test_pruning_needs_no_body(running: Running) -> None:
    """Nothing said is everything unused, everywhere."""
    worker = await add(running, answering({"removed": [], "freed_bytes": 0, "kept": 0, "size_bytes": 0}))
    for content in (b"", b"{}", b'{"node": null, "unused_s": null}'):
        assert (await running.client.post("/api/v0/images.prune", content=content)).status_code == 200
    assert worker.requests == [PruneImages()] * 3


@pytest.mark.parametrize(
    ("body", "pointer"),
    [({"unused_s": -1}, "/unused_s"), ({"unused_s": "7d"}, "/unused_s"), ({"unused_s": 1e300}, "/unused_s"),
     ({"dry_run": 1}, "/dry_run"), ({"node": 3}, "/node")],
)  # fmt: skip
async def test_what_cannot_be_pruned_by_is_refused(running: Running, body: Any, pointer: str) -> None:
    """400 with the place of what is wrong."""
    answer = await running.client.post("/api/v0/images.prune", json=body)
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (400, pointer)


async def test_a_failure_to_prune_names_its_node(running: Running) -> None:
    """The first failure is the answer, whatever others removed."""
    await add(running, refusing(503, "Refused"))
    await add(running, answering({"removed": [], "freed_bytes": 0, "kept": 0, "size_bytes": 0}), NODE_B)
    answer = await running.client.post("/api/v0/images.prune", json={})
    assert answer.status_code == 503 and answer.json()["detail"].startswith("node node-a: ")


async def test_routes_of_images_know_their_methods(serve: Serve) -> None:
    """The wrong method is 405."""
    async with serve() as running:
        for method, call in (("POST", "images.list"), ("GET", "images.pull"), ("GET", "images.prune")):
            assert (await running.client.request(method, f"/api/v0/{call}")).status_code == 405

"""Every call of the contract, over real HTTP; each answer is checked against /openapi.json by the client."""

from __future__ import annotations

import httpx
import msgspec
import pytest

from rik.link.base import Stream
from rik.messages import Audit, CreateInstances, CreateWorkload, DeleteInstance, Doctor, ReadStats, StreamRequest
from rik.model.instance import Progress, Status
from tests.api.conftest import Running
from tests.api.scheduler import DOCUMENT, NODE_A, NOW, Worker, instance

# --- workloads ---


async def test_a_created_workload_is_listed_at_once(running: Running) -> None:
    """You read what you wrote: the answer to a create comes when the list already shows it, normalised."""
    created = await running.client.do("workloads.create", DOCUMENT)
    assert created == {"id": "workload-hello", "warnings": []}
    listed = await running.client.call("workloads.list")
    assert [(entry["id"], entry["name"]) for entry in listed] == [("workload-hello", "hello")]
    assert listed[0]["value"]["replicas"] == 1


async def test_a_dry_run_creates_nothing(running: Running) -> None:
    """`?dryRun=true` checks a document, warnings included, and leaves no trace."""
    created = await running.client.do("workloads.create", {**DOCUMENT, "colour": "blue"}, dryRun="true")
    assert created["id"] == "" and "colour" in created["warnings"][0]
    assert await running.client.call("workloads.list") == []
    assert running.scheduler.requests == []


@pytest.mark.parametrize("dry_run", ["true", "false"])
async def test_images_that_are_no_references(running: Running, dry_run: str) -> None:
    """A document is taken whatever its images are called; what no node could pull is warned of, each by its pointer."""
    images = ["alpine:3.20", "Alpine", "host", "http://registry.example/app"]
    containers = [{"name": f"c{n}", "image": image, "command": ["a"]} for n, image in enumerate(images)]
    odd = {**DOCUMENT, "spec": {"containers": containers}}
    made = await running.client.do("workloads.create", odd, dryRun=dry_run)
    first, second = made["warnings"]
    assert first.startswith("/spec/containers/1/image: `Alpine` is no image reference: ") and "`alpine`?" in first
    assert second.startswith("/spec/containers/3/image: ") and "leave out `http://`" in second


async def test_a_dry_run_of_a_taken_name_is_a_conflict(running: Running) -> None:
    """`?dryRun=true` answers 409 where creating would."""
    await running.client.do("workloads.create", DOCUMENT)
    answer = await running.client.post("/api/v0/workloads.create?dryRun=true", json=DOCUMENT)
    assert answer.status_code == 409 and answer.json()["reason"] == "Conflict"
    other = await running.client.do("workloads.create", {**DOCUMENT, "name": "other"}, dryRun="true")
    assert other == {"id": "", "warnings": []}


@pytest.mark.parametrize("media_type", [None, "application/x-www-form-urlencoded", "text/plain", "application/json"])
async def test_json_is_parsed_whatever_the_content_type(running: Running, media_type: str | None) -> None:
    """JSON needs no Content-Type: curl -d and the original's CLI send another one or none."""
    headers = {"Content-Type": media_type} if media_type else {}
    body = msgspec.json.encode(DOCUMENT)
    answer = await running.client.post("/api/v0/workloads.create", content=body, headers=headers)
    assert answer.status_code == 200


async def test_yaml_is_parsed_by_its_media_type(running: Running) -> None:
    """A document may be YAML when its media type says so."""
    body = "apiVersion: v1\nkind: Pod\nname: hello\nspec:\n  containers:\n  - {name: a, image: host, command: [x]}\n"
    headers = {"Content-Type": "application/yaml"}
    answer = await running.client.post("/api/v0/workloads.create", content=body, headers=headers)
    assert answer.status_code == 200, answer.text
    command = running.scheduler.requests[0]
    assert isinstance(command, CreateWorkload) and command.document["name"] == "hello"


async def test_an_invalid_document_is_answered_with_every_error(running: Running) -> None:
    """All errors come at once, each with a JSON pointer and a sentence."""
    document = {**DOCUMENT, "name": "NOT A NAME", "spec": {"containers": [{"name": "a"}]}}
    answer = await running.client.post("/api/v0/workloads.create", json=document)
    problem = answer.json()
    assert answer.status_code == 400 and problem["reason"] == "InvalidDocument"
    pointers = {error["pointer"] for error in problem["errors"]}
    assert any(pointer.startswith("/name") for pointer in pointers)
    assert any(pointer.startswith("/spec/containers/0") for pointer in pointers)


async def test_a_taken_name_is_a_conflict(running: Running) -> None:
    """A name that is taken is 409 with the next step."""
    await running.client.do("workloads.create", DOCUMENT)
    answer = await running.client.post("/api/v0/workloads.create", json=DOCUMENT)
    assert answer.status_code == 409 and answer.json()["next"] == "take another"


@pytest.mark.parametrize(
    "body", [{"id": "workload-hello"}, {"name": "hello"}, {"id": "hello"}, {"id": None, "name": "hello"}]
)
async def test_a_workload_is_deleted_by_id_or_name(running: Running, body: dict[str, str]) -> None:
    """A workload is deleted by its id or its name, and gone from the list when the answer comes."""
    await running.client.do("workloads.create", DOCUMENT)
    answer = await running.client.post("/api/v0/workloads.delete", json=body)
    assert (answer.status_code, answer.content) == (204, b"")
    assert await running.client.call("workloads.list") == []
    assert (await running.client.post("/api/v0/workloads.delete", json=body)).status_code == 404


async def test_the_instances_of_a_workload(running: Running) -> None:
    """`workloads.instances` is 204 without instances, 404 without the workload, and shows each with its spec."""
    await running.client.do("workloads.create", DOCUMENT)
    assert (await running.client.get("/api/v0/workloads.instances/hello")).status_code == 204
    assert (await running.client.get("/api/v0/workloads.instances/nope")).status_code == 404
    names = await running.client.do("instances.create", {"workload_id": "hello", "replicas": 2})
    shown = await running.client.call("workloads.instances/workload-hello")
    assert [record["name"] for record in shown["instances"]] == names
    assert shown["instances"][0]["spec"]["containers"][0]["name"] == "main"


# --- instances ---


@pytest.mark.parametrize("key", ["workload_id", "workload"])
async def test_instances_are_created_and_read_at_once(running: Running, key: str) -> None:
    """A create answers 201 with the names, all of which can be read when the answer comes."""
    await running.client.do("workloads.create", DOCUMENT)
    answer = await running.client.post("/api/v0/instances.create", json={key: "hello", "replicas": 3})
    assert answer.status_code == 201 and len(answer.json()) == 3
    for name in answer.json():
        assert (await running.client.call(f"instances.get/{name}"))["status"] == "Pending"
    named = await running.client.do("instances.create", {key: "hello", "name": "mine"})
    assert named == ["mine"]
    command = running.scheduler.requests[-1]
    assert isinstance(command, CreateInstances) and command.name == "mine"


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"workload_id": ""},
        {"workload_id": "hello", "replicas": 0},
        {"workload_id": "hello", "replicas": 10_001},
        {"workload_id": "hello", "replicas": "2"},
        {"workload_id": "hello", "replicas": 2.5},
        {"workload_id": "hello", "replicas": True},
        {"workload_id": "hello", "replicas": 10**30},
        {"workload_id": "hello", "replicas": 2, "name": "two"},
        {"workload_id": "hello", "name": "Not A Name"},
        {"workload_id": "hello", "name": "a" * 64},
        {"workload_id": 7},
        [],
        "hello",
        None,
    ],
)
async def test_bad_creates_are_refused_before_the_scheduler(running: Running, body: object) -> None:
    """What can never be created is 400 and costs the scheduler nothing."""
    answer = await running.client.post("/api/v0/instances.create", json=body)
    assert answer.status_code == 400, answer.text
    assert running.scheduler.requests == []


async def test_a_field_of_the_wrong_type_is_pointed_at(running: Running) -> None:
    """A malformed body is answered with the pointer of the field at fault."""
    answer = await running.client.post("/api/v0/instances.create", json={"workload_id": "a", "replicas": "2"})
    assert answer.json()["errors"][0]["pointer"] == "/replicas"


async def test_instances_of_no_workload(running: Running) -> None:
    """Creating instances of a workload that is not there is 404."""
    answer = await running.client.post("/api/v0/instances.create", json={"workload_id": "nope"})
    assert answer.status_code == 404


async def test_lists_are_filtered_by_everything_named(running: Running) -> None:
    """Lists take status, workload, node and namespace, by name or id, and combine them."""
    await running.scheduler.put(
        instance(1),
        instance(2, Status.FAILED),
        instance(3, workload="other", workload_id="other-id"),
        instance(4, node="node-b", node_id="node-id-b"),
        instance(5, namespace="elsewhere"),
    )

    async def listed(**query: str) -> list[str]:
        return [entry["name"] for entry in await running.client.call("instances.list", **query)]

    assert await listed() == [f"instance-{number}" for number in range(1, 6)]
    assert await listed(status="Failed") == ["instance-2"]
    assert await listed(status="failed,Terminated") == ["instance-2"]
    assert await listed(workload="other") == await listed(workload="other-id") == ["instance-3"]
    assert await listed(node="node-b") == await listed(node="node-id-b") == ["instance-4"]
    assert await listed(namespace="elsewhere") == ["instance-5"]
    assert await listed(status="Running", workload="hello", node="node-a", namespace="default") == ["instance-1"]
    assert await listed(workload="nope") == []


async def test_long_lists_come_in_pages(running: Running) -> None:
    """With a limit the answer names where to go on, and what comes or goes meanwhile is neither lost nor repeated."""
    await running.scheduler.put(*(instance(number) for number in range(1, 8)))
    names: list[str] = []
    query = {"limit": "3"}
    while True:
        answer = await running.client.get("/api/v0/instances.list", params=query)
        names += [entry["name"] for entry in answer.json()]
        if len(names) == 3:
            await running.scheduler.remove(instance(3).uid)
        if "Rik-Continue" not in answer.headers:
            break
        query["continue"] = answer.headers["Rik-Continue"]
    assert names == [f"instance-{number}" for number in range(1, 8)]


async def test_an_instance_is_found_by_name_and_by_uid(running: Running) -> None:
    """`instances.get` takes a name or a uid and shows everything."""
    await running.scheduler.put(instance(1))
    by_name = await running.client.call("instances.get/instance-1")
    assert by_name == await running.client.call(f"instances.get/{instance(1).uid}")
    assert by_name["log_tail"][0]["line"] == "last words"
    assert by_name["history"][-1] == {"status": "Running", "at": "2026-09-21T14:13:20.124Z", "message": "so it went"}


async def test_post_mortems_outlive_the_instance(running: Running) -> None:
    """After its deletion a name finds the latest post-mortem, a uid exactly its own, and a new instance hides both."""
    first = instance(1, Status.FAILED, name="same", reason="Killed")
    second = instance(2, Status.FAILED, name="same", reason="OutOfMemory")
    for record in (first, second):
        await running.scheduler.put(record)
        await running.scheduler.remove(record.uid)
    assert await running.client.call("instances.list") == []
    assert (await running.client.call("instances.get/same"))["reason"] == "OutOfMemory"
    assert (await running.client.call(f"instances.get/{first.uid}"))["reason"] == "Killed"
    await running.scheduler.put(instance(3, name="same"))
    assert (await running.client.call("instances.get/same"))["status"] == "Running"
    assert (await running.client.get("/api/v0/instances.get/other")).status_code == 404


async def test_a_delete_is_accepted_by_id(running: Running) -> None:
    """`instances.delete` is 204 once the wish is durable, and 404 for what is not there."""
    await running.scheduler.put(instance(1))
    answer = await running.client.post("/api/v0/instances.delete", json={"id": "instance-1"})
    assert answer.status_code == 204
    assert running.scheduler.requests == [DeleteInstance("instance-1", "default")]
    assert (await running.client.call("instances.get/instance-1"))["status"] == "Destroying"
    answer = await running.client.post("/api/v0/instances.delete", json={"id": "instance-2"})
    assert answer.status_code == 404
    answer = await running.client.post("/api/v0/instances.delete", json={})
    assert answer.status_code == 400


async def test_live_progress_shows_in_lists(running: Running) -> None:
    """Lists and single records show the step and progress of this moment."""
    await running.scheduler.put(instance(1, Status.CREATING))
    running.scheduler.progress(instance(1).uid, Progress("pull", 3, 10, "bytes"))
    await running.client.do("workloads.create", DOCUMENT)
    for record in (
        (await running.client.call("instances.list"))[0]["value"],
        await running.client.call("instances.get/instance-1"),
    ):
        assert (record["step"], record["progress"]) == (
            "pull",
            {"done": 3, "total": 10, "unit": "bytes", "layers": None, "seconds": 0.0},
        )


async def test_explanations_come_from_the_scheduler_or_the_post_mortem(running: Running) -> None:
    """`instances.explain` asks the scheduler about what is listed, and the record about what is gone."""
    await running.scheduler.put(instance(1, Status.PENDING), instance(2, Status.FAILED, decision="it was the only one"))
    assert (await running.client.call("instances.explain/instance-1"))["decision"] == "no node yet"
    await running.scheduler.remove(instance(2).uid)
    assert (await running.client.call("instances.explain/instance-2"))["decision"] == "it was the only one"
    assert (await running.client.get("/api/v0/instances.explain/nope")).status_code == 404


# --- workers ---


async def answer_in_two_frames(request: StreamRequest, stream: Stream) -> None:
    match request:
        case ReadStats():
            data = b'{"containers":[{"name":"main","memory_bytes":1}]}'
        case Audit():
            data = b'{"resources":[],"orphans":[]}'
        case Doctor():
            data = b'{"checks":[]}'
        case _:
            raise AssertionError(request)
    await stream.send(data[:9])
    await stream.send(data[9:])
    await stream.end()


async def test_workers_answer_stats_audit_and_doctor(running: Running) -> None:
    """Stats of an instance, the audit and the doctor's round of a node come from its worker, by name or id."""
    worker = Worker(answer_in_two_frames)
    await running.scheduler.add_node()
    await running.scheduler.put(instance(1))
    running.nursery.start_soon(worker.run, running.switchboard)
    assert (await running.client.call("instances.stats/instance-1"))["containers"][0]["memory_bytes"] == 1
    assert await running.client.call("nodes.audit/node-a") == {"resources": [], "orphans": []}
    assert await running.client.call("nodes.doctor/node-id-a") == {"checks": []}


async def refuse(request: StreamRequest, stream: Stream) -> None:
    await stream.fail("it is not here", 404)


async def test_a_workers_refusal_becomes_the_answer(running: Running) -> None:
    """What a worker refuses is answered with its status and its sentence."""
    await running.scheduler.put(instance(1))
    running.nursery.start_soon(Worker(refuse).run, running.switchboard)
    answer = await running.client.get("/api/v0/instances.stats/instance-1")
    assert (answer.status_code, answer.json()["detail"]) == (404, "it is not here")


async def test_a_node_that_is_not_connected_is_503(running: Running) -> None:
    """What only an absent worker could answer is 503 with Retry-After, naming the node."""
    await running.scheduler.add_node()
    await running.scheduler.put(instance(1))
    for path in ("instances.stats/instance-1", "nodes.audit/node-a", "nodes.doctor/node-a"):
        answer = await running.client.get(f"/api/v0/{path}")
        assert answer.status_code == 503 and "node-a" in answer.json()["detail"]
        assert int(answer.headers["Retry-After"]) >= 1


async def test_stats_of_what_does_not_run(running: Running) -> None:
    """Stats of an instance that has ended, or has no node yet, are 409 and say so."""
    await running.scheduler.put(instance(1, Status.FAILED, reason="Killed"), instance(2, Status.PENDING))
    for name, words in (("instance-1", "Killed"), ("instance-2", "Pending")):
        answer = await running.client.get(f"/api/v0/instances.stats/{name}")
        assert answer.status_code == 409 and words in answer.json()["detail"]


# --- nodes, events, cluster ---


async def test_nodes_show_what_is_allocated(running: Running) -> None:
    """A node shows capacity, what its living instances have asked for, and its latest heartbeat."""
    await running.scheduler.add_node()
    await running.scheduler.put(instance(1), instance(2), instance(3, Status.FAILED), instance(4, Status.PENDING))
    running.scheduler.heartbeat(NODE_A.id, NOW + 5_000, {"cpu_percent": 99.0})
    await running.client.do("workloads.create", DOCUMENT)
    (entry,) = await running.client.call("nodes.list")
    node = entry["value"]
    assert node == await running.client.call("nodes.get/node-a") == await running.client.call("nodes.get/node-id-a")
    assert node["allocated"] == {"cpu_millis": 1000, "memory_bytes": 2 * 64 * 2**20, "pids": 0}
    assert (node["instances"], node["metrics"]) == (2, {"cpu_percent": 99.0})
    assert node["heartbeat_at"] == "2026-09-21T14:13:25.123Z"
    assert (await running.client.get("/api/v0/nodes.get/nope")).status_code == 404


async def test_events_are_those_of_the_instance_asked_for(running: Running) -> None:
    """Events are listed oldest first, of all or of one instance (also when it is gone), and after a revision."""
    await running.scheduler.put(instance(1))
    await running.scheduler.put(instance(2))
    last = await running.scheduler.put(instance(1, Status.FAILED))
    await running.scheduler.remove(instance(1).uid)
    assert len(await running.client.call("events.list")) == 3
    mine = await running.client.call("events.list", instance="instance-1")
    assert [event["reason"] for event in mine] == ["Running", "Failed"]
    later = await running.client.call("events.list", since=mine[0]["revision"])
    assert [event["object"] for event in later] == ["instance/instance-2", "instance/instance-1"]
    assert [event["reason"] for event in await running.client.call("events.list", limit=1)] == ["Failed"]
    assert await running.client.call("events.list", since=last + 100) == []
    assert await running.client.call("events.list", instance="nope") == []


async def test_the_cluster_says_what_it_is(running: Running) -> None:
    """`cluster.info` tells id, version, revision, leader, nodes and store."""
    last = await running.scheduler.add_node()
    await running.client.do("workloads.create", DOCUMENT)
    info = await running.client.call("cluster.info")
    assert info["id"] == "cluster-id" and info["store"] == "memory" and info["revision"] == last + 1
    assert info["nodes"] == {"total": 1, "ready": 1}


async def test_health_and_metrics(running: Running) -> None:
    """Health, readiness and metrics have no prefix; metrics count requests, instances and watchers."""
    await running.scheduler.put(instance(1))
    assert (await running.client.get("/healthz")).json() == {"status": "ok"}
    assert (await running.client.get("/readyz")).json() == {"status": "ok"}
    async with running.client.watch() as frames:
        await frames.next()
        text = (await running.client.get("/metrics")).text
    for line in (
        'rik_instances{status="Running"} 1.0',
        'rik_http_requests_total{route="healthz",status="200"} 1.0',
        "rik_watchers 1.0",
        "rik_watch_gaps_total 0.0",
        "rik_commit_revision 1.0",
        'rik_nodes{status="Ready"} 0.0',
        "process_resident_memory_bytes",
    ):
        assert line in text


async def test_the_documents_schema_is_served(running: Running) -> None:
    """The JSON Schema of workload documents is served at the address its $id promises."""
    schema = (await running.client.get("/workloads/schema-v1.json")).json()
    assert schema["$id"] == "https://rik-org.github.io/rik/workloads/schema-v1.json"
    assert (await running.client.get("/api/v0/workloads/schema-v1.json")).json() == schema


async def test_head_is_get_without_a_body(running: Running) -> None:
    """HEAD answers as GET would, without a body."""
    answer = await running.client.head("/api/v0/instances.list")
    assert (answer.status_code, answer.content) == (200, b"")


async def test_names_with_odd_characters_are_simply_not_found(running: Running) -> None:
    """Whatever stands where a name belongs is a 404, never an error of the server's."""
    for name in ("%00", "%ff%fe", "%F0%9F%90%8D", "..", "a%20b", "%25", "x" * 5000, "'%20or%201=1"):
        answer = await running.client.get(f"/api/v0/instances.get/{name}")
        assert answer.status_code in (404, 400), (name, answer.text)


async def test_one_workload_can_have_the_id_of_another_as_its_name(running: Running) -> None:
    """An id wins over a name."""
    await running.client.do("workloads.create", DOCUMENT)
    await running.client.do("workloads.create", {**DOCUMENT, "name": "workload-hello"})
    assert len(await running.client.call("workloads.list")) == 2
    answer: httpx.Response = await running.client.get("/api/v0/workloads.instances/workload-hello")
    assert answer.status_code == 204

"""Instances in words."""

from __future__ import annotations

from typing import Any

import pytest

from rik.cli import story
from rik.cli.describe import instance_lines

FAILED: dict[str, Any] = {
    "name": "crash-1",
    "uid": "abcdefgh",
    "kind": "Pod",
    "workload": "crash",
    "workload_id": "w1",
    "status": "Failed",
    "reason": "ContainerExited",
    "message": "container `worker` exited with code 3",
    "node": "laptop",
    "created_at": "2026-01-31T12:00:00.000Z",
    "updated_at": "2026-01-31T12:00:02.000Z",
    "history": [
        {"status": "Pending", "at": "2026-01-31T12:00:00.000Z", "message": "accepted"},
        {"status": "Creating", "at": "2026-01-31T12:00:00.010Z", "message": ""},
        {"status": "Running", "at": "2026-01-31T12:00:00.500Z", "message": ""},
        {"status": "Failed", "at": "2026-01-31T12:00:02.000Z", "message": "container `worker` exited with code 3"},
    ],
    "containers": [
        {
            "name": "worker",
            "image": "host",
            "state": "exited",
            "exit_code": 3,
            "signal": None,
            "started_at": "2026-01-31T12:00:00.500Z",
            "ended_at": "2026-01-31T12:00:02.000Z",
        }
    ],
    "ports": [{"port": 18080, "targetPort": 80, "protocol": "TCP", "type": "NodePort", "address": "0.0.0.0"}],
    "enforced": {"network": True, "memory": "no writable cgroup"},
    "log_tail": [
        {"container": "worker", "stream": "stdout", "at": "2026-01-31T12:00:01.000Z", "line": "connecting"},
        {
            "container": "worker",
            "stream": "stderr",
            "at": "2026-01-31T12:00:02.000Z",
            "line": "fatal: \x1b[31mno\x1b[0m",
        },
    ],
}


def test_explanation() -> None:
    """A failure is explained by its reason, sentence, exit code, last lines of output and the next step."""
    assert story.explanation(FAILED) == [
        "crash-1 failed: ContainerExited: container `worker` exited with code 3",
        "  container worker: exit code 3 after 1.5 s",
        "  last lines of output:",
        "    | connecting",
        "    ! fatal: �[31mno�[0m",
        "  next: rik describe instance crash-1",
    ]


@pytest.mark.parametrize(
    ("containers", "reason", "expected"),
    [
        ([{"exit_code": 3}], "ContainerExited", 3),
        ([{"exit_code": 0}, {"exit_code": 7}], "ContainerExited", 7),
        ([{"exit_code": None, "signal": "SIGKILL"}], "OutOfMemory", 137),
        ([{"exit_code": None, "signal": "SIGTERM"}], "Killed", 143),
        ([{"exit_code": None}], "CommandNotFound", 127),
        ([], "ImageNotFound", 1),
    ],
)
def test_exit_code(containers: list[dict[str, Any]], reason: str, expected: int) -> None:
    """`run --rm` ends with the program's own exit code, with 128 + the signal, 127 for no such command, or 1."""
    assert story.exit_code({"status": "Failed", "reason": reason, "containers": containers}) == expected


@pytest.mark.parametrize(
    ("port", "server", "expected"),
    [
        ({"port": 80, "address": "0.0.0.0"}, "127.0.0.1", "http://127.0.0.1:80"),
        ({"port": 80, "address": ""}, "localhost", "http://127.0.0.1:80"),
        ({"port": 80, "address": "127.0.0.1:8080"}, "127.0.0.1", "http://127.0.0.1:8080"),
        ({"port": 80, "address": "0.0.0.0:80"}, "node.example", "http://node.example:80"),
        ({"port": 80, "address": "[::]:80"}, "::1", "http://127.0.0.1:80"),
        ({"port": 80, "address": "fd00::1"}, "::1", "http://[fd00::1]:80"),
        ({"port": 53, "address": "127.0.0.1", "protocol": "UDP"}, "::1", "127.0.0.1:53/udp"),
        ({"port": 0, "targetPort": 9, "type": "ClusterIP", "address": "10.0.0.2:9"}, "::1", "10.0.0.2:9"),
        ({"port": 0, "targetPort": 9, "type": "ClusterIP", "address": ""}, "::1", "port 9 of the pod"),
    ],
)
def test_port_place(port: dict[str, Any], server: str, expected: str) -> None:
    """A published port is shown as a URL that can be opened from where the command runs."""
    assert story.port_place(port, server) == expected


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"status": "Creating", "step": "pull", "progress": {"done": 43, "total": 100}}, "Creating pull 43 %"),
        (
            {"status": "Creating", "step": "pull", "progress": {"done": 2048, "total": 0, "unit": "bytes"}},
            "Creating pull 2 KiB",
        ),
        ({"status": "Creating", "step": "start", "progress": None}, "Creating start"),
        ({"status": "Running", "stale_since": "2026-01-31T12:00:00.000Z"}, "Running (node silent)"),
        ({"status": "Failed", "stale_since": "2026-01-31T12:00:00.000Z"}, "Failed"),
    ],
)
def test_status_phrase(record: dict[str, Any], expected: str) -> None:
    """The status carries the step and progress of a creation, and says when its node is silent."""
    assert story.status_phrase(record) == expected


def test_description_of_an_instance() -> None:
    """A description tells all: status, reason, history with durations, containers, limits, output and events."""
    events = [{"at": "2026-01-31T12:00:02.000Z", "type": "Warning", "reason": "Failed", "message": "it ended"}]
    text = "\n".join(instance_lines(FAILED, events, post_mortem=True))
    for part in (
        "Post-mortem:  it is not listed any more",
        "Reason:       ContainerExited",
        "Message:      container `worker` exited with code 3",
        "2026-01-31 12:00:00.500Z  Running         1.5 s",
        "worker  host   exited  exit code 3  2026-01-31 12:00:00.500Z",
        "18080 -> 80/TCP",
        "network  enforced",
        "memory   not enforced: no writable cgroup",
        "2026-01-31 12:00:02.000Z ! fatal: �[31mno�[0m",
        "Warning  Failed: it ended",
        "next: rik logs abcdefgh",
    ):
        assert part in text


def used(**fields: Any) -> dict[str, Any]:
    """An image as an instance's record has it."""
    image = {
        "reference": "nginx:1.27",
        "digest": "sha256:" + "ab" * 32,
        "containers": ["web"],
        "origin": "docker.io",
        "cached": False,
        "layers": 6,
        "pulled_layers": 6,
        "pulled_bytes": 72_000_000,
        "size_bytes": 190_000_000,
        "seconds": 4.2,
        "pulled_at": "2026-01-31T12:00:00.000Z",
        "exposed_ports": ["80/tcp", "443/tcp"],
        "dropped": {},
        "labels": {},
    }
    return {**image, **fields}


def running(*images: dict[str, Any], **container: Any) -> dict[str, Any]:
    spec = {"containers": [{"name": "web", "image": "nginx:1.27", **container}]}
    return {**FAILED, "status": "Running", "reason": "", "spec": spec, "images": list(images)}


def described(record: dict[str, Any]) -> str:
    return "\n".join(instance_lines(record))


def test_images_of_an_instance() -> None:
    """A description tells of each image its digest and origin, how large it is, what pulling it took, what is missing,
    and how to publish what it exposes.
    """
    text = described(running(used(dropped={"devices": 2, "owners": 1_200})))
    section = text[text.index("\nImages\n") :].split("\n\n")[0].strip().splitlines()
    assert section[:5] == [
        "Images",
        "  nginx:1.27  (of web)",
        f"    digest  sha256:{'ab' * 32}",
        "    from    docker.io",
        "    size    190 MB unpacked, 6 layers",
    ]
    assert section[5].startswith("    pulled  6 of 6 layers, 72 MB in 4.2 s, 2026-01-31 12:00:00.000Z (")
    assert section[6:8] == [
        "    note    2 devices were left out: not allowed here",
        "    note    1,200 files belong to other users than in the image: this node has no such ids to give",
    ]
    assert section[8] == (
        "    exposes 80/tcp, 443/tcp, which nothing publishes; "
        'to publish it, write "ports": [{"port": 8080, "targetPort": 80}] into the container'
    )


def test_images_that_were_there() -> None:
    """An image that a node had already, or of which it had some layers, is told to have been there."""
    assert "cached  it was on the node already, pulled 2026-01-31 12:00:00.000Z" in described(
        running(used(cached=True))
    )
    assert "; the other one was there already" in described(running(used(pulled_layers=5)))
    assert "; the other 4 were there already" in described(running(used(pulled_layers=2)))
    assert "; all layers were there already" in described(running(used(pulled_layers=0, pulled_bytes=0)))


def test_labels_of_an_image() -> None:
    """A few labels stand on one line, version and source first; long ones are cut, and of the rest it says how many."""
    standard = "org.opencontainers.image."
    labels = {
        "maintainer": "me",
        f"{standard}created": "2026-01-31",
        f"{standard}source": "https://example/app",
        f"{standard}version": "1.2.3",
        f"{standard}title": "",
        "com.example.document": "x" * 1000,
    }
    text = described(running(used(labels=labels)))
    told = next(line for line in text.splitlines() if line.startswith("    labels"))
    assert told == (
        "    labels  version 1.2.3, source https://example/app, created 2026-01-31, maintainer me, 2 more in -o json"
    )
    assert f"  labels  com.example.document {'x' * 59}…\n" in described(
        running(used(labels={"com.example.document": "x" * 1000}))
    )
    assert "labels" not in described(running(used()))


def test_ports_that_need_no_hint() -> None:
    """Where a port is published, where the host's network is used, and after the end there is no hint about ports."""
    assert "exposes" not in described(running(used(), ports=[{"port": 8080, "targetPort": 80}]))
    assert "exposes" not in described(running(used(exposed_ports=[])))
    of_host = running(used())
    of_host["spec"]["hostNetwork"] = True
    assert "exposes" not in described(of_host)
    assert "exposes" not in described({**running(used()), "status": "Terminated"})


def test_failure_of_an_image() -> None:
    """What failed for its image's sake is told with the pull that shows it again; of several images, with those there
    are.
    """
    failed = {**FAILED, "reason": "ImagePullFailed", "containers": [], "spec": running()["spec"]}
    assert "next: rik image pull nginx:1.27 --node laptop" in described(failed)
    failed["spec"]["containers"].append({"name": "log", "image": "alpine"})
    assert "next: rik image list --node laptop" in described(failed)


def test_failure_of_what_is_no_reference() -> None:
    """Nobody is sent to pull what cannot be pulled: the image must be written anew."""
    spec = {"containers": [{"name": "web", "image": "Nginx:1.27"}, {"name": "log", "image": "alpine"}]}
    failed = {**FAILED, "reason": "ImageInvalid", "containers": [], "spec": spec}
    text = described(failed)
    assert "next: write another image for `Nginx:1.27`, then rik create workload -f FILE" in text
    assert "image pull" not in text and "doctor" not in text


def test_description_of_a_pull() -> None:
    """While an image is pulled the description says how far it is."""
    progress = {"done": 108_000_000, "total": 250_000_000, "unit": "bytes", "layers": {"done": 2, "total": 6}}
    text = described({**FAILED, "status": "Creating", "step": "pull", "progress": {**progress, "seconds": 12}})
    assert "Step:         pull 43 % (108 of 250 MB, 2 of 6 layers, 12 s)" in text

"""image list, pull and prune: what is asked of the server, and what is made of its answers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.cli.conftest import Rik, Terminal
from tests.cli.scripted import Lines, Problem, Scripted

MB = 10**6
DRAWN_S = 0.3  # by then what is shown on a terminal has been drawn again
DIGEST = "sha256:" + "0123456789abcdef" * 4
OTHER = "sha256:" + "fedcba9876543210" * 4
NODES = [{"id": "n1", "name": "laptop", "value": {"name": "laptop", "status": "Ready"}}]
TWO_NODES = [*NODES, {"id": "n2", "name": "attic", "value": {"name": "attic", "status": "Ready"}}]
IMAGE: dict[str, Any] = {
    "node": "laptop",
    "references": ["alpine:3.20", f"alpine@{DIGEST}"],
    "digest": DIGEST,
    "origin": "docker.io",
    "layers": 1,
    "size_bytes": 7_800_000,
    "pulled_bytes": 3_400_000,
    "seconds": 1.2,
    "pulled_at": "2026-01-31T12:00:00.000Z",
    "used_at": "2026-01-31T12:00:00.000Z",
    "instances": ["web-1", "web-2", "web-3"],
    "dropped": {},
    "labels": {},
    "exposed_ports": [],
}
UNUSED = {**IMAGE, "references": ["127.0.0.1:5000/app:v1"], "digest": OTHER, "layers": 6, "instances": []}
NAMELESS = {**UNUSED, "references": [], "size_bytes": 1}
PULLED: dict[str, Any] = {
    "type": "image",
    "node": "laptop",
    "reference": "alpine:3.20",
    "digest": DIGEST,
    "origin": "docker.io",
    "cached": False,
    "layers": 3,
    "pulled_layers": 3,
    "pulled_bytes": 3_400_000,
    "size_bytes": 7_800_000,
    "seconds": 1.2,
    "pulled_at": "2026-01-31T12:00:00.000Z",
    "exposed_ports": [],
    "dropped": {"devices": 2, "owners": 1},
    "labels": {},
}


def entry(image: dict[str, Any]) -> dict[str, Any]:
    return {"id": image["digest"], "name": next(iter(image["references"]), ""), "value": image}


def progress(done: int, total: int, layers: int, node: str = "laptop", step: str = "pull") -> dict[str, Any]:
    counted = {"done": layers, "total": 3}
    told = {"done": done, "total": total, "unit": "bytes", "layers": counted, "seconds": 0.9}
    return {"type": "progress", "node": node, "step": step, **told}


def of(script: Scripted) -> Rik:
    return Rik(script.url)


@pytest.fixture
def script() -> Iterator[Scripted]:
    with Scripted({"nodes.list": NODES, "images.list": []}).serving() as serving:
        yield serving


def test_list(script: Scripted) -> None:
    """The list shows each image by its first name, where it came from, how large it is, and who uses it."""
    script.answers = {"images.list": [entry(IMAGE), entry(UNUSED), entry(NAMELESS)]}
    table = of(script).ok("image", "list").splitlines()
    assert table[0].split() == ["IMAGE", "DIGEST", "SIZE", "LAYERS", "PULLED", "FROM", "USED", "BY"]
    assert table[1].split()[:6] == ["alpine:3.20", "(+1)", "0123456789ab", "7.8", "MB", "1"]
    assert table[1].endswith("ago  docker.io  web-1, web-2 and 1 more")
    assert table[2].split()[0] == "127.0.0.1:5000/app:v1" and table[2].endswith("docker.io  -")
    assert table[3].startswith("(no name)") and "  1 B  " in table[3]
    assert len(table) == 4, "no sum where a program may read"
    assert of(script).ok("image").splitlines()[0] == table[0]
    wide = of(script).ok("images", "-o", "wide")
    assert f"alpine:3.20, alpine@{DIGEST}" in wide and "web-3" in wide and "laptop" in wide
    assert "LAST USED" in wide


def test_list_as_json(script: Scripted) -> None:
    """-o json is what the API said, -o yaml the same as YAML; --node asks for one node."""
    script.answers = {"images.list": [entry(IMAGE)]}
    assert json.loads(of(script).ok("image", "list", "-o", "json", "--node", "laptop")) == [entry(IMAGE)]
    assert script.asked == [("GET", "images.list?node=laptop", None)]
    assert yaml.safe_load(of(script).ok("image", "list", "-o", "yaml")) == [entry(IMAGE)]


def test_list_of_several_nodes(script: Scripted) -> None:
    """With images on several nodes each line names its node."""
    script.answers = {"images.list": [entry(IMAGE), entry({**IMAGE, "node": "attic"})]}
    table = of(script).ok("images").splitlines()
    assert table[0].endswith("NODE") and table[1].endswith("laptop") and table[2].endswith("attic")


def test_empty_list(script: Scripted) -> None:
    """When there are no images that is said, with how to get one."""
    done = of(script)("image", "list")
    assert (done.returncode, done.stdout) == (0, "no images\n")
    assert "next: rik image pull alpine:3.20" in done.stderr


def test_nodes_that_cannot_be_asked(script: Scripted) -> None:
    """A list that lacks the images of some nodes is shown, and says whose."""
    script.answers = {"images.list": [entry(IMAGE)]}
    script.headers = {"Rik-Unanswered": "attic,cellar"}
    done = of(script)("image", "list")
    assert done.returncode == 0 and "alpine" in done.stdout
    assert done.stderr == "warning: not in this list, because they cannot be asked: attic, cellar\n"


def test_list_on_a_terminal(script: Scripted) -> None:
    """On a terminal the table ends with how many there are and what they take."""
    script.answers = {"images.list": [entry(IMAGE), entry(UNUSED)]}
    shown = Terminal(of(script), "image", "list", columns=120)
    try:
        assert shown.wait() == 0
        assert "2 images, at most 16 MB" in shown.seen
    finally:
        shown.close()


def test_pull(script: Scripted) -> None:
    """A pull tells its progress line by line, not frame by frame, and ends with what came and what was left out."""
    frames = [progress(done * 34_000, 3_400_000, done // 34) for done in range(101)]
    script.answers = {"nodes.list": NODES, "images.pull": Lines([*frames, PULLED])}
    lines = of(script).ok("image", "pull", "alpine:3.20").splitlines()
    assert script.asked[-1] == ("POST", "images.pull?stream=true", {"image": "alpine:3.20"})
    assert lines[0] == "pull 0 % (0.0 of 3.4 MB, 0 of 3 layers)"
    assert 10 <= len(lines) <= 20
    assert lines[-3:] == [
        "pulled alpine:3.20  sha256:0123456789ab  from docker.io: 3 of 3 layers, 3.4 MB in 1.2 s, 7.8 MB unpacked",
        "  2 devices were left out: not allowed here",
        "  1 file belongs to another user than in the image: this node has no such id to give",
    ]


def test_pull_of_what_is_there(script: Scripted) -> None:
    """What has not changed is said to be up to date."""
    script.answers = {"images.pull": Lines([{**PULLED, "cached": True}])}
    told = of(script).ok("image", "pull", "alpine:3.20", "--node", "laptop")
    assert told == "alpine:3.20 is up to date  sha256:0123456789ab\n"
    assert script.asked == [("POST", "images.pull?stream=true", {"image": "alpine:3.20", "node": "laptop"})]


def test_quiet_pull(script: Scripted) -> None:
    """-q prints the digest alone, once, however many nodes have it."""
    frames = [progress(1, 2, 0), PULLED, {**PULLED, "node": "attic"}]
    script.answers = {"nodes.list": TWO_NODES, "images.pull": Lines(frames)}
    assert of(script).ok("image", "pull", "-q", "alpine:3.20") == f"{DIGEST}\n"


def test_pull_to_several_nodes(script: Scripted) -> None:
    """Each node's progress and outcome bears its name; one that fails is told with reason and next step."""
    problem = Problem(403, "docker.io/team/app:v1: denied", "ImageUnauthorized")
    failure = {"type": "error", "node": "attic", "problem": problem}
    frames = [progress(1, 2, 0), progress(1, 2, 0, "attic"), failure, {**PULLED, "dropped": {}}]
    script.answers = {"nodes.list": TWO_NODES, "images.pull": Lines(frames)}
    done = of(script)("image", "pull", "team/app:v1")
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["laptop", "attic", "laptop"]
    assert lines[-1].startswith("laptop: pulled alpine:3.20  sha256:0123456789ab")
    assert done.stderr.startswith("error: attic: ImageUnauthorized: docker.io/team/app:v1: denied\nnext: docker login")


@pytest.mark.parametrize(
    ("problem", "expected"),
    [
        (
            Problem(404, "docker.io has no library/alpine:9", "ImageNotFound", "it has 3.19 and 3.20"),
            "error: ImageNotFound: docker.io has no library/alpine:9\nnext: it has 3.19 and 3.20\n",
        ),
        (
            Problem(503, "127.0.0.1:5000/a: connection refused", "ImagePullFailed"),
            "error: ImagePullFailed: 127.0.0.1:5000/a: connection refused\nnext: try again in a moment\n",
        ),
    ],
)
def test_pull_that_fails(script: Scripted, problem: Problem, expected: str) -> None:
    """A pull that fails ends with 1, its reason, its cause and the next step."""
    script.answers = {
        "nodes.list": NODES,
        "images.pull": Lines([{"type": "error", "node": "laptop", "problem": problem}]),
    }
    done = of(script)("image", "pull", "alpine:9")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", expected)


def test_pull_that_is_refused(script: Scripted) -> None:
    """What the server refuses at once is an error like any other's."""
    script.answers = {"images.pull": Problem(404, "there is no node `attic`", "NotFound", "rik get nodes lists them")}
    done = of(script)("image", "pull", "alpine:9", "--node", "attic")
    assert (done.returncode, done.stderr) == (1, "error: there is no node `attic`\nnext: rik get nodes lists them\n")


@pytest.mark.parametrize(
    ("answer", "code", "expected"),
    [
        (Lines([progress(1, 2, 0)], cut=True), 3, "closed the connection in the middle of its answer"),
        (Lines([progress(1, 2, 0)]), 1, "before it said what became of the pull"),
    ],
)
def test_pull_without_an_end(script: Scripted, answer: Lines, code: int, expected: str) -> None:
    """A server that goes away in the middle of a pull is said to have done so."""
    script.answers = {"nodes.list": NODES, "images.pull": answer}
    done = of(script)("image", "pull", "alpine")
    assert done.returncode == code
    assert expected in done.stderr and "next: " in done.stderr


@pytest.mark.parametrize("columns", [80, 140])
def test_pull_on_a_terminal(script: Scripted, columns: int) -> None:
    """On a terminal a bar is drawn in one row that goes away, and what came stays in one line."""
    frames = [progress((100 + step) * MB, 250 * MB, 2) for step in range(5)]
    script.answers = {"nodes.list": NODES, "images.pull": Lines([*frames, PULLED], pause_s=DRAWN_S)}
    shown = Terminal(of(script), "image", "pull", "alpine:3.20", columns=columns, env={"NO_COLOR": "1"})
    try:
        assert shown.wait() == 0
        assert re.search(r"[━╸] +pull 41 % \(103 of 250 MB, 2 of 3 layers\)  \d.* MB/s", shown.seen)
        assert "pulled alpine:3.20  sha256:0123456789ab  from docker.io: 3 of 3 layers, 3.4 MB in 1.2 s" in shown.seen
    finally:
        shown.close()


PRUNED = {"node": "laptop", "removed": [UNUSED], "freed_bytes": 5 * MB, "kept": 1, "size_bytes": 7_800_000}


def test_prune(script: Scripted) -> None:
    """A prune shows what went, what that freed, and what is left."""
    script.answers = {"images.prune": {"nodes": [PRUNED], "freed_bytes": 5 * MB}}
    lines = of(script).ok("image", "prune", "--unused", "7d").splitlines()
    assert script.asked == [("POST", "images.prune", {"unused_s": 604_800.0, "dry_run": False})]
    assert lines[0].split() == ["IMAGE", "DIGEST", "SIZE", "PULLED", "LAST", "USED"]
    assert lines[1].startswith("127.0.0.1:5000/app:v1  fedcba987654  7.8 MB")
    assert lines[2:] == ["1 image removed, 5 MB freed", "kept: 1 image, 7.8 MB"]


def test_prune_that_only_looks(script: Scripted) -> None:
    """--dry-run says what would go; several nodes are told apart; --node asks one of them."""
    script.answers = {"images.prune": {"nodes": [PRUNED, {**PRUNED, "node": "attic"}], "freed_bytes": 10 * MB}}
    lines = of(script).ok("image", "prune", "--dry-run", "--node", "x").splitlines()
    assert script.asked == [("POST", "images.prune", {"unused_s": 0.0, "dry_run": True, "node": "x"})]
    assert lines[1].endswith("laptop") and lines[2].endswith("attic")
    assert lines[3:] == ["2 images would go, 10 MB freed", "to stay: 2 images, 16 MB"]


def test_nothing_to_prune(script: Scripted) -> None:
    """When nothing is to be pruned that is said, with the reason."""
    nothing = {**PRUNED, "removed": [], "freed_bytes": 0}
    script.answers = {"images.prune": {"nodes": [nothing], "freed_bytes": 0}}
    told = of(script).ok("image", "prune")
    assert told == "nothing to prune: every image is used\nkept: 1 image, 7.8 MB\n"
    assert "every image was used in the last 7d" in of(script).ok("image", "prune", "--unused", "7d")
    script.answers = {"images.prune": {"nodes": [{**nothing, "kept": 0}], "freed_bytes": 0}}
    assert of(script).ok("image", "prune") == "nothing to prune: there are no images\n"

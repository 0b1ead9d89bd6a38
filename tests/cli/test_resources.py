"""create, get, describe, delete, explain, doctor, audit, top and version against a real server."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from tests.cli.conftest import Rik

pytestmark = pytest.mark.require("user-namespaces", reason="the server runs pods")

POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "name": "sleeper",
    "spec": {"containers": [{"name": "main", "image": "host", "command": ["sleep", "1000"]}]},
}


def test_from_document_to_deletion(rik: Rik, tmp_path: Path) -> None:
    """A workload is created from a file, an instance of it started, seen, described, and deleted with the workload."""
    path = tmp_path / "sleeper.yaml"
    path.write_text(yaml.safe_dump(POD))
    assert "valid" in rik.ok("create", "workload", "-f", str(path), "--dry-run")
    identity = rik.ok("create", "workload", "-f", str(path), "-q").strip()
    assert [entry["id"] for entry in rik.api("workloads.list")] == [identity]

    again = rik("create", "workload", "-f", str(path))
    assert again.returncode == 1
    assert re.match(r"error: .*sleeper.*\nnext: ", again.stderr)

    (name,) = rik.ok("create", "instance", "-w", "sleeper", "--name", "s1").split()
    waited = rik.ok("create", "instance", "--workload-id", identity, "-r", "2", "--wait")
    assert waited.count("Running") == 2
    rik.until(name, "Running")

    table = rik.ok("get", "instances", "--workload", "sleeper").splitlines()
    assert table[0].split() == ["NAME", "WORKLOAD", "STATUS", "NODE", "AGE", "PORTS", "WHY"]
    assert len(table) == 4
    assert all(line.split()[1:3] == ["sleeper", "Running"] for line in table[1:])
    assert len(rik.ok("get", "instance", "s1").splitlines()) == 2
    assert "sleeper" in rik.ok("get", "workloads")
    assert "sleeper" in rik.ok("get", "workload", identity, "-o", "wide")

    described = rik.ok("describe", "instance", "s1")
    for part in (
        "Status:       Running",
        "History",
        "Pending",
        "Creating",
        "Containers",
        "Limits and isolation",
        "next:",
    ):
        assert part in described
    assert "s1" in rik.ok("describe", "workload", "sleeper")

    assert rik.ok("delete", "instance", "s1", "--wait") == "s1 deleted\n"
    assert "Post-mortem" in rik.ok("describe", "instance", "s1")
    gone = rik("delete", "instances", "s1", "nobody")
    assert gone.returncode == 1
    assert gone.stderr.count("error: ") == 2

    assert rik.ok("delete", "workload", "sleeper", "--wait").count("deleted") == 3
    assert rik.api("workloads.list") == []
    assert rik.api("instances.list") == []


def test_json_is_what_the_api_says(rik: Rik) -> None:
    """-o json prints exactly the API's bytes, -o yaml the same as YAML."""
    name = rik.deploy("exact", "sleep 1000")
    for arguments, path in (
        (["get", "workloads"], "workloads.list"),
        (["get", "instances", "--status", "Running"], "instances.list?status=Running"),
        (["get", "instance", name], f"instances.get/{name}"),
        (["describe", "instance", name], f"instances.get/{name}"),
        (["get", "events", name], f"events.list?instance={name}"),
    ):
        assert rik.ok(*arguments, "-o", "json").encode() == rik.raw(path)
    (entry,) = rik.api("workloads.list")
    assert json.loads(rik.ok("get", "workload", "exact", "-o", "json")) == entry
    assert yaml.safe_load(rik.ok("get", "workload", "exact", "-o", "yaml")) == entry
    rik.remove("exact")


def test_all_errors_of_a_document(rik: Rik) -> None:
    """Every error of a document is printed with its JSON pointer, and nothing is created."""
    done = rik("create", "workload", "-f", "-", stdin='{"apiVersion": "v1", "kind": "Pot", "spec": {"container": []}}')
    assert done.returncode == 1
    assert done.stdout == ""
    assert "  /name: " in done.stderr
    assert "  /kind: `kind` must be `Pod` or `Function`, not `Pot`" in done.stderr
    assert "did you mean `containers`?" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("next: ")


def test_what_does_not_exist(rik: Rik) -> None:
    """Asking for what is not there ends with exit code 1, an error and a next step."""
    for arguments in (
        ["get", "instance", "nobody"],
        ["get", "workload", "nothing"],
        ["get", "node", "nowhere"],
        ["describe", "instance", "nobody"],
        ["describe", "workload", "nothing"],
        ["describe", "node", "nowhere"],
        ["create", "instance", "-w", "nothing"],
        ["delete", "workload", "nothing"],
        ["logs", "nobody"],
        ["logs", "-f", "nobody"],
        ["exec", "nobody", "--", "ls"],
        ["attach", "nobody"],
        ["explain", "nobody"],
        ["doctor", "--node", "nowhere"],
    ):
        done = rik(*arguments)
        assert done.returncode == 1, (arguments, done.stderr)
        assert re.match(r"error: .*(nobody|nothing|nowhere)", done.stderr), (arguments, done.stderr)
        assert "next: " in done.stderr, (arguments, done.stderr)
        assert "Traceback" not in done.stderr


def test_nodes(rik: Rik) -> None:
    """Nodes are listed with their runtimes, described with what they can do, and examined by doctor."""
    (entry,) = rik.api("nodes.list")
    name = entry["name"]
    table = rik.ok("get", "nodes").splitlines()
    assert table[1].split()[:3] == [name, "Ready", "process"]
    assert len(rik.ok("get", "nodes", "--status", "notready").splitlines()) == 1
    assert len(rik.ok("get", "nodes", "--status", "ready").splitlines()) == 2
    described = rik.ok("describe", "node", name)
    for part in ("Status:       Ready", "Runtimes", "process", "Resources", "cpu", "memory"):
        assert part in described
    examined = rik.ok("doctor")
    assert examined.startswith(name)
    assert "checks passed" in examined
    checks = json.loads(rik.ok("doctor", "--node", name, "-o", "json"))["checks"]
    asked = rik.api(f"nodes.doctor/{name}")["checks"]
    assert [check["name"] for check in checks] == [check["name"] for check in asked]


def test_explain(rik: Rik) -> None:
    """explain says why an instance has no place: what it needs, and what each node lacks."""
    document = {**POD, "name": "huge", "spec": {**POD["spec"], "nodeSelector": {"disk": "ssd"}}}  # type: ignore[dict-item]
    rik.api("workloads.create", document)
    (name,) = rik.api("instances.create", {"workload_id": "huge"})
    told = rik.ok("explain", name)
    assert told.startswith(f"{name}: ")
    assert re.search(r"NODE +FITS +WHY", told)
    assert "disk" in told
    rik.remove("huge")


def test_audit_and_top(rik: Rik) -> None:
    """audit lists what a running pod holds, with its owner, and finds no orphans; top shows what it uses."""
    name = rik.deploy("busy", "while :; do sleep 0.1; done")
    uid = rik.api(f"instances.get/{name}")["uid"]
    audited = rik.ok("audit")
    assert uid in audited
    assert audited.endswith("no orphans\n")
    table = rik.ok("top", "instances").splitlines()
    assert table[1:] and table[1].split()[:2] == [name, "main"], rik.api(f"instances.get/{name}")
    assert rik.ok("top", "nodes").splitlines()[0].startswith("NAME")
    rik.remove("busy")


def test_version(rik: Rik) -> None:
    """version tells both versions."""
    told = rik.ok("version")
    assert f"at {rik.url}" in told
    assert json.loads(rik.ok("version", "-o", "json"))["server"]["version"] in told


def test_completion_of_names(rik: Rik) -> None:
    """Instances are completed by name."""
    name = rik.deploy("completed", "sleep 1000")
    env = {"_RIK_COMPLETE": "bash_complete", "COMP_WORDS": f"rik logs {name[:2]}", "COMP_CWORD": "2"}
    rik.env.update(env)
    try:
        assert f"plain,{name}" in rik().stdout.splitlines()
    finally:
        for key in env:
            del rik.env[key]
    rik.remove("completed")


def test_events(rik: Rik) -> None:
    """The events of an instance tell its way, oldest first."""
    name = rik.deploy("eventful", "sleep 1000")
    table = rik.ok("get", "events", name)
    assert table.splitlines()[0].split() == ["AT", "TYPE", "OBJECT", "REASON", "MESSAGE"]
    assert f"instance/{name}" in table
    rik.remove("eventful")

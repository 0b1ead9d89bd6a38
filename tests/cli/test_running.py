"""run, logs, exec, attach and watch against a real server."""

from __future__ import annotations

import json
import re
import signal
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import LIMIT_S, Rik, Terminal

pytestmark = pytest.mark.require("user-namespaces", reason="the server runs pods")


def document(path: Path, name: str, script: str, **container: Any) -> str:
    """A file with a Pod of one container that runs a shell script."""
    spec = {"name": "main", "image": "host", "command": ["/bin/sh", "-c", script], **container}
    path.write_text(json.dumps({"apiVersion": "v1", "kind": "Pod", "name": name, "spec": {"containers": [spec]}}))
    return str(path)


def test_hello(rik: Rik, tmp_path: Path) -> None:
    """`rik run hello.json` runs, prints a URL that answers, streams the log, and Ctrl-C leaves it running."""
    hello = json.loads((Path(__file__).parent.parent.parent / "examples/hello.json").read_text())
    hello["spec"]["containers"][0]["ports"][0]["port"] = 0  # 18080 may be taken here
    path = tmp_path / "hello.json"
    path.write_text(json.dumps(hello))
    process = rik.start("run", str(path))
    assert process.stdout is not None
    lines: list[str] = []
    url = ""
    while not url:
        line = process.stdout.readline()
        assert line, lines
        lines.append(line)
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
        url = found.group(0) if found else ""
    statuses = [line.split()[1] for line in lines[:-1]]
    assert list(dict.fromkeys(statuses)) == ["Pending", "Creating", "Running"]
    name = lines[0].split()[0]
    assert process.stdout.readline() == "hello: listening on port 8080\n"
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=LIMIT_S) as answer:
        assert b"Hello from" in answer.read()
    assert "GET / HTTP" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    rest = process.communicate(timeout=LIMIT_S)[0]
    assert process.returncode == 130
    assert f"rik logs -f {name}" in rest and f"rik delete instance {name}" in rest
    assert rik.api(f"instances.get/{name}")["status"] == "Running"
    assert "GET / HTTP" in rik.ok("logs", name)
    rik.remove("hello")


def test_batch(rik: Rik) -> None:
    """With --rm standard output is the program's alone, and neither instance nor workload is left."""
    done = rik("run", "--rm", "examples/batch.json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"step {step} of 5" for step in range(1, 6)] + ["done"]
    assert "Running" in done.stderr
    assert rik.api("workloads.list") == [] and rik.api("instances.list") == []


@pytest.mark.parametrize(
    ("example", "reason", "code"),
    [
        ("crash", "ContainerExited", 3),
        ("missing-command", "CommandNotFound", 127),
        ("missing-image", "ImageNotFound", 1),
    ],
)
def test_failures_are_explained(rik: Rik, example: str, reason: str, code: int) -> None:
    """A run that fails says why, with exit code and last output, ends with 1, and with --rm with the program's code."""
    done = rik("run", f"examples/{example}.json")
    assert done.returncode == 1
    explained = done.stderr
    assert f"failed: {reason}: " in explained
    (next_step,) = re.findall(r"next: (rik describe instance \S+)", explained)
    described = rik.ok(*next_step.split()[1:])
    assert f"Reason:       {reason}" in described
    if example == "crash":
        assert "exit code 3" in explained
        assert "fatal: the database said no" in done.stderr
        assert "fatal: the database said no" in described
    rik.remove(example)
    assert "Post-mortem" in rik.ok(*next_step.split()[1:])
    removing = rik("run", "--rm", f"examples/{example}.json")
    assert removing.returncode == code, removing.stderr
    assert rik.api("workloads.list") == []


def test_image_and_command(rik: Rik) -> None:
    """An image and a command run as a pod of their own; other commands get workloads of their own."""
    done = rik("run", "--rm", "host", "--", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout) == (7, "out\n")
    assert "err\n" in done.stderr
    first = rik("run", "host", "--", "true")
    second = rik("run", "host", "--", "echo", "two")
    third = rik("run", "host", "--", "echo", "two")
    assert [first.returncode, second.returncode, third.returncode] == [0, 0, 0], second.stderr
    names = [entry["name"] for entry in rik.api("workloads.list")]
    assert len(names) == 2 and names[0] == "host" and names[1].startswith("host-")
    for name in names:
        rik.remove(name)


def test_workload_of_that_name(rik: Rik, tmp_path: Path) -> None:
    """The same document is used again; another one under its name is refused with what to do."""
    path = document(tmp_path / "job.json", "job", "echo done")
    for _ in range(2):
        assert "done" in rik.ok("run", path)
    assert len(rik.api("workloads.list")) == 1
    done = rik("run", document(tmp_path / "other.json", "job", "echo other"))
    assert done.returncode == 1
    assert "there is a workload `job` already" in done.stderr and "rik delete workload job" in done.stderr
    assert "done" in rik.ok("run", "--rm", path)
    assert len(rik.api("workloads.list")) == 1, "--rm leaves a workload that it has not made"
    rik.remove("job")


@pytest.mark.parametrize("from_file", [False, True])
def test_runs_at_once_of_the_same(rik: Rik, tmp_path: Path, from_file: bool) -> None:
    """A `run --rm` that ends leaves alone what another one of the same image or file has running."""
    script = "while [ ! -e /tmp/end ]; do sleep 0.05; done; echo done"
    command = ["run", "--rm", *([document(tmp_path / "same.json", "same", script)] if from_file else ["host", "--"])]
    command += [] if from_file else ["sh", "-c", script]
    first = rik.start(*command)
    running = _wait_until_running(rik, 1)
    second = rik.start(*command)
    last = _wait_until_running(rik, 2) - running
    for process, names in ((first, running), (second, last)):
        rik.ok("exec", names.pop(), "--", "touch", "/tmp/end")
        assert process.communicate(timeout=LIMIT_S)[0].endswith("\ndone\n")
        assert process.returncode == 0
    assert rik.api("instances.list") == []
    for entry in rik.api("workloads.list"):
        assert from_file, "what is made for one run goes with it"
        rik.remove(entry["name"])


def _wait_until_running(rik: Rik, count: int) -> set[str]:
    until = time.monotonic() + LIMIT_S
    while True:
        names = {entry["name"] for entry in rik.api("instances.list") if entry["value"]["status"] == "Running"}
        if len(names) == count:
            return names
        assert time.monotonic() < until
        time.sleep(0.05)


def test_interrupted_run_removes_what_it_made(rik: Rik, tmp_path: Path) -> None:
    """Ctrl-C and SIGTERM with --rm stop the program and leave nothing."""
    for number in (signal.SIGINT, signal.SIGTERM):
        process = rik.start("run", "--rm", document(tmp_path / "long.json", "long", "echo up; sleep 1000"))
        assert process.stdout is not None
        while "up" not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(number)
        process.communicate(timeout=LIMIT_S)
        assert process.returncode == 130
        assert rik.api("workloads.list") == [] and rik.api("instances.list") == []


def test_several_instances(rik: Rik, tmp_path: Path) -> None:
    """The output of replicas is prefixed by their names."""
    path = tmp_path / "three.json"
    document(path, "three", "echo here")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"replicas": 3}))
    done = rik("run", "--rm", str(path))
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert len(lines) == 3 and all(re.fullmatch(r"\[[a-z]+-[a-z]+-\d{4}\] here", line) for line in lines)


def test_logs(rik: Rik) -> None:
    """Logs are read whole, by tail, by time and with times, and followed to the end of the instance."""
    name = rik.deploy("talker", "for i in 1 2 3; do echo line $i; done; read _; echo last", stdin=True)
    deadline = time.monotonic() + LIMIT_S
    while rik.ok("logs", name).count("line") < 3:
        assert time.monotonic() < deadline
    assert rik.ok("logs", name) == "line 1\nline 2\nline 3\n"
    assert rik.ok("logs", name, "--tail", "1") == "line 3\n"
    assert rik.ok("logs", name, "--since", "1h").count("line") == 3
    assert rik.ok("logs", name, "--since", "2100-01-01T00:00:00Z") == ""
    assert re.match(r"\d{4}-\d\d-\d\dT\S+Z line 1\n", rik.ok("logs", name, "--timestamps"))
    process = rik.start("logs", "-f", name)
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(3)] == ["line 1\n", "line 2\n", "line 3\n"]
    attached = rik("attach", name, stdin="go\n")
    assert attached.returncode == 0, attached.stderr
    assert process.communicate(timeout=LIMIT_S)[0] == "last\n"
    assert process.returncode == 0
    assert rik.ok("logs", "-f", name, "--tail", "1") == "last\n"
    rik.remove("talker")


def test_logs_outlive_the_instance(rik: Rik) -> None:
    """What an instance wrote is readable after it was deleted."""
    name = rik.deploy("mortal", "echo remember me; sleep 1000")
    rik.ok("delete", "instance", "--wait", name)
    assert rik.ok("logs", name) == "remember me\n"
    rik.remove("mortal")


def test_exec(rik: Rik) -> None:
    """exec keeps the two outputs apart, passes input on, and ends with the command's exit code."""
    name = rik.deploy("shellhouse", "sleep 1000")
    done = rik("exec", name, "--", "sh", "-c", "echo out; echo err >&2; exit 5")
    assert (done.returncode, done.stdout, done.stderr) == (5, "out\n", "err\n")
    assert rik.ok("exec", "-i", name, "-c", "main", "--", "tr", "a-z", "A-Z", stdin="shout\n") == "SHOUT\n"
    assert rik.ok("exec", name, "--", "cat", stdin="not passed on") == "", "without -i the input ends at once"
    assert rik("exec", name, "--", "sh", "-c", "kill -TERM $$").returncode == 143
    big = rik.ok("exec", name, "--", "sh", "-c", "head -c 3000000 /dev/zero | tr '\\0' x")
    assert len(big) == 3_000_000
    missing = rik("exec", name, "--", "no-such-program")
    assert missing.returncode in (1, 127)
    assert "no-such-program" in missing.stderr
    nowhere = rik("exec", name, "-c", "sidecar", "--", "true")
    assert nowhere.returncode == 1 and "sidecar" in nowhere.stderr
    rik.remove("shellhouse")


def test_exec_with_a_terminal(rik: Rik, terminal: Any) -> None:
    """exec -it gives a shell on a terminal that has this one's size, follows its changes and passes Ctrl-C on."""
    name = rik.deploy("ttyhouse", "sleep 1000")
    shell: Terminal = terminal("exec", "-it", name, "--", "sh", columns=97, rows=31)
    shell.type("stty size; tty\n")
    shell.read_until("31 97")
    shell.read_until("/dev/pts/")
    shell.resize(61, 17)
    deadline = time.monotonic() + LIMIT_S
    while "17 61" not in shell.seen:
        assert time.monotonic() < deadline, shell.seen
        shell.type("stty size; echo asked-$((1 + 1))\n")
        shell.seen = shell.read_until("asked-2").replace("asked-2", "")
    shell.type("sleep 500\n")
    shell.read_until("sleep 500")
    time.sleep(0.3)
    shell.type("\x03")
    shell.type("echo after-$((1 + 1)); exit 9\n")
    shell.read_until("after-2")
    assert shell.wait() == 9
    rik.remove("ttyhouse")


def test_attach(rik: Rik, terminal: Any) -> None:
    """attach talks with the main program; Ctrl-P Ctrl-Q detaches and leaves it running."""
    name = rik.deploy("echo", 'while read line; do echo "got $line"; done', stdin=True, tty=True)
    session: Terminal = terminal("attach", name)
    session.type("hello\n")
    session.read_until("got hello")
    session.type("\x10\x11")
    assert session.wait() == 0
    assert "goes on running" in session.seen
    assert rik.api(f"instances.get/{name}")["status"] == "Running"
    rik.remove("echo")


def until_watched_by(rik: Rik, watchers: int) -> None:
    """Returns once the server has so many watchers: an empty snapshot prints nothing."""
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        with urllib.request.urlopen(f"{rik.url}/metrics") as answer:
            if f"rik_watchers {watchers}.0" in answer.read().decode():
                return
        time.sleep(0.05)
    pytest.fail(f"there never were {watchers} watchers")


def test_watch(rik: Rik) -> None:
    """watch prints a line for every status, and `get --watch -o json` the API's frames."""
    lines = rik.start("watch", "--workload", "seen")
    frames = rik.start("get", "instances", "--watch", "-o", "json", "--workload", "seen")
    assert lines.stdout is not None and frames.stdout is not None
    assert json.loads(frames.stdout.readline())["type"] == "snapshot"
    until_watched_by(rik, 2)
    name = rik.deploy("seen", "sleep 1000")
    rik.ok("delete", "instance", "--wait", name)
    told: list[str] = []
    while "removed" not in (told[-1:] or [""])[0]:
        told.append(lines.stdout.readline().rstrip("\n"))
        assert told[-1], told
    statuses = list(dict.fromkeys(line.split()[2] for line in told if name in line))
    assert statuses == ["Pending", "Creating", "Running", "Destroying", "Terminated", "removed"]
    revisions = []
    while True:
        frame = json.loads(frames.stdout.readline())
        if frame["type"] == "instance":
            revisions.append(frame["revision"])
            if frame["op"] == "delete":
                break
    assert revisions == sorted(set(revisions))
    for process in (lines, frames):
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=LIMIT_S)
        assert process.returncode == 130
    rik.remove("seen")


def test_pictures_on_a_terminal(rik: Rik, terminal: Any, tmp_path: Path) -> None:
    """On a terminal, tables, the live table of watch and the progress of run are drawn."""
    name = rik.deploy("drawn", "sleep 1000")
    table: Terminal = terminal("get", "instances")
    assert table.wait() == 0
    assert name in table.seen and "\x1b[" in table.seen and "─" in table.seen
    live: Terminal = terminal("watch")
    live.read_until("1 Running")
    live.type("\x03")
    assert live.wait() == 130
    run: Terminal = terminal("run", document(tmp_path / "d.json", "drawing", "echo drawn-output"))
    assert run.wait() == 0
    assert "drawn-output" in run.seen and "●" in run.seen
    rik.remove("drawn")
    rik.remove("drawing")


def test_no_color(rik: Rik, terminal: Any) -> None:
    """NO_COLOR leaves colours out, on a terminal too, and every other attribute with them."""
    name = rik.deploy("plain", "sleep 1000")
    for env, coloured in (({}, True), ({"NO_COLOR": "1"}, False)):
        for arguments in (("describe", "instance", name), ("get", "instances")):
            shown: Terminal = terminal(*arguments, env=env)
            assert shown.wait() == 0
            assert bool(re.search(r"\x1b\[[0-9;]*3[0-9]m", shown.seen)) is coloured
            assert ("\x1b" in shown.seen) is coloured
    rik.remove("plain")


def test_lists_that_are_followed(rik: Rik) -> None:
    """`get events --watch` and `get nodes --watch` print what is new, and nothing because time passes."""
    events = rik.start("get", "events", "--watch")
    nodes = rik.start("get", "nodes", "--watch")
    assert events.stdout is not None and nodes.stdout is not None
    assert "RUNTIMES" in nodes.stdout.readline() and "Ready" in nodes.stdout.readline()
    assert "REASON" in events.stdout.readline()
    name = rik.deploy("followed", "sleep 1000")
    line = ""
    while f"instance/{name}" not in line or "Running" not in line:
        line = events.stdout.readline()
        assert line
    assert "Ready" in nodes.stdout.readline(), "it has an instance more"
    rik.remove("followed")

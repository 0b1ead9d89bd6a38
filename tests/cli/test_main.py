"""The command line as a whole: what it loads, and how it ends when there is no server."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rik.cli.main import COMMANDS
from tests.cli.scripted import Problem, Scripted

LIMIT_S = 60.0
HEAVY = ("trio", "httpx", "rich", "yaml", "msgspec", "quart", "jsonschema")


def rik(*arguments: str, env: dict[str, str] | None = None, stdin: str = "") -> subprocess.CompletedProcess[str]:
    base = {key: value for key, value in os.environ.items() if not key.startswith("RIK")}
    return subprocess.run(
        [sys.executable, "-m", "rik", *arguments],
        env={**base, "HOME": "/nonexistent", **(env or {})},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )


@pytest.fixture
def nowhere() -> Iterator[str]:
    """The URL of a port that is bound, so that nobody else gets it, and does not listen."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{held.getsockname()[1]}"


def test_help_loads_little() -> None:
    """`rik --help` imports neither Trio nor anything else that takes long to load."""
    code = (
        "import sys\nfrom rik.cli.main import run_cli\nassert run_cli(['--help']) == 0\n"
        f"print('loaded:', sorted(set({HEAVY!r}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=LIMIT_S)
    assert done.stdout.splitlines()[-1] == "loaded: []", done.stderr
    for name in COMMANDS:
        assert f"  {name}" in done.stdout


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_has_help(name: str) -> None:
    """Every command that `rik --help` lists explains itself."""
    done = rik(name, "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"Usage: rik {name}")


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["gett", "instances"], "did you mean `get`?"),
        (["get", "instanes"], "did you mean `instances`?"),
        (["tenant", "list"], "no such command `tenant`"),
        (["image", "lst"], "did you mean `list`?"),
        (["image", "pull"], "missing argument 'IMAGE'"),
        (["image", "pull", "https://docker.io/alpine"], "leave out `https://`"),
        (["image", "pull", "team/App"], "did you mean `team/app`"),
        (["image", "pull", "host"], "there is nothing to pull"),
        (["image", "prune", "--unused", "soon"], "--unused: 'soon' is no duration"),
        (["node", "drain", "x"], "no such command `node`"),
        (["get", "instances", "--statu", "Running"], "--status"),
        (["get", "instances", "-o", "xml"], "xml"),
        (["create", "instance"], "workload"),
        (["logs", "x", "--since", "soon"], "neither a duration like 5m nor a time"),
        (["run", "no-such-file.json"], "there is no file no-such-file.json"),
        (["run", "team/App"], "did you mean `team/app`"),
        (["run", "host"], "needs a command"),
        (["exec", "x"], "no command was given"),
        (["--server", "ftp://x", "get", "nodes"], "is no server address"),
    ],
)
def test_wrong_usage(arguments: list[str], hint: str) -> None:
    """Wrong usage ends with exit code 2 and one error on standard error that says what was meant."""
    done = rik(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert hint in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["get", "instances"],
        ["get", "workloads", "-o", "json"],
        ["watch"],
        ["logs", "-f", "x"],
        ["exec", "x", "--", "ls"],
        ["attach", "x"],
        ["run", "alpine"],
        ["delete", "instance", "--wait", "x"],
        ["explain", "x"],
        ["top", "nodes"],
        ["audit", "--node", "x"],
        ["image", "list"],
        ["images"],
        ["image", "pull", "alpine"],
        ["image", "prune"],
    ],
)
def test_no_server(arguments: list[str], nowhere: str) -> None:
    """Without a server every command ends with exit code 3 and says how to start one."""
    done = rik(*arguments, env={"RIK_CLUSTER_SERVER": nowhere})
    assert done.returncode == 3
    assert done.stdout == ""
    assert f"error: nothing listens at {nowhere} (connection refused)" in done.stderr
    assert "next: start one with `python3 rik.py serve --demo`" in done.stderr


@pytest.mark.parametrize("command", ["doctor", "audit"])
def test_no_server_but_this_host(command: str, nowhere: str, tmp_path: Path) -> None:
    """doctor and audit, when there is no server to ask, look at this host and say so."""
    done = rik(command, env={"RIK_CLUSTER_SERVER": nowhere, "XDG_STATE_HOME": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    assert f"nothing listens at {nowhere} (connection refused): looking at this host" in done.stderr
    assert "this host" in done.stdout


@pytest.mark.parametrize("command", ["doctor", "audit"])
def test_nodes_that_cannot_say(command: str) -> None:
    """When no node can be asked nothing is known: that is an error, and no clean bill."""
    nodes = [{"id": f"n{number}", "name": f"node-{number}", "value": {}} for number in range(2)]
    answers = {"nodes.list": nodes}
    refused = {f"nodes.{command}/node-{number}": Problem(503, "the disk refuses") for number in range(2)}
    with Scripted({**answers, **refused}).serving() as server:
        done = rik(command, env={"RIK_CLUSTER_SERVER": server.url})
    assert done.returncode == 1 and done.stdout == ""
    assert "error: the disk refuses" in done.stderr
    good: dict[str, list[str]] = {"resources": [], "orphans": [], "checks": []}
    with Scripted({**answers, **refused, f"nodes.{command}/node-1": good}).serving() as server:
        done = rik(command, env={"RIK_CLUSTER_SERVER": server.url})
    assert done.returncode == 0
    assert "warning: node-0 cannot be asked: the disk refuses" in done.stderr


def test_server_option_stands_anywhere(nowhere: str) -> None:
    """--server is understood before and after the command."""
    for arguments in (["--server", nowhere, "get", "nodes"], ["get", "nodes", "--server", nowhere]):
        assert f"nothing listens at {nowhere}" in rik(*arguments).stderr


def test_silent_server() -> None:
    """Something that listens and speaks no HTTP is said to do so."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        with subprocess.Popen(
            [sys.executable, "-m", "rik", "get", "nodes", "--server", url], stderr=subprocess.PIPE, text=True
        ) as process:
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"220 mail.example ESMTP\r\n")
            _, stderr = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 3
    assert "does not speak HTTP" in stderr


def test_version_without_a_server(nowhere: str) -> None:
    """`rik version` tells its own version, and that no server answered."""
    done = rik("version", env={"RIK_CLUSTER_SERVER": nowhere})
    assert done.returncode == 0
    assert done.stdout.startswith("client  ")
    assert "server  none: nothing listens" in done.stdout


def test_interrupt() -> None:
    """Ctrl-C ends a waiting command quietly with exit code 130."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        with subprocess.Popen(
            [sys.executable, "-m", "rik", "get", "nodes", "--server", url],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                process.send_signal(signal.SIGINT)
                stdout, stderr = process.communicate(timeout=LIMIT_S)
    assert (process.returncode, stdout, stderr) == (130, "", "")


def test_reader_that_leaves() -> None:
    """A command whose reader has gone ends without a word."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run(
        [sys.executable, "-m", "rik", "--help"], stdout=write_end, stderr=subprocess.PIPE, timeout=LIMIT_S
    )
    os.close(write_end)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize(("shell", "word"), [("bash", "complete"), ("zsh", "compdef"), ("fish", "complete")])
def test_completion_scripts(shell: str, word: str) -> None:
    """`rik completion SHELL` prints a script for it."""
    done = rik("completion", shell)
    assert done.returncode == 0, done.stderr
    assert word in done.stdout and "_RIK_COMPLETE" in done.stdout


def test_completion(nowhere: str) -> None:
    """Commands, resources and options are completed, and names silently not when there is no server."""

    def complete(words: str, index: int) -> list[str]:
        env = {
            "_RIK_COMPLETE": "bash_complete",
            "COMP_WORDS": words,
            "COMP_CWORD": str(index),
            "RIK_CLUSTER_SERVER": nowhere,
        }
        done = rik(env=env)
        assert done.stderr == ""
        return [line.partition(",")[2] for line in done.stdout.splitlines() if line]

    assert complete("rik de", 1) == ["describe", "delete"]
    assert complete("rik get no", 2) == ["nodes"]
    assert complete("rik get instances --st", 3) == ["--status"]
    assert complete("rik logs a", 2) == []
    assert complete("rik im", 1) == ["image"]
    assert complete("rik image pu", 2) == ["pull"]
    assert complete("rik image prune --dr", 3) == ["--dry-run"]


def test_configuration_file_is_named_in_errors(tmp_path: Path) -> None:
    """A malformed configuration file is wrong usage, with its name."""
    path = tmp_path / "rik.yaml"
    path.write_text("cluster: [")
    done = rik("get", "nodes", env={"RIKCONFIG": str(path)})
    assert done.returncode == 2
    assert f"error: the configuration file {path} is neither JSON nor YAML" in done.stderr


def test_help_is_quick() -> None:
    """`rik --help` needs at most 120 ms of a processor, at its best of five."""
    times = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        rik("--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(times) < 0.120


def test_closed_streams() -> None:
    """A command whose standard streams are closed does its work all the same."""
    for closed in ("<&-", ">&-", "2>&-", "<&- >&- 2>&-"):
        done = subprocess.run(
            ["/bin/sh", "-c", f"{sys.executable} -m rik version -o json {closed}"], capture_output=True, timeout=LIMIT_S
        )
        assert done.returncode == 0
        assert b"Traceback" not in done.stderr and b"error" not in done.stderr


def test_odd_locale(nowhere: str) -> None:
    """What a terminal's encoding cannot show is replaced rather than fatal."""
    done = rik("--server", nowhere, "run", "ä.json", env={"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
    assert done.returncode == 2
    assert done.stderr.startswith("error: there is no file")

"""The README's tour: every command in it is run, and says what the README says it says."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.e2e.server import serving

ROOT = Path(__file__).parent.parent
LIMIT_S = 60.0
INTERRUPT = "^C"

# What differs from run to run, and what stands for it when the two texts are compared.
VARYING = [
    (re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z"), "TIME"),
    (re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d+)?"), "TIME"),
    (re.compile(r"\d\d/\w{3}/\d{4} \d\d:\d\d:\d\d"), "TIME"),
    (re.compile(r"\b\d+(\.\d+)? ?(ms|s|m|h|d)\b( ago)?"), "DURATION"),
    (re.compile(r"\bjust now\b|\bnow\b"), "DURATION"),
    (re.compile(r"\b[0-9a-hjkmnp-tv-z]{20}\b"), "UID"),
    (re.compile(r"\b[a-z]+-[a-z]+-\d{4}\b"), "NAME"),
    (re.compile(r"\b\d+(\.\d+)? ?([KMG]i?B|%)"), "SIZE"),
    (re.compile(r"[ \t]+"), " "),
]


class Step(NamedTuple):
    """A command of the tour and the lines that follow it."""

    command: str
    expected: list[str]


def tour() -> list[Step]:
    """The commands of the README's `console` blocks after the server was started."""
    steps: list[Step] = []
    for block in re.findall(r"```console\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL):
        for line in block.splitlines():
            if line.startswith("$ "):
                steps.append(Step(line[2:], []))
            elif steps:
                steps[-1].expected.append(line)
    return [step for step in steps if not re.match(r"(python3 rik.py|alias|git) ", step.command)]


def normal(line: str) -> str:
    """The line with everything that varies replaced."""
    for pattern, word in VARYING:
        line = pattern.sub(word, line)
    return line.strip()


def run(command: str, expected: list[str], env: dict[str, str]) -> list[str]:
    """The lines that a command prints. A line `^C` among the expected ones: it is interrupted once it has printed as
    many lines as stand before.
    """
    before = expected.index(INTERRUPT) if INTERRUPT in expected else None
    process = subprocess.Popen(
        ["/bin/sh", "-c", command if before is None else f"exec {command}"],
        cwd=ROOT,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    watchdog = threading.Timer(LIMIT_S, os.killpg, (process.pid, signal.SIGKILL))
    watchdog.start()
    try:
        lines: list[str] = []
        if before is not None:
            lines += [process.stdout.readline().rstrip("\n") for _ in range(before)]
            os.killpg(process.pid, signal.SIGINT)
            lines.append(INTERRUPT)
        lines += process.stdout.read().splitlines()
        process.wait()
    finally:
        watchdog.cancel()
        process.stdout.close()
    return lines


@pytest.mark.require("user-namespaces", reason="the tour runs pods")
@pytest.mark.require("curl", reason="the tour asks a pod with it")
async def test_the_tour(tmp_path: Path) -> None:
    """Every command of the tour prints what the README shows."""
    steps = tour()
    assert len(steps) >= 8, "the README has a tour"
    binary = tmp_path / "rik"
    binary.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m rik "$@"\n')
    binary.chmod(0o755)
    async with serving(None, "--node", "laptop") as server:
        env = {
            **{key: value for key, value in os.environ.items() if not key.startswith("RIK")},
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "RIK_CLUSTER_SERVER": server.url,
            "RIK_PROGRAM": "python3 rik.py",
            "COLUMNS": "100",
        }
        for step in steps:
            printed = run(step.command, step.expected, env)
            shown = [normal(line) for line in step.expected if line.strip()]
            got = [normal(line) for line in printed if line.strip()]
            assert matches(shown, got), "\n".join(
                [f"$ {step.command}", "--- the README shows", *step.expected, "--- it printed", *printed]
            )


def matches(shown: list[str], got: list[str]) -> bool:
    """Line by line; a line `…` stands for any number of lines."""
    if not shown:
        return not got
    if shown[0] == "…":
        return any(matches(shown[1:], got[skip:]) for skip in range(len(got) + 1))
    return bool(got) and shown[0] == got[0] and matches(shown[1:], got[1:])

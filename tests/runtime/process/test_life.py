"""The life of a pod: started for certain, ended by the pod rule, stopped, explained."""

from __future__ import annotations

import signal
import time
from typing import Any

import pytest
import trio

from rik.errors import InstanceFailure
from rik.messages import Exec
from rik.runtime.base import Observed

from .conftest import THOUSAND_CHILDREN, Bench, Frames, container, make_pod, script

pytestmark = pytest.mark.require("user-namespaces", reason="pods are made of them")


async def _fails_to_start(bench: Bench, *containers: dict[str, Any]) -> InstanceFailure:
    pod = make_pod(*containers)
    await bench.runtime.prepare(pod, lambda progress: None)
    with pytest.raises(InstanceFailure) as caught:
        await bench.runtime.start(pod)
    assert (await bench.runtime.observe(pod.uid)).phase == "ended"
    assert not [item for item in await bench.runtime.inventory() if item.kind == "process"]
    return caught.value


async def test_running_means_executed(bench: Bench) -> None:
    """`start` returns when every command has been executed, and says running."""
    pod, observed = await bench.start(container("a", "sleep", "60"), container("b", "sleep", "60"))
    assert observed.phase == "running"
    assert [state.state for state in observed.containers] == ["running", "running"]
    assert all(state.started_at for state in observed.containers)
    assert observed.enforced["isolation"] is True
    assert await bench.runtime.observe(pod.uid) == observed


async def test_all_zero_is_success(bench: Bench) -> None:
    """When every container has exited 0 the pod has ended without a failure."""
    _, ended = await bench.run(container("a", "true"), script("b", "sleep 0.1"))
    assert (ended.phase, ended.failure) == ("ended", None)
    assert [(state.exit_code, state.signal) for state in ended.containers] == [(0, None), (0, None)]


async def test_first_failure_ends_the_siblings(bench: Bench) -> None:
    """The first container that exits non-zero ends the pod, and is the one that is named."""
    seen: list[Observed] = []
    pod, _ = await bench.start(script("bad", "sleep 0.1; exit 3"), container("good", "sleep", "60"))
    ended = await bench.runtime.wait(pod.uid, seen.append)
    assert ended.failure is not None
    assert (ended.failure.reason, ended.failure.container) == ("ContainerExited", "bad")
    assert [(state.exit_code, state.signal) for state in ended.containers] == [(3, None), (143, "SIGTERM")]
    assert seen[0].phase == "failing"


async def test_signal_is_told_from_exit_code(bench: Bench) -> None:
    """A command killed by a signal is not mistaken for one that exits with 128 and more."""
    _, killed = await bench.run(script("a", "kill -SEGV $$"))
    _, exited = await bench.run(script("a", "exit 139"))
    assert killed.failure is not None
    assert exited.failure is not None
    assert (killed.failure.reason, killed.containers[0].signal, killed.containers[0].exit_code) == (
        "Killed",
        "SIGSEGV",
        139,
    )
    assert (exited.failure.reason, exited.containers[0].signal) == ("ContainerExited", None)


async def test_missing_command_is_named_with_its_path(bench: Bench) -> None:
    """A command that does not exist fails the start with its name and the PATH that was searched."""
    failure = await _fails_to_start(bench, container("web", "nginxx"), container("other", "sleep", "60"))
    assert failure.reason == "CommandNotFound"
    assert failure.container == "web"
    assert failure.message.startswith("container `web`: command `nginxx` not found in PATH /usr/local/sbin:")


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["/etc/hosts"], "is not executable"),
        (["/etc"], "is a directory"),
        (["/no/such/thing"], "not found: No such file"),
        (["/etc/passwd/x"], "not found: Not a directory"),
        ([""], "no command"),
    ],
)
async def test_command_that_cannot_be_executed(bench: Bench, command: list[str], words: str) -> None:
    """Whatever keeps a command from being executed is said in words."""
    failure = await _fails_to_start(bench, container("web", *command))
    assert failure.reason == "CommandNotFound"
    assert words in failure.message


async def test_script_without_interpreter_is_told_apart(bench: Bench) -> None:
    """A script that is there, but whose interpreter is not, is not called missing."""
    pod, _ = await bench.start(script("web", "printf '#!/no/such/thing\\n' > /tmp/x; chmod +x /tmp/x; sleep 60"))
    with trio.fail_after(10):
        while True:
            failure = await _exec_failure(bench, pod.uid)
            if "exists" in failure:
                break
            await trio.sleep(0.02)
    assert "its interpreter /no/such/thing does not exist" in failure


async def _exec_failure(bench: Bench, uid: str) -> str:
    with pytest.raises(InstanceFailure) as caught:
        await bench.runtime.exec(Exec(uid, ("/tmp/x",)), Frames())
    return caught.value.message


async def test_working_directory_must_exist(bench: Bench) -> None:
    """A working directory that is not there is not made, but named."""
    failure = await _fails_to_start(bench, container("web", "true", workingDir="/no/such"))
    assert failure.reason == "CreateFailed"
    assert "working directory /no/such cannot be entered" in failure.message


async def test_unknown_user_is_named(bench: Bench) -> None:
    """A user that the container's password file does not have is named."""
    failure = await _fails_to_start(bench, container("web", "true", user="nosuchuser"))
    assert "user `nosuchuser` is not in its /etc/passwd" in failure.message


async def test_environment_and_user(bench: Bench) -> None:
    """A command gets a plain environment, the document's on top, and nothing of RIK's."""
    pod, _ = await bench.run(
        container("a", "env", env=[{"name": "GREETING", "value": "hello"}, {"name": "HOME", "value": "/tmp"}])
    )
    names = dict(line.split("=", 1) for line in (await bench.text(pod)).splitlines())
    assert set(names) == {"PATH", "HOME", "HOSTNAME", "GREETING"}
    assert (names["GREETING"], names["HOME"], names["HOSTNAME"]) == ("hello", "/tmp", "web-1")


async def test_other_user(bench: Bench, require: Any) -> None:
    """`user` runs the command as that user, without capabilities, able to open its own output by name."""
    require("subordinate-ids", reason="another user needs another id")
    pod, ended = await bench.run(
        script(
            "a",
            "id -u; grep CapEff /proc/self/status; cat /etc/hosts /etc/resolv.conf /etc/hostname >/dev/null; "
            "touch /tmp/x; echo x > /dev/stdout",
            user="1",
        )
    )
    assert ended.failure is None, await bench.text(pod, "stderr")
    assert (await bench.text(pod)).split() == ["1", "CapEff:", "0000000000000000", "x"]


async def test_stop_is_prompt(bench: Bench) -> None:
    """A container that heeds SIGTERM is gone within moments, and that is no failure."""
    pod, _ = await bench.start(container("a", "sleep", "60"))
    begun = time.monotonic()
    await bench.runtime.stop(pod.uid, 10)
    assert time.monotonic() - begun < 2
    ended = await bench.runtime.observe(pod.uid)
    assert (ended.phase, ended.failure) == ("ended", None)
    assert ended.containers[0].signal == "SIGTERM"


async def test_stop_kills_after_the_grace(bench: Bench) -> None:
    """A container that ignores SIGTERM is killed after the grace, not before."""
    pod, _ = await bench.start(script("a", "trap '' TERM; echo ready; while :; do sleep 0.1; done"))
    await bench.until_said(pod, "ready")
    begun = time.monotonic()
    await bench.runtime.stop(pod.uid, 0.5)
    assert 0.5 <= time.monotonic() - begun < 5
    assert (await bench.runtime.observe(pod.uid)).containers[0].signal == "SIGKILL"


async def test_signals_reach_the_command(bench: Bench) -> None:
    """The stop signal is passed on to the command, which may end in its own way."""
    pod, _ = await bench.start(script("a", "trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.05; done"))
    await bench.until_said(pod, "ready")
    await bench.runtime.stop(pod.uid, 10)
    assert "bye" in await bench.text(pod)
    assert (await bench.runtime.observe(pod.uid)).containers[0].exit_code == 0


async def test_a_thousand_children_are_gone_with_it(bench: Bench) -> None:
    """A container that forks a thousand children is killed whole."""
    pod, _ = await bench.start(container("bomb", "python3", "-c", THOUSAND_CHILDREN))
    await bench.until_said(pod, "up")
    assert len([item for item in await bench.runtime.inventory() if item.kind == "process"]) > 1000
    await bench.runtime.stop(pod.uid, 0)
    assert not [item for item in await bench.runtime.inventory() if item.kind == "process"]


async def test_orphans_are_reaped(bench: Bench) -> None:
    """Orphans of a container do not stay as zombies."""
    pod, _ = await bench.start(
        script("a", "for i in 1 2 3; do (sleep 0.01 &) ; done; sleep 0.3; ps -eo stat; sleep 60")
    )
    await bench.until_said(pod, "STAT")
    await trio.sleep(0.2)
    assert "Z" not in await bench.text(pod)


async def test_verbs_may_be_repeated(bench: Bench) -> None:
    """Every verb is idempotent: twice is as good as once, and nothing is started twice."""
    pod = make_pod(script("a", "echo started; sleep 60"))
    runtime = bench.runtime
    await runtime.remove(pod.uid)
    await runtime.stop(pod.uid, 1)
    assert (await runtime.observe(pod.uid)).phase == "absent"
    await runtime.prepare(pod, lambda progress: None)
    await runtime.prepare(pod, lambda progress: None)
    assert (await runtime.observe(pod.uid)).phase == "absent"
    first = await runtime.start(pod)
    assert await runtime.start(pod) == first
    await runtime.prepare(pod, lambda progress: None)
    await bench.until_said(pod, "started")
    assert (await bench.text(pod)).count("started") == 1
    await runtime.stop(pod.uid, 5)
    await runtime.stop(pod.uid, 5)
    assert (await runtime.start(pod)).phase == "ended"
    await runtime.remove(pod.uid)
    await runtime.remove(pod.uid)
    assert (await runtime.observe(pod.uid)).phase == "absent"
    assert await runtime.inventory() == []
    assert (await bench.text(pod)).count("started") == 1, "the logs outlive the pod"


async def test_remove_ends_what_runs(bench: Bench) -> None:
    """`remove` is legal without `stop`, and leaves nothing."""
    pod, _ = await bench.start(script("a", f"trap '' TERM {signal.SIGHUP.value}; sleep 60"))
    await bench.runtime.remove(pod.uid)
    assert await bench.runtime.inventory() == []


async def test_probe_runs_a_pod(bench: Bench) -> None:
    """The probe has really run a pod, says how, and leaves nothing."""
    capability = await bench.runtime.probe()
    assert capability.ok, capability.reason
    assert capability.kinds == ("Pod",)
    assert "user namespaces" in capability.reason
    assert await bench.runtime.inventory() == []
    assert list(bench.runtime.layout.logs.iterdir()) == []

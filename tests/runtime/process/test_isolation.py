"""What a container on the image `host` sees of the host, and what it does not."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import pytest

from rik.runtime.process.layout import run_directory

from .conftest import Bench, container, script

pytestmark = pytest.mark.require("user-namespaces", reason="pods are made of them")


async def test_the_host_is_read_only(bench: Bench) -> None:
    """Nothing of the host's tree can be written, and tmp, run and home are private and empty."""
    text = """
    for place in / /etc /usr /usr/bin /var /opt; do touch $place/x 2>/dev/null && echo wrote $place; done
    for place in /tmp /var/tmp /run /home /dev/shm $HOME; do touch $place/x || echo cannot write $place; done
    ls -A /home /tmp
    """
    marker = Path("/tmp") / f"rik-test-{os.getpid()}"
    marker.write_text("x")
    try:
        pod, _ = await bench.run(script("a", text))
    finally:
        marker.unlink()
    assert (await bench.text(pod)).split() == ["/home:", "x", "/tmp:", "x"]
    assert await bench.text(pod, "stderr") == ""


async def test_secrets_are_hidden(bench: Bench) -> None:
    """Neither the password hashes, nor root's home, nor RIK's data directory and sockets, can be read."""
    data, run = bench.data_dir, run_directory(bench.host_id)
    text = f"""
    cat /etc/shadow /etc/gshadow 2>/dev/null | head -c 100
    ls -A /root /etc/ssl/private 2>/dev/null | grep -v :
    ls -A {data} {data}/pods {run} 2>/dev/null | grep -v :
    cat /etc/ssh/ssh_host_*_key 2>/dev/null
    echo done
    """
    pod, _ = await bench.run(script("a", text))
    assert (await bench.text(pod)).split() == ["done"]


async def test_sockets_of_other_pods_are_out_of_reach(bench: Bench, data_dir: Path) -> None:
    """A container finds no control socket, neither its own nor another pod's, nor a socket of the host in /tmp."""
    other = Path("/tmp") / f"rik-test-{os.getpid()}.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(other))
        try:
            pod, _ = await bench.run(script("a", "find / -xdev -type s 2>/dev/null; find /run /tmp -type s; echo done"))
        finally:
            other.unlink()
    found = (await bench.text(pod)).split()
    assert not [path for path in found if bench.host_id in path or path == str(other)]


async def test_it_is_alone(bench: Bench) -> None:
    """A container sees its own processes alone, its own host name, and only a loopback interface."""
    text = "ps -eo comm= | sort -u | tr '\\n' ' '; hostname; cat /etc/hostname; ls /sys/class/net; echo $$"
    pod, _ = await bench.run(script("a", text))
    lines = (await bench.text(pod)).split()
    assert set(lines) <= {"ps", "rik:a", "sh", "sort", "tr", "web-1", "lo", "2"}
    assert lines.count("web-1") == 2


async def test_it_has_few_privileges(bench: Bench) -> None:
    """A container's root has the capabilities container engines give, no way to more, and may not mount."""
    text = "grep -E 'CapEff|CapBnd|NoNewPrivs' /proc/self/status; mount -t tmpfs x /mnt 2>/dev/null && echo mounted"
    pod, _ = await bench.run(script("a", text))
    values = dict(line.split(":\t") for line in (await bench.text(pod)).splitlines())
    assert int(values["CapEff"], 16) & ~0xA80425FB == 0
    assert values["CapEff"] == values["CapBnd"]
    assert values["NoNewPrivs"] == "1"


async def test_the_hosts_kernel_cannot_be_configured(bench: Bench) -> None:
    """Settings of the host's kernel cannot be written."""
    text = "for f in kernel/core_pattern kernel/panic; do echo 1 > /proc/sys/$f && echo wrote $f; done; true"
    pod, _ = await bench.run(script("a", text))
    assert await bench.text(pod) == ""


async def test_its_first_process_tells_nothing(bench: Bench) -> None:
    """The environment and memory of RIK's process in a container cannot be read from inside."""
    text = """
    cat /proc/1/environ 2>/dev/null | wc -c
    ls /proc/1/fd 2>/dev/null | wc -l
    head -c1 /proc/1/mem 2>/dev/null || echo no
    """
    pod, _ = await bench.run(script("a", text))
    assert (await bench.text(pod)).split() == ["0", "0", "no"]


async def test_no_descriptors_are_inherited(bench: Bench) -> None:
    """A command gets standard input, output and error, and no other descriptor."""
    pod, _ = await bench.run(container("a", "ls", "/proc/self/fd"))
    assert (await bench.text(pod)).split() == ["0", "1", "2", "3"], "3 is the directory that ls reads"


async def test_devices(bench: Bench) -> None:
    """The usual devices are there and work, and no other."""
    text = "head -c 4 /dev/zero | wc -c; head -c 4 /dev/urandom | wc -c; echo x > /dev/null; ls /dev | tr '\\n' ' '"
    pod, _ = await bench.run(script("a", text))
    words = (await bench.text(pod)).split()
    assert words[:2] == ["4", "4"]
    assert set(words[2:]) == {
        *("fd", "full", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout", "tty", "urandom", "zero")
    }


@pytest.mark.require("root", reason="an ordinary user is never mapped to root")
async def test_root_is_not_the_hosts_root(bench: Bench) -> None:
    """RIK's root is never a pod's root: its processes have ids of their own on the host."""
    pod, _ = await bench.start(container("a", "sleep", "60"))
    pids = [int(item.name) for item in await bench.runtime.inventory() if item.kind == "process"]
    assert pids
    for pid in pids:
        assert os.stat(f"/proc/{pid}").st_uid in (0, 1_000_000)  # not dumpable ones are shown as root's
        status = Path(f"/proc/{pid}/status").read_text()
        assert "Uid:\t1000000\t1000000\t1000000\t1000000" in status, pod


@pytest.mark.require("root", reason="only root makes sockets outside of temporary directories and homes")
async def test_sockets_elsewhere_on_the_host(bench: Bench) -> None:
    """A socket of the host that everybody may connect to is out of a pod's reach, wherever it is."""
    directory = Path("/var/lib") / f"rik-test-{os.getpid()}"
    directory.mkdir()
    path = directory / "open.sock"
    program = f"import socket; socket.socket(socket.AF_UNIX).connect({str(path)!r})"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        path.chmod(0o777)
        listener.listen()
        try:
            pod, observed = await bench.run(container("a", "python3", "-c", program))
        finally:
            path.unlink()
            directory.rmdir()
    assert observed.phase == "ended"
    assert "Error" in await bench.text(pod, "stderr")


async def test_private_files_are_bounded(bench: Bench) -> None:
    """What a container on the host's image may write lies in memory, all of it in one place of a bounded size."""
    pod, _ = await bench.run(
        container(
            "a",
            "python3",
            "-c",
            "import os; print(*{(os.statvfs(p).f_blocks * os.statvfs(p).f_bsize, "
            "os.stat(p).st_dev) for p in ('/tmp', '/var/tmp', '/run', '/home', '/root')})",
        )
    )
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    text = await bench.text(pod)
    assert text.count("(") == 1
    assert int(text.strip("()").split(",")[0]) <= memory * 0.3


async def test_no_keyrings(bench: Bench) -> None:
    """The kernel's keys of whoever runs RIK are out of reach: the calls do not exist in a pod."""
    number = {"x86_64": 250, "aarch64": 219}.get(os.uname().machine)
    if number is None:
        pytest.skip(f"the number of keyctl on {os.uname().machine} is not known here")
    program = f"import ctypes; print(ctypes.CDLL(None, use_errno=True).syscall({number}, 0, -3, 0), ctypes.get_errno())"
    pod, _ = await bench.run(container("a", "python3", "-c", program))
    assert await bench.text(pod) == f"-1 {errno.ENOSYS}"

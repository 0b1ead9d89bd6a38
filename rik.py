#!/usr/bin/env python3
"""Run RIK from a checkout with nothing installed but Python: `python3 rik.py serve --demo`.

On first use this makes `.venv` beside itself and installs what `pyproject.toml` names; after that it only checks a
stamp and becomes `.venv/bin/python -m rik …`. `python3 rik.py test [pytest arguments]` runs the test suite; as root on
Debian it first installs the system packages that the tests of the real runtimes use.

Standard library only, no logic of RIK, and readable by older Pythons too, so that they can be told what is missing.

What it keeps in `.venv`: `rik-stamp` and `rik-stamp-test` (what was installed: this folder's path and the text of
`pyproject.toml`) and, while it installs, `rik-unfinished`: a run that was killed half-way leaves that file behind, and
the next one starts from scratch.
"""

from __future__ import annotations

import os
import sys

# Imports of the slow path stand inside its functions: an ordinary start reads a stamp and hands over.
TYPE_CHECKING = False
if TYPE_CHECKING:
    import subprocess
    from typing import NoReturn

HERE = os.path.dirname(os.path.abspath(__file__))
VENV = os.path.join(HERE, ".venv")
VENV_PYTHON = os.path.join(VENV, "bin", "python")
UNFINISHED = os.path.join(VENV, "rik-unfinished")
LOCK = os.path.join(HERE, ".venv.lock")
OLDEST_PYTHON = (3, 11)

RUN = ""
TEST = "test"

# What the tests of the real runtimes call, the Debian package it comes in, and the tests that go without it.
SYSTEM_TOOLS = (
    ("umoci", "umoci", "images made with umoci"),
    ("skopeo", "skopeo", "images copied with skopeo"),
    ("docker-registry", "docker-registry", "images pulled from a registry"),
    ("debootstrap", "debootstrap", "an image of Debian, with its web server"),
    ("busybox", "busybox-static", "pods with a root file system of their own"),
    ("newuidmap", "uidmap", "pods with a range of user ids under an ordinary user"),
    ("ip", "iproute2", "networks looked at from outside"),
    ("ps", "procps", "processes looked at from outside"),
    ("curl", "curl", "the README's tour"),
)

# `docker-registry` brings a service on port 5000, which is RIK's own: only the program is wanted, now and after a boot.
POLICY = "/usr/sbin/policy-rc.d"
UNWANTED_SERVICE = ("docker-registry", "/etc/systemd/system/docker-registry.service")

SIGNS_OF_NO_INDEX = (
    "NewConnectionError",
    "Temporary failure in name resolution",
    "ConnectTimeoutError",
    "ReadTimeoutError",
    "ProxyError",
    "SSLError",
    "Max retries exceeded",
    "(from versions: none)",
)


def main() -> None:
    if sys.argv[1:2] == ["test"]:
        ensure_installed(TEST)
        install_system_tools()
        report_missing_abilities()
        os.chdir(HERE)
        become("pytest", sys.argv[2:])
    ensure_installed(RUN)
    become("rik", sys.argv[1:])


def become(module: str, arguments: list[str]) -> NoReturn:
    """Replaces this process. `-P`: a file in the user's working directory must not shadow a library."""
    sys.stdout.flush()
    sys.stderr.flush()
    if module == "rik":
        os.environ["RIK_PROGRAM"] = "python3 rik.py"  # what hints tell the user to type
    os.execv(VENV_PYTHON, [VENV_PYTHON, "-P", "-m", module, *arguments])


def say(text: str) -> None:
    sys.stderr.write(f"rik.py: {text}\n")
    sys.stderr.flush()


def fail(text: str, next_step: str) -> NoReturn:
    sys.stderr.write(f"error: {text}\n{next_step}\n")
    sys.exit(1)


# --- the virtual environment


def stamp_path(extra: str) -> str:
    return os.path.join(VENV, f"rik-stamp-{extra}" if extra else "rik-stamp")


def stamp_paths() -> list[str]:
    return [stamp_path(RUN), stamp_path(TEST)]


def expected_stamp() -> bytes:
    with open(os.path.join(HERE, "pyproject.toml"), "rb") as file:
        return HERE.encode() + b"\n" + file.read()


def read_or_none(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return None


def is_installed(extra: str) -> bool:
    """The one check of an ordinary start. What the tests need includes what a run needs."""
    stamp = expected_stamp()
    sufficient = {stamp_path(extra), stamp_path(TEST)}
    if all(read_or_none(path) != stamp for path in sufficient) or os.path.exists(UNFINISHED):
        return False
    return os.access(VENV_PYTHON, os.X_OK)


def ensure_installed(extra: str) -> None:
    if is_installed(extra):
        return
    if sys.version_info < OLDEST_PYTHON:
        version = ".".join(str(part) for part in sys.version_info[:3])
        fail(
            f"RIK needs Python 3.11 or newer, and {sys.executable} is Python {version}",
            "Start it with a newer one, for example: python3.11 rik.py …",
        )
    lock = take_lock()
    try:
        if not is_installed(extra):  # the run that was waited for may have done it
            make(extra)
    except OSError as error:
        fail(f"cannot make {VENV}: {error}", "Mend that (space, permissions) and run the same command again.")
    finally:
        os.close(lock)


def take_lock() -> int:
    """Held while installing, so that two first runs take turns; the kernel gives it up when a run is killed."""
    import fcntl

    try:
        lock = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        fail(
            f"RIK installs its libraries into {VENV}, and cannot write there: {error.strerror}",
            f"Use a checkout of your own: cp -r {HERE} ~/rik && cd ~/rik && python3 rik.py …",
        )
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say("another run is installing; waiting for it")
        fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def make(extra: str) -> None:
    import shutil
    import time

    started = time.monotonic()
    # A folder that was moved has its old path in its scripts; a Python that was removed leaves a dangling link.
    old_stamps = [stamp for stamp in map(read_or_none, stamp_paths()) if stamp is not None]
    is_moved = any(not stamp.startswith(HERE.encode() + b"\n") for stamp in old_stamps)
    is_broken = os.path.exists(UNFINISHED) or not os.access(VENV_PYTHON, os.X_OK)
    if os.path.lexists(VENV) and (is_moved or is_broken):
        say(f"{VENV} is unfinished, broken or was moved here: making it anew")
        shutil.rmtree(VENV)
    is_first = not os.path.exists(VENV)
    if is_first:
        say(f"first use: installing RIK's libraries into {VENV} (a minute or two, once)")
        os.mkdir(VENV)
    else:
        say(f"bringing {VENV} up to date with pyproject.toml")
    with open(UNFINISHED, "w") as file:
        file.write(f"pid {os.getpid()}\n")
    for path in stamp_paths():
        if os.path.exists(path):
            os.unlink(path)
    try:
        if is_first:
            make_venv()
        install(extra)
    except SystemExit:
        if is_first:
            shutil.rmtree(VENV, ignore_errors=True)  # nothing of use is in it
        else:
            os.unlink(UNFINISHED)  # pip gave up by itself and left what worked before
        raise
    with open(stamp_path(extra), "wb") as stamp_file:
        stamp_file.write(expected_stamp())
    os.unlink(UNFINISHED)
    say(f"done in {time.monotonic() - started:.0f} s")


def make_venv() -> None:
    import importlib.util

    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        if not can_install_packages():
            fail(
                f"{sys.executable} comes without the `venv` module, which RIK's libraries are installed with",
                "On Debian and Ubuntu: sudo apt-get install python3-venv",
            )
        apt_install(["python3-venv"])
    result = run_captured([sys.executable, "-m", "venv", VENV])
    if result.returncode != 0:
        fail(
            f"`{sys.executable} -m venv` failed:\n{last_lines(result.stdout)}",
            "On Debian and Ubuntu: sudo apt-get install python3-venv",
        )


def install(extra: str) -> None:
    target = f"{HERE}[{extra}]" if extra else HERE
    pip = [VENV_PYTHON, "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--retries", "2"]
    result = run_pip([*pip, "--editable", target])
    if result.returncode == 0:
        return
    tail = last_lines(result.stdout)
    if any(sign in result.stdout for sign in SIGNS_OF_NO_INDEX):
        fail(
            f"the package index cannot be reached, so RIK's libraries cannot be installed:\n{tail}",
            "Check the network, or name a proxy (HTTPS_PROXY) or a mirror (PIP_INDEX_URL), and run this again.",
        )
    fail(f"pip could not install RIK's libraries:\n{tail}", "Mend that and run the same command again.")


def run_pip(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Runs pip with its steps shown: rewritten in place on a terminal, else only the one that takes long."""
    import subprocess

    # These, in a user's own set-up, would lead past the virtual environment.
    environment = {name: value for name, value in os.environ.items() if name not in ("PIP_TARGET", "PIP_PREFIX")}
    environment["PIP_USER"] = "0"
    in_place = sys.stderr.isatty()
    lines = []
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            step = line.strip()
            if in_place and step.startswith(("Collecting ", "Installing ")):
                sys.stderr.write(f"\r\033[Krik.py:   {step[:70]}")
                sys.stderr.flush()
            elif step.startswith("Installing collected"):
                say("  downloaded, installing")
    if in_place:
        sys.stderr.write("\r\033[K")
    return subprocess.CompletedProcess(command, process.returncode, "".join(lines))


def run_captured(command: list[str], environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Standard output and standard error together; a program that does not exist is exit code 127."""
    import subprocess

    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            text=True,
            errors="replace",
            check=False,
        )
    except FileNotFoundError as error:
        return subprocess.CompletedProcess(command, 127, str(error))


def last_lines(text: str, count: int = 15) -> str:
    return "\n".join(f"  {line}" for line in text.strip().splitlines()[-count:])


# --- what the tests of the real runtimes need from the system


def can_install_packages() -> bool:
    import shutil

    return os.geteuid() == 0 and os.path.exists("/etc/debian_version") and shutil.which("apt-get") is not None


def apt_install(packages: list[str]) -> bool:
    """Whether all were installed; if not, apt-get's own words were shown. Package lists are fetched if need be."""
    say("installing Debian packages: " + " ".join(packages))
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install_command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages]
    if run_captured(install_command, environment).returncode == 0:
        return True
    run_captured(["apt-get", "update", "-qq"], environment)
    result = run_captured(install_command, environment)
    if result.returncode != 0:
        say(f"apt-get could not install them:\n{last_lines(result.stdout)}")
    return result.returncode == 0


def find_tool(name: str) -> str | None:
    """The path of a program; Debian keeps some outside an ordinary user's PATH."""
    import shutil

    return shutil.which(name, path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin")


def missing_tools() -> list[tuple[str, str, str]]:
    return [entry for entry in SYSTEM_TOOLS if not is_usable(entry[0])]


def is_usable(tool: str) -> bool:
    path = find_tool(tool)
    if path is None:
        return False
    if tool != "busybox":
        return True
    with open(path, "rb") as file:  # it is copied alone into an image, so it must not ask for a dynamic linker
        return b"/ld-" not in file.read(4096)


def install_system_tools() -> None:
    missing = missing_tools()
    if not missing:
        return
    if can_install_packages():
        install_without_services([package for _, package, _ in missing])
        missing = missing_tools()
        why = "apt-get could not install it"
    elif os.geteuid() == 0:
        why = "this is no Debian, so it is not installed for you"
    else:
        why = "only root can install it"
    for tool, package, suite in missing:
        say(f"cannot run the tests of {suite}: `{tool}` is missing (Debian package {package}); {why}")


def install_without_services(packages: list[str]) -> None:
    """Debian starts the services of what it installs, unless a policy forbids it, and at every boot, unless masked."""
    package, unit = UNWANTED_SERVICE
    forbids = not os.path.lexists(POLICY)
    masks = package in packages and os.path.isdir(os.path.dirname(unit)) and not os.path.lexists(unit)
    if forbids:
        with open(os.open(POLICY, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o755), "w") as file:
            file.write("#!/bin/sh\nexit 101\n")
    if masks:
        os.symlink(os.devnull, unit)
    try:
        apt_install(packages)
    finally:
        if forbids:
            os.unlink(POLICY)
        if masks and find_tool(package) is None:
            os.unlink(unit)


def report_missing_abilities() -> None:
    """Says which suites cannot run here for want of something that no package brings."""
    if run_captured(["unshare", "--user", "--map-root-user", "true"]).returncode != 0:
        say("cannot run the tests of the process runtime: this system does not let us make user namespaces")
    if os.geteuid() != 0:
        say("cannot run the tests that need root (limits by cgroups, true owners of image files): not started as root")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)

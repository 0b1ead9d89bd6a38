"""Pulling one image: RIK beside `skopeo copy` + `umoci unpack`, `podman pull` and `docker pull`, from one registry.

Run with `python -m benchmarks.images`, as root for all of them; `--directory` is on the disk to be measured. Debian's
docker-registry on a loopback port serves an image of 250 MB in 6 layers. In every round each program pulls it into a
place of its own that nothing was in before; they take turns in being first. What is not installed is left out.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from tempfile import mkdtemp

import trio

from benchmarks.large_image import MEGABYTE, large_image
from benchmarks.report import Figure, at_least, at_most, report
from rik.images.untar.discard import discard
from tests.registry import running_registry

IMAGE_BYTES = 250 * MEGABYTE
LAYERS = 6
PULL_LIMIT_S = 600.0
START_LIMIT_S = 30.0
POLL_S = 0.05
LAG_INTERVAL_S = 0.005
TARGET_TO_UMOCI = 1.5
TARGET_TO_FASTEST = 1.0
TARGET_CACHED_MS = 5
TARGET_RSS_MB = 30
TARGET_LAG_MS = 50

Pull = Callable[[str, Path], dict[str, float]]


# -- RIK, in a process of its own -------------------------------------------------------------------------------------


def rss_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


async def watch(lags_ms: list[float], rss: list[int]) -> None:
    """How late this task is woken up, and the memory, over and over."""
    while True:
        due = time.perf_counter() + LAG_INTERVAL_S
        await trio.sleep(LAG_INTERVAL_S)
        lags_ms.append((time.perf_counter() - due) * 1000)
        rss.append(rss_bytes())


async def pull_here(reference: str, directory: Path) -> dict[str, float]:
    """Pulls into a fresh store in this process."""
    from rik.images.reference import parse_reference
    from rik.images.store import ImageStore
    from rik.linux.idmap import detect
    from rik.linux.memory import share_arenas

    share_arenas()  # as a host does
    store = ImageStore(directory / "images", "benchmark", detect())
    parsed = parse_reference(reference)
    lags_ms: list[float] = []
    before = rss_bytes()
    rss = [before]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch, lags_ms, rss)
        await trio.sleep(0.2)
        lags_ms.clear()
        began = time.perf_counter()
        image = await store.ensure(parsed)
        took_s = time.perf_counter() - began
        nursery.cancel_scope.cancel()
    cached_ms = []
    for _ in range(20):
        began = time.perf_counter()
        await store.ensure(parsed)
        cached_ms.append((time.perf_counter() - began) * 1000)
    return {
        "seconds": took_s,
        "cached_ms": statistics.median(cached_ms),
        "rss_mb": (max(rss) - before) / MEGABYTE,
        "lag_ms": sorted(lags_ms)[math.ceil(len(lags_ms) * 0.99) - 1],
        "size_mb": image.size_bytes / MEGABYTE,
        "child_rss_mb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / MEGABYTE,
    }


def pull_by_rik(reference: str, directory: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.images", "--pull", reference, "--directory", str(directory)]
    found: dict[str, float] = json.loads(run(command).splitlines()[-1])
    return found


# -- the others -------------------------------------------------------------------------------------------------------


def run(command: list[str], **environment: str) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=PULL_LIMIT_S, env={**os.environ, **environment}
    )
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}: {done.stderr.strip()[-2000:]}")
    return done.stdout


def timed(*commands: list[str], **environment: str) -> dict[str, float]:
    began = time.perf_counter()
    for command in commands:
        run(command, **environment)
    return {"seconds": time.perf_counter() - began}


def pull_by_umoci(reference: str, directory: Path) -> dict[str, float]:
    layout = f"{directory}/layout:v1"
    copy = ["skopeo", "--insecure-policy", "copy", "--quiet", "--src-tls-verify=false"]
    rootless = [] if os.geteuid() == 0 else ["--rootless"]
    return timed(
        [*copy, f"docker://{reference}", f"oci:{layout}"],
        ["umoci", "unpack", *rootless, "--image", layout, f"{directory}/bundle"],
    )


def pull_by_podman(reference: str, directory: Path) -> dict[str, float]:
    places = ["--root", f"{directory}/root", "--runroot", f"{directory}/run", "--storage-driver", "overlay"]
    return timed(["podman", *places, "pull", "--quiet", "--tls-verify=false", reference])


def pull_by_docker(reference: str, directory: Path) -> dict[str, float]:
    with docker_daemon(directory) as address:
        return timed(["docker", "-H", address, "pull", "--quiet", reference], DOCKER_CONFIG=str(directory))


@contextmanager
def docker_daemon(directory: Path) -> Iterator[str]:
    """One with everything of its own in `directory`; it gets no network, and is gone when this is left."""
    address = f"unix://{directory}/docker.sock"
    places = ["--data-root", f"{directory}/root", "--exec-root", f"{directory}/run", "-p", f"{directory}/pid"]
    with (directory / "log").open("wb") as log:
        daemon = subprocess.Popen(
            ["dockerd", *places, "-H", address, "--iptables=false", "--bridge=none"], stdout=log, stderr=log
        )
    try:
        until = time.monotonic() + START_LIMIT_S
        while subprocess.run(["docker", "-H", address, "version"], capture_output=True).returncode != 0:
            if daemon.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"dockerd does not start: {(directory / 'log').read_text()[-2000:]}")
            time.sleep(POLL_S)
        yield address
    finally:
        daemon.send_signal(signal.SIGTERM)  # it ends its containerd, too
        try:
            daemon.wait(START_LIMIT_S)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()


RIK = "RIK"
UMOCI = "skopeo copy + umoci unpack"
PULLS: dict[str, tuple[Pull, tuple[str, ...]]] = {
    RIK: (pull_by_rik, ()),
    UMOCI: (pull_by_umoci, ("umoci",)),
    "podman pull": (pull_by_podman, ("podman",)),
    "docker pull": (pull_by_docker, ("docker", "dockerd")),
}
FOR_ROOT = ("podman pull", "docker pull")


def installed() -> list[str]:
    """The programs that take part; says which do not."""
    found = []
    for name, (_, programs) in PULLS.items():
        missing = [program for program in programs if shutil.which(program) is None]
        if missing:
            print(f"{name}: left out, {missing[0]} is not installed", file=sys.stderr)
        elif name in FOR_ROOT and os.geteuid() != 0:
            print(f"{name}: left out, it is measured as root only", file=sys.stderr)
        else:
            found.append(name)
    return found


# -- the measurement --------------------------------------------------------------------------------------------------


@contextmanager
def workspace(parent: Path | None) -> Iterator[Path]:
    """A directory that is removed with all that is mounted in it."""
    directory = Path(mkdtemp(prefix="rik-benchmark-", dir=parent)).resolve()
    try:
        yield directory
    finally:
        mounted = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
        for place in sorted((place for place in mounted if Path(place).is_relative_to(directory)), reverse=True):
            subprocess.run(["umount", "-l", place])
        discard(str(directory))


def measure(reference: str, directory: Path, rounds: int) -> dict[str, list[dict[str, float]]]:
    names = installed()
    results: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for number in range(rounds):
        turn = number % len(names)
        for name in (*names[turn:], *names[:turn]):
            # Nothing is removed between: ext4 searches long for inodes that were not in use just before.
            place = directory / f"{number}-{len(results[name])}-{names.index(name)}"
            place.mkdir()
            os.sync()  # what the one before has left to write is not this one's
            results[name].append(PULLS[name][0](reference, place))
            print(f"round {number + 1}: {name}: {results[name][-1]['seconds']:.2f} s", file=sys.stderr)
    return results


def figures_of(results: dict[str, list[dict[str, float]]]) -> list[Figure]:
    seconds = {name: [result["seconds"] for result in found] for name, found in results.items()}
    figures = [Figure(name, values, "s") for name, values in seconds.items()]
    if UMOCI in seconds:
        figures.append(at_least("RIK against skopeo + umoci", _ratios(seconds, UMOCI), "times", TARGET_TO_UMOCI))
    if others := [name for name in FOR_ROOT if name in seconds]:
        fastest = min(others, key=lambda name: statistics.median(seconds[name]))
        title = f"RIK against {fastest}, the fastest"
        figures.append(at_least(title, _ratios(seconds, fastest), "times", TARGET_TO_FASTEST))
    own = partial(_of, results[RIK])
    return [
        *figures,
        at_most("RIK, image already there", own("cached_ms"), "ms", TARGET_CACHED_MS),
        at_most("RIK, growth of RSS during the pull", own("rss_mb"), "MB", TARGET_RSS_MB),
        at_most("RIK, lag of the event loop, p99", own("lag_ms"), "ms", TARGET_LAG_MS),
        Figure("RIK, RSS of the unpacking child", own("child_rss_mb"), "MB"),
        Figure("unpacked size", own("size_mb"), "MB"),
    ]


def _ratios(seconds: dict[str, list[float]], other: str) -> list[float]:
    """Round by round: what else the machine does at the time troubles both."""
    return [theirs / own for theirs, own in zip(seconds[other], seconds[RIK], strict=True)]


def _of(results: list[dict[str, float]], key: str) -> list[float]:
    return [result[key] for result in results]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--directory", type=Path, help="where everything is written (default: the temporary directory)")
    parser.add_argument("--image", help="a layout to take instead of making one (oci:DIR:TAG)")
    parser.add_argument("--pull", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.pull:
        print(json.dumps(trio.run(pull_here, options.pull, options.directory)))
        return
    with ExitStack() as stack:
        directory = stack.enter_context(workspace(options.directory))
        for name in ("registry", "pulled"):
            (directory / name).mkdir()
        source = options.image or large_image(directory / "layout", IMAGE_BYTES, LAYERS)
        registry = stack.enter_context(running_registry(directory / "registry"))
        registry.push(source, "bench:v1")
        results = measure(f"{registry.host}/bench:v1", directory / "pulled", options.rounds)
        report("Pulling an image of 250 MB" if not options.image else f"Pulling {source}", figures_of(results))


if __name__ == "__main__":
    main()

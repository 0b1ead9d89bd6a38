"""What can be set, with units and defaults. `rik.cli.serve` fills this from flags, RIK_SERVE_* variables and a file."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

DEFAULT_LISTEN = "127.0.0.1:5000"
ROLES = ("api", "scheduler", "worker")
# A demo's temporary data directory; one that was killed leaves it behind, and the user's next demo sweeps it.
DEMO_PREFIX = "rik-demo-"
DAY_S = 86_400.0
GIB = 2**30
# After the grace, what something may take to die, in seconds, before it is named (DestroyFailed).
DESTROY_S = 30.0


class SchedulerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Durations in seconds.

    A node is believed for `lease_s` after its last heartbeat; its instances are given up `lost_after_s` later.
    Final records are listed for `keep_finished_s`, at most `keep_finished` of them; post-mortems as long again.
    `creating_margin_s` is how much longer than a worker the scheduler waits before it ends a Creating itself.
    """

    lease_s: float = 10.0
    lost_after_s: float = 60.0
    placement: str = "spread"
    keep_finished_s: float = 7 * DAY_S
    keep_finished: int = 10_000
    creating_margin_s: float = 45.0
    destroying_margin_s: float = 45.0
    tick_s: float = 0.5


class WorkerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Durations in seconds. `runtime` is auto, process or fake.

    `start_s` bounds the start of an instance's commands, `destroy_s` how long after the grace something may take to
    die. `parallel_starts` bounds how many instances are created at a time, those not counted whose image is pulled.
    """

    node: str
    labels: dict[str, str] = {}
    runtime: str = "auto"
    publish_address: str = ""
    unsafe_plain: bool = False
    stop_instances: bool = False
    bind_to_process: bool = False
    heartbeat_interval_s: float = 2.0
    start_s: float = 30.0
    destroy_s: float = DESTROY_S
    parallel_starts: int = 8
    log_retention_bytes: int = GIB


class ImageSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Images of one node. Sizes in bytes, durations in seconds.

    What one image may be when it is unpacked: `max_bytes`, `max_entries`, and for each layer `max_ratio` (unpacked :
    compressed), which counts after the first `ratio_free_bytes`; a layer must be unpacked within `layer_deadline_s`.
    A download that brings fewer than `idle_bytes` in `idle_s` has stalled; `downloads_at_once` bounds connections.
    `mirrors` are (registry, base URL), tried in order before the registry itself; `insecure_registries` are hosts
    (`HOST` or `HOST:PORT`) that may be spoken to by plain http or with a certificate that nobody vouches for.
    Unused images go after `keep_unused_s`, and, the least recently used first, while all together exceed
    `cache_bytes`; 0 keeps them. That is looked after every `prune_interval_s`, and `cache_bytes` after every pull.
    """

    max_bytes: int = 20_000_000_000
    max_entries: int = 1_000_000
    max_ratio: int = 200
    ratio_free_bytes: int = 100_000_000
    layer_deadline_s: float = 600.0
    idle_s: float = 60.0
    idle_bytes: int = 1024
    downloads_at_once: int = 4
    mirrors: tuple[tuple[str, str], ...] = ()
    insecure_registries: tuple[str, ...] = ()
    keep_unused_s: float = 14 * DAY_S
    cache_bytes: int = 50 * GIB
    prune_interval_s: float = 600.0


class ApiSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes in bytes, durations in seconds.

    `allowed_hosts` are further values of the Host header (and, as origins, of Origin) beyond the listening address,
    localhost and loopback addresses. `watch_queue` is how many frames are kept in memory for watchers; one
    that is more than ten times as many revisions behind gets a gap.
    """

    host: str = "127.0.0.1"
    port: int = 5000
    allowed_hosts: tuple[str, ...] = ()
    max_body_bytes: int = 2**20
    watch_queue: int = 2_000
    sync_interval_s: float = 10.0
    progress_interval_s: float = 0.5
    batch_interval_s: float = 0.1
    keep_alive_s: float = 75.0
    shutdown_s: float = 3.0


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """One host. `allow_dirs` None: images and files may be read from anywhere."""

    data_dir: Path
    roles: tuple[str, ...] = ROLES
    demo: bool = False
    allow_dirs: tuple[Path, ...] | None = ()
    log_format: str = "text"
    log_level: str = "info"
    journal_revisions: int = 100_000
    worker: WorkerSettings
    images: ImageSettings = ImageSettings()
    scheduler: SchedulerSettings = SchedulerSettings()
    api: ApiSettings = ApiSettings()


def default_data_dir() -> Path:
    """`/var/lib/rik` for root, else `$XDG_STATE_HOME/rik` (`~/.local/state/rik`)."""
    if os.geteuid() == 0:
        return Path("/var/lib/rik")
    state = os.environ.get("XDG_STATE_HOME", "")
    return (Path(state) if os.path.isabs(state) else Path.home() / ".local" / "state") / "rik"

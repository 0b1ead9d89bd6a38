"""Which runtimes a host has, by its settings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rik.environment import Environment
from rik.images.store import ImageStore
from rik.linux import idmap
from rik.runtime.base import Runtime
from rik.runtime.fake import FakeMachine, FakeRuntime
from rik.runtime.process.layout import Layout
from rik.runtime.process.runtime import ProcessRuntime

FAKE = "fake"


def make_runtimes(
    name: str,
    environment: Environment,
    data_dir: Path,
    host_id: str,
    *,
    allow_dirs: Sequence[Path] | None = (),
    bind_to_process: bool = False,
    unsafe_plain: bool = False,
) -> list[Runtime]:
    """The runtimes of the host whose data is in `data_dir`; `name` is what `--runtime` says.

    `auto` is the best that works here. `bind_to_process`: pods die with this process.
    """
    if name == FAKE:
        return [FakeRuntime(environment, FakeMachine(data_dir / "fake"))]
    mapping = idmap.detect()
    images = ImageStore(data_dir / "images", host_id, mapping, allow_dirs=allow_dirs)
    return [
        ProcessRuntime(
            environment,
            Layout(data_dir, host_id),
            images,
            mapping,
            bind_to_process=bind_to_process,
            unsafe_plain=unsafe_plain,
        )
    ]

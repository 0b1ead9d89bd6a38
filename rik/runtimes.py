"""Which runtimes a host has, and the images they share, by its settings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rik.environment import Environment
from rik.images.store import ImageStore
from rik.linux import idmap
from rik.runtime.base import Runtime
from rik.runtime.fake import FakeMachine, FakeRuntime
from rik.runtime.process.layout import Layout
from rik.runtime.process.runtime import ProcessRuntime
from rik.settings import ImageSettings

FAKE = "fake"


class Equipment(NamedTuple):
    """What a host runs instances with: its runtimes, and the images that they share (None: they need none)."""

    runtimes: list[Runtime]
    images: ImageStore | None


def equip(
    name: str,
    environment: Environment,
    data_dir: Path,
    host_id: str,
    *,
    images: ImageSettings | None = None,
    allow_dirs: Sequence[Path] | None = (),
    bind_to_process: bool = False,
    unsafe_plain: bool = False,
) -> Equipment:
    """Of the host whose data is in `data_dir`; `name` is what `--runtime` says.

    `auto` is the best that works here. `bind_to_process`: pods die with this process.
    """
    if name == FAKE:
        return Equipment([FakeRuntime(environment, FakeMachine(data_dir / "fake"))], None)
    mapping = idmap.detect()
    store = ImageStore(data_dir / "images", host_id, mapping, allow_dirs=allow_dirs, settings=images)
    process = ProcessRuntime(
        environment,
        Layout(data_dir, host_id),
        store,
        mapping,
        bind_to_process=bind_to_process,
        unsafe_plain=unsafe_plain,
    )
    return Equipment([process], store)

"""What is stored, and which of it goes when room is made. Pure."""

from __future__ import annotations

import msgspec


class StoredImage(msgspec.Struct, frozen=True):
    """An image that is on the disk, whole: `references` (short forms) lead to it, `holders` (uids) use it.

    `layers` is how many it has and `size_bytes` that of their files, shared ones included; `pulled_bytes`, `seconds`,
    `pulled_at` and `origin` tell of the pull that brought it, `used_at` when somebody last began or ceased to use it.
    Times in ms since the Unix epoch.
    """

    references: tuple[str, ...]
    digest: str
    origin: str = ""
    layers: int = 0
    size_bytes: int = 0
    pulled_bytes: int = 0
    seconds: float = 0.0
    pulled_at: int = 0
    used_at: int = 0
    holders: tuple[str, ...] = ()
    dropped: dict[str, int] = {}
    exposed_ports: tuple[str, ...] = ()


class Pruned(msgspec.Struct, frozen=True):
    """What went (with a dry run: what would go). `freed_bytes` are those of layers that no other image needs; `kept`
    images of `size_bytes` in all (layers counted once) are left."""

    removed: tuple[StoredImage, ...]
    freed_bytes: int
    kept: int
    size_bytes: int

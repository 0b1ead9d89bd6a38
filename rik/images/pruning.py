"""What is stored, and which of it goes when room is made. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

_LEASE = "lease"


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
    labels: dict[str, str] = {}


class Pruned(msgspec.Struct, frozen=True):
    """What went (with a dry run: what would go). `freed_bytes` are those of layers that no other image needs; `kept`
    images of `size_bytes` in all (layers counted once) are left."""

    removed: tuple[StoredImage, ...]
    freed_bytes: int
    kept: int
    size_bytes: int


class Shelf(msgspec.Struct, frozen=True):
    """What is here. `images` maps digests to the keys of their layers, of which some may be missing; `layers` maps the
    keys of layers that are here to their bytes; `made_at` says since when (ms).

    `held` are the digests in use, and `needed` the keys of layers that something uses or is bringing. `used_at` (ms) is
    of every image.
    """

    images: Mapping[str, Sequence[str]]
    layers: Mapping[str, int]
    made_at: Mapping[str, int]
    used_at: Mapping[str, int]
    held: frozenset[str] = frozenset()
    needed: frozenset[str] = frozenset()

    @property
    def loose(self) -> set[str]:
        """The keys of layers that belong to no image: pulls brought them that have failed, or are not done."""
        return self.layers.keys() - {key for keys in self.images.values() for key in keys}

    @property
    def size_bytes(self) -> int:
        return sum(self.layers.values())


class Plan(msgspec.Struct, frozen=True):
    """Which `images` (digests) are forgotten and which `layers` (keys) removed, of how many bytes."""

    images: tuple[str, ...]
    layers: tuple[str, ...]
    freed_bytes: int


def choose(shelf: Shelf, now: int, unused_s: float, cache_bytes: int) -> Plan:
    """What goes of what nothing uses: what has not been used for `unused_s`; with `cache_bytes` the least recently used
    until all layers take no more than that (then `unused_s` 0 is no criterion); with neither, all of it.

    Layers that belong to no image (of a pull that failed) are as old as they are. An image of which a layer is missing
    goes whenever nothing brings it.
    """
    by_age = unused_s > 0 or not cache_bytes
    parts = {digest: {*keys} & shelf.layers.keys() for digest, keys in shelf.images.items()}
    loose = shelf.loose
    parts.update((key, {key}) for key in loose)
    users = {key: {_LEASE} if key in shelf.needed else set() for key in shelf.layers}
    for name, keys in parts.items():
        for key in keys:
            users[key].add(name)
    unused = [(shelf.used_at.get(digest, 0), digest) for digest in shelf.images if digest not in shelf.held]
    unused += [(shelf.made_at.get(key, 0), key) for key in loose if key not in shelf.needed]
    size = shelf.size_bytes
    images: list[str] = []
    layers: list[str] = []
    for at, name in sorted(unused):
        broken = name in shelf.images and len(parts[name]) < len({*shelf.images[name]})
        too_old = by_age and max(now - at, 0) >= unused_s * 1000
        if not (broken or too_old or 0 < cache_bytes < size):
            continue
        if name in shelf.images:
            images.append(name)
        for key in parts[name]:
            users[key].remove(name)
            if not users[key]:
                layers.append(key)
                size -= shelf.layers[key]
    return Plan(tuple(images), tuple(sorted(layers)), shelf.size_bytes - size)

"""Who needs which layers: files that say so, which pruning obeys.

    leases/<host>.<holder>.<digest>.json     an instance uses that image; there until it is removed
    leases/<host>.<pid>-<random>.json        a pull is at work; its process holds the file's lock

They are written under the store's lock before anybody looks whether layers are here, and read under it before any are
taken away. Nothing of this is made durable: after a reboot no pod lives. All functions block, and raise OSError.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from rik.images.catalog import ImageDigest, LayerKey
from rik.images.documents import NEW, read_document, remove_document, write_document
from rik.images.locks import is_locked, try_lock

_HOLDER = re.compile(r"[0-9A-Za-z_-]{1,100}")


class _Needs(msgspec.Struct, frozen=True):
    digest: ImageDigest
    keys: tuple[LayerKey, ...]


class Lease(msgspec.Struct, frozen=True):
    """`holder` is an instance's uid, or "" for a pull. `keys` None: they cannot be read, and the image's record says
    them."""

    path: Path
    host_id: str
    holder: str
    digest: str
    keys: tuple[str, ...] | None = None


class Leases:
    """The leases below `directory`, of this host (`host_id`) and of others that share the store."""

    def __init__(self, directory: Path, host_id: str) -> None:
        self.directory = directory / "leases"
        self._host_id = host_id

    def hold(self, holder: str, digest: str, keys: Sequence[str]) -> Path:
        """From now on `holder` needs these layers. Call it under the store's lock."""
        if not _HOLDER.fullmatch(holder):
            raise ValueError(f"{holder!r} is no uid")
        path = self.directory / f"{self._host_id}.{holder}.{digest.replace(':', '-')}.json"
        write_document(path, _Needs(digest, tuple(keys)))
        return path

    def release(self, holder: str) -> list[str]:
        """Returns the digests that it held."""
        held = [lease for lease in self.known() if lease.holder == holder and lease.host_id == self._host_id]
        for lease in held:
            remove_document(lease.path)
        return [lease.digest for lease in held]

    @contextmanager
    def pulling(self, digest: str, keys: Sequence[str]) -> Iterator[None]:
        """While it is open, or this process dies, these layers are needed. Enter it under the store's lock."""
        name = f"{self._host_id}.{os.getpid()}-{secrets.token_hex(4)}.json"
        temporary, path = self.directory / f"{name}{NEW}", self.directory / name
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            try_lock(fd)  # nobody else knows it yet
            try:
                with open(fd, "wb", closefd=False) as file:
                    file.write(msgspec.json.encode(_Needs(digest, tuple(keys))))
                os.rename(temporary, path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
        finally:
            os.close(fd)

    def all(self) -> list[Lease]:
        """Those in force, of all hosts, with what they say."""
        return [
            msgspec.structs.replace(lease, digest=needs.digest if needs else lease.digest, keys=needs and needs.keys)
            for lease in self.known()
            if lease.holder or is_locked(lease.path)
            for needs in [read_document(lease.path, _Needs)]
        ]

    def void(self, owned: frozenset[str] | None = None) -> list[Lease]:
        """Those of pulls that have died, and this host's of instances that are not in `owned` (None: all may live)."""
        return [
            lease
            for lease in self.known()
            if (not lease.holder and not is_locked(lease.path))
            or (lease.holder and lease.host_id == self._host_id and owned is not None and lease.holder not in owned)
        ]

    def unfinished(self) -> list[Path]:
        """What was being written when its process died; look for it under the store's lock."""
        return sorted(self.directory.glob(f"*{NEW}"))

    def is_own(self, lease: Lease) -> bool:
        return lease.host_id == self._host_id

    def known(self) -> list[Lease]:
        """All that are here, by their names alone."""
        try:
            names = sorted(os.listdir(self.directory))
        except FileNotFoundError:
            return []
        found = []
        for name in names:
            match name.split("."):
                case [host_id, holder, digest, "json"]:
                    found.append(Lease(self.directory / name, host_id, holder, digest.replace("-", ":", 1)))
                case [host_id, _, "json"]:
                    found.append(Lease(self.directory / name, host_id, "", ""))
        return found

"""What is known of images: a record for each, and which references lead to it.

    records/<digest>[-<owners>].json     its config, its layers, and the pull that brought it; used last when it was
                                         modified last
    references/<sha256 of it>.json       a reference in its full form, and the digest that it led to

`<owners>` is the mark of the id map that its layers were unpacked for ("" when owners are the true ones). Neither is
proof that the layers are here. All functions block, and raise OSError.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec

from rik.images.documents import NEW, read_document, write_document
from rik.images.manifest import ImageConfig
from rik.images.reference import familiar, parse_reference

_LATEST_MS = 253_402_300_799_999  # the end of the year 9999: beyond that there is no date

# They become parts of paths: what is read from the disk must be what was written, and nothing else.
LayerKey = Annotated[str, msgspec.Meta(pattern=r"\A([0-9a-f]{64}){1,2}(-[0-9a-f]{8})?\Z")]
ImageDigest = Annotated[str, msgspec.Meta(pattern=r"\A(sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})\Z")]
_Count = Annotated[int, msgspec.Meta(ge=0)]


class Pull(msgspec.Struct, frozen=True):
    """How an image came: from where, how many layers and bytes (as they were sent) of it, in how long, when (ms)."""

    origin: str = ""
    layers: _Count = 0
    bytes: _Count = 0
    seconds: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    at: Annotated[int, msgspec.Meta(ge=0, le=_LATEST_MS)] = 0


class Record(msgspec.Struct, frozen=True):
    """One image: `keys` name its layers, lowest first; `size_bytes` is that of their files. Of the fields with
    defaults an older RIK wrote none."""

    digest: ImageDigest
    config: ImageConfig
    keys: tuple[LayerKey, ...]
    size_bytes: _Count
    dropped: dict[str, int] = {}
    pull: Pull = Pull()


class Pointer(msgspec.Struct, frozen=True):
    """Where `reference` led when its source was asked last; `origin` is where that was, in words for people."""

    reference: str
    digest: ImageDigest
    origin: str = ""


class Catalog:
    """The records and references below `directory`. `suffix` is the mark of this RIK's id map."""

    def __init__(self, directory: Path, suffix: str) -> None:
        self.records = directory / "records"
        self.references = directory / "references"
        self._suffix = suffix

    def record(self, digest: str) -> Record | None:
        """None when there is none, or a damaged one."""
        path = self.record_path(digest)
        record = read_document(path, Record)
        return record if record is not None and self.record_path(record.digest) == path and record.keys else None

    def keep(self, record: Record) -> None:
        write_document(self.record_path(record.digest), record)

    def touch(self, digest: str) -> None:
        """It was used now."""
        try:
            os.utime(self.record_path(digest), follow_symlinks=False)
        except FileNotFoundError:
            pass

    def used_at(self, digest: str) -> int:
        """In ms; 0 when there is no record."""
        try:
            return os.lstat(self.record_path(digest)).st_mtime_ns // 1_000_000
        except FileNotFoundError:
            return 0

    def all_records(self) -> Iterator[Record]:
        """Those of this id map that can be read."""
        for path in _documents(self.records):
            algorithm, _, rest = path.name.removesuffix(f"{self._suffix}.json").partition("-")
            record = self.record(f"{algorithm}:{rest}")
            if record is not None and self.record_path(record.digest) == path:
                yield record

    def pointer(self, reference: str) -> Pointer | None:
        """Where it led; None when it was never asked for, or that is damaged."""
        found = read_document(self._pointer_path(reference), Pointer)
        return found if found is not None and found.reference == reference else None

    def point(self, pointer: Pointer) -> None:
        """Remembers it, unless that is known."""
        if self.pointer(pointer.reference) != pointer:
            write_document(self._pointer_path(pointer.reference), pointer)

    def all_pointers(self) -> Iterator[Pointer]:
        """Those that can be read."""
        for path in _documents(self.references):
            found = read_document(path, Pointer)
            if found is not None and self._pointer_path(found.reference) == path:
                yield found

    def forget(self, digests: frozenset[str]) -> None:
        """No record of them, and no reference to them, is left."""
        for digest in digests:
            self.record_path(digest).unlink(missing_ok=True)
        for pointer in self.all_pointers():
            if pointer.digest in digests:
                self._pointer_path(pointer.reference).unlink(missing_ok=True)

    def useless(self) -> Iterator[Path]:
        """Documents of this id map that cannot be read, references that lead nowhere, and what was never finished."""
        known = {self.record_path(record.digest) for record in self.all_records()}
        yield from (path for path in _documents(self.records) if path not in known and self._is_own(path))
        leading = {self._pointer_path(p.reference) for p in self.all_pointers() if self.record_path(p.digest) in known}
        yield from (path for path in _documents(self.references) if path not in leading)
        for folder in (self.records, self.references):
            yield from sorted(folder.glob(f"*{NEW}"))

    def record_path(self, digest: str) -> Path:
        return self.records / f"{digest.replace(':', '-')}{self._suffix}.json"

    def _is_own(self, path: Path) -> bool:
        """An image may be here for several id maps: its name then has one dash more."""
        return path.stem.count("-") == 1 + bool(self._suffix) and path.stem.endswith(self._suffix)

    def _pointer_path(self, reference: str) -> Path:
        return self.references / f"{hashlib.sha256(reference.encode()).hexdigest()}.json"


def short(reference: str) -> str:
    """A full reference as people write it."""
    return familiar(parse_reference(reference))


def _documents(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.json"))

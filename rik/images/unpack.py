"""One layer onto the disk, and trees off it again: the parent's side of the confined child."""

from __future__ import annotations

import errno
import functools
import importlib.util
import math
import os
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import msgspec
import trio

from rik.images import confined
from rik.images.confined import Child, Owners
from rik.images.errors import ImageInvalid, ImagePullFailed
from rik.images.untar.compression import OPTIONAL_PACKAGES
from rik.images.untar.discard import discard
from rik.linux.idmap import Unavailable, detect
from rik.model.sizes import format_bytes
from rik.settings import ImageSettings

_DEFAULTS = ImageSettings()


class Limits(msgspec.Struct, frozen=True):
    """What an image may be when it is unpacked, as in `ImageSettings`, whose defaults these are. The ratio (unpacked :
    compressed) is of a layer, the rest of the whole image; `below_bytes` and `below_entries` are what the layers below
    one have of it already."""

    max_bytes: int = _DEFAULTS.max_bytes
    max_entries: int = _DEFAULTS.max_entries
    max_ratio: int = _DEFAULTS.max_ratio
    ratio_free_bytes: int = _DEFAULTS.ratio_free_bytes  # small layers may well be mostly zeros
    layer_deadline_s: float = _DEFAULTS.layer_deadline_s
    below_bytes: int = 0
    below_entries: int = 0

    @classmethod
    def of(cls, settings: ImageSettings) -> Limits:
        return cls(
            settings.max_bytes,
            settings.max_entries,
            settings.max_ratio,
            settings.ratio_free_bytes,
            settings.layer_deadline_s,
        )


class Unpacked(msgspec.Struct, frozen=True):
    """What became of a layer: `bytes` of its files, `dropped` counts what could not be kept here, by kind."""

    diff_id: str
    bytes: int
    entries: int
    dropped: dict[str, int] = {}


async def unpack(
    chunks: AsyncIterator[bytes],
    target: Path,
    lower: Sequence[Path],
    owners: Owners,
    limits: Limits,
    what: str,
    *,
    algorithm: str = "sha256",
    read: Callable[[int], None] = lambda count: None,
    lock_fd: int | None = None,
) -> Unpacked:
    """Unpacks a layer (tar; plain, gzip or zstd) into the empty directory `target`, on top of `lower` (topmost first).

    `read` is told the size of every chunk. When the child refuses the layer, the rest of `chunks` is still read: if
    their own check fails, that is the better explanation. Raises ImageInvalid or ImagePullFailed, beginning with
    `what`; the target is then for the caller to remove.
    """
    job = {
        "do": "unpack",
        "target": str(target),
        "lower": [str(path) for path in lower],
        "limits": {
            "max_bytes": limits.max_bytes,
            "max_entries": limits.max_entries,
            "max_ratio": limits.max_ratio,
            "ratio_free_bytes": limits.ratio_free_bytes,
            "below_bytes": limits.below_bytes,
            "below_entries": limits.below_entries,
        },
        "algorithm": algorithm,
        "cpu_s": math.ceil(limits.layer_deadline_s) + 1,
        "packages": {name: _path_of(name) for name in OPTIONAL_PACKAGES},
    }

    async def feed(child: Child) -> None:
        listening = True
        while chunk := await _untimed(chunks, scope):
            read(len(chunk))
            if listening and not await child.send(chunk):
                listening = False
                if (await child.finish()).get("error") != "invalid":
                    return

    with trio.move_on_after(limits.layer_deadline_s) as scope:
        answer = await confined.run(job, owners, feed, lock_fd)
        if limit := answer.get("limit"):
            raise _over_limit(limit, limits, f"{what} cannot be unpacked: it")
        error = confined.error_of(answer, what)
        if error is not None:
            raise error
        return msgspec.convert(answer, Unpacked)
    raise ImagePullFailed(f"{what} cannot be unpacked: it was not done after {limits.layer_deadline_s:g} s")


async def _untimed(chunks: AsyncIterator[bytes], scope: trio.CancelScope) -> bytes:
    """The next chunk, b"" at the end. What comes slowly is not the unpacking's fault: its time stands still
    meanwhile, and sources have deadlines of their own."""
    left_s = scope.deadline - trio.current_time()
    scope.deadline = math.inf
    chunk = await anext(chunks, b"")
    scope.deadline = trio.current_time() + left_s
    return chunk


async def remove_tree(path: Path, owners: Owners | None = None) -> None:
    """Removes a tree whatever its owners, modes and depth; nothing there is no error. Raises OSError.

    What this process may not remove belongs to ids of the pods' id map: a child inside of it does the rest.
    `owners` None finds that map out.
    """
    try:
        await trio.to_thread.run_sync(discard, str(path))
        return
    except PermissionError:
        if owners is None:
            owners = Owners(await trio.to_thread.run_sync(detect), os.geteuid())
        if owners.true or isinstance(owners.idmap, Unavailable):
            raise
    try:
        answer = await confined.run({"do": "remove", "target": str(path)}, owners, None)
    except ImagePullFailed as error:  # there can be no child
        raise PermissionError(errno.EACCES, error.message, str(path)) from error
    if "error" in answer:
        raise OSError(answer.get("errno", errno.EIO), answer["message"], str(path))


@functools.cache
def _path_of(package: str) -> str:
    """Where the child finds it, whose own search path is empty; "" when it is not installed."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return ""
    return os.path.dirname(next(iter(spec.submodule_search_locations)))


def check_totals(unpacked: Sequence[Unpacked], limits: Limits, what: str) -> Limits:
    """The limits of the next layer of the same image. Raises ImageInvalid when those that are here exceed them."""
    used_bytes, used_entries = sum(u.bytes for u in unpacked), sum(u.entries for u in unpacked)
    if used_bytes > limits.max_bytes:
        raise _over_limit("bytes", limits, what)
    if used_entries > limits.max_entries:
        raise _over_limit("entries", limits, what)
    return msgspec.structs.replace(limits, below_bytes=used_bytes, below_entries=used_entries)


def _over_limit(limit: str, limits: Limits, what: str) -> ImageInvalid:
    """`what` begins a sentence. The limit is told as it was set, whatever the layers below have left of it."""
    below = " (with the layers below it)" if limits.below_entries else ""
    match limit:
        case "bytes":
            cause = f"is larger than {format_bytes(limits.max_bytes)} when unpacked{below}"
            options = "--image-max-size"
        case "entries":
            cause, options = f"has more than {limits.max_entries:,} files{below}", "--image-max-files"
        case _:
            after = f" (after the first {format_bytes(limits.ratio_free_bytes)})" if limits.ratio_free_bytes else ""
            cause = f"grows to more than {limits.max_ratio:,} times its size{after}"
            options = "--image-max-ratio` or `--image-ratio-after"
    step = f"if it is as it should be, start this node with a larger `{options}`"
    return ImageInvalid(f"{what} {cause}", next_step=step)

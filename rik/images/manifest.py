"""What an image consists of: index, manifest and config, read from their JSON. Pure.

Formats: OCI image-spec 1.1 and Docker's image manifest v2 schema 2, which differ in their media types alone. Every
function takes `where`, words that name the image and the part in messages, and raises ImageInvalid or ImageNotFound.
"""

from __future__ import annotations

import hashlib
import platform
import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

import msgspec

from rik.images.errors import ImageInvalid, ImageNotFound, printable
from rik.images.reference import is_digest

# Larger ones are refused by registries too (4 MiB is what the OCI distribution specification recommends).
MAX_JSON_BYTES = 4 << 20
# Overlay mounts were measured with 500 lower directories; Docker stops at 127.
MAX_LAYERS = 500
# An index of indexes of indexes: nobody nests deeper than twice.
MAX_INDEX_DEPTH = 5
# Exposed ports are a hint that is repeated in the record of every instance: more of them help nobody.
MAX_EXPOSED_PORTS = 100
# So are labels, in every revision of it; some builders put whole documents into them.
MAX_LABELS = 100
MAX_LABEL_CHARS = 1000
MAX_LABELS_CHARS = 8000  # of all names and values together
_EXPOSED_PORT = re.compile(r"[0-9]{1,5}(-[0-9]{1,5})?(/[a-z]{1,10})?")
# A layer of a terabyte is a lie whatever the limits are.
MAX_BLOB_BYTES = 1 << 40

INDEX_TYPES = frozenset(
    {"application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"}
)
MANIFEST_TYPES = frozenset(
    {"application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"}
)
CONFIG_TYPES = frozenset({"application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"})
LAYER_TYPES = frozenset(
    {
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.oci.image.layer.v1.tar+gzip",
        "application/vnd.oci.image.layer.v1.tar+zstd",
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
        "application/vnd.docker.image.rootfs.diff.tar.zstd",
    }
)


class Platform(msgspec.Struct, frozen=True, gc=False):
    """`architecture` in Go's words (amd64, arm64); `variant` refines it (v8), "" for none."""

    os: str = ""
    architecture: str = ""
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part) or "unknown"


class Descriptor(msgspec.Struct, frozen=True, rename="camel"):
    """Points at a blob: `size` in bytes, `digest` checked to be one."""

    digest: str
    size: int
    media_type: str = ""
    annotations: dict[str, str] | None = None
    platform: Platform | None = None

    def tag(self) -> str | None:
        """What this entry of a layout's index is called there."""
        return (self.annotations or {}).get("org.opencontainers.image.ref.name")


class Manifest(msgspec.Struct, frozen=True):
    """One image for one platform; `layers` lowest first."""

    config: Descriptor
    layers: tuple[Descriptor, ...]


class ImageConfig(msgspec.Struct, frozen=True):
    """How the image wants to be run. `env` is `NAME=value`; `exposed_ports` is `8080/tcp`; "" and () mean nothing is
    said. `labels` are printable, and bounded in number and length."""

    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    working_dir: str = ""
    user: str = ""
    stop_signal: str = ""
    exposed_ports: tuple[str, ...] = ()
    labels: dict[str, str] = {}


class _Index(msgspec.Struct, rename="camel"):
    manifests: list[Descriptor]
    media_type: str = ""


class _Manifest(msgspec.Struct, rename="camel"):
    config: Descriptor
    layers: list[Descriptor]
    media_type: str = ""


class _RunConfig(msgspec.Struct, rename="pascal"):
    entrypoint: list[str] | str | None = None
    cmd: list[str] | str | None = None
    env: list[str] | None = None
    working_dir: str | None = None
    user: str | None = None
    stop_signal: str | None = None
    exposed_ports: dict[str, object] | None = None
    labels: dict[str, str] | None = None


class _RootFs(msgspec.Struct):
    diff_ids: list[str] | None = None


class _Config(msgspec.Struct):
    architecture: str = ""
    os: str = ""
    variant: str = ""
    config: _RunConfig | None = None
    rootfs: _RootFs | None = None


_T = TypeVar("_T")


def decode(data: bytes, kind: type[_T], where: str) -> _T:
    """JSON of the given shape. Raises ImageInvalid with the decoder's own words."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ImageInvalid(f"{where} cannot be read: {error}") from error


def read_index(data: bytes, where: str) -> tuple[Descriptor, ...]:
    """The entries of an index; each one's digest and size make sense."""
    index = decode(data, _Index, where)
    for entry in index.manifests:
        _check_descriptor(entry, where)
    return tuple(index.manifests)


def read_manifest(data: bytes, where: str) -> Manifest:
    """A manifest of a container image that can be unpacked here."""
    manifest = decode(data, _Manifest, where)
    if manifest.media_type and manifest.media_type not in MANIFEST_TYPES:
        raise ImageInvalid(f"{where} says it is `{manifest.media_type[:200]}`, which is no image manifest")
    _check_descriptor(manifest.config, where)
    if manifest.config.media_type not in CONFIG_TYPES:
        raise ImageInvalid(f"{where} is no container image: its config is `{manifest.config.media_type[:200]}`")
    if len(manifest.layers) > MAX_LAYERS:
        raise ImageInvalid(f"{where} has {len(manifest.layers)} layers; at most {MAX_LAYERS} can be mounted")
    for layer in manifest.layers:
        _check_descriptor(layer, where)
        _check_layer_type(layer, where)
    return Manifest(manifest.config, tuple(manifest.layers))


def read_config(data: bytes, wanted: Platform, layers: int, where: str) -> tuple[ImageConfig, tuple[str, ...]]:
    """The config and the digest of every layer's uncompressed tar, lowest first. `layers` is how many there must be."""
    config = decode(data, _Config, where)
    offered = Platform(config.os, config.architecture, config.variant)
    if (config.os or config.architecture) and not _runs(offered, wanted):
        raise ImageNotFound(f"{where} is for {offered}; this node is {wanted}")
    diff_ids = tuple((config.rootfs.diff_ids if config.rootfs else None) or ())
    if len(diff_ids) != layers:
        raise ImageInvalid(
            f"{where} lists {len(diff_ids)} layers under `rootfs.diff_ids`, and the manifest has {layers}"
        )
    wrong = next((diff_id for diff_id in diff_ids if not is_digest(diff_id)), None)
    if wrong is not None:
        raise ImageInvalid(f"{where} lists `{wrong[:100]}` under `rootfs.diff_ids`, which is no digest")
    run = config.config or _RunConfig()
    for text in (
        *_command(run.entrypoint),
        *_command(run.cmd),
        *(run.env or ()),
        run.working_dir or "",
        run.user or "",
    ):
        if "\0" in text:
            raise ImageInvalid(f"{where} holds a zero byte in {text[:100]!r}, which no program can be given")
    settings = ImageConfig(
        entrypoint=_command(run.entrypoint),
        cmd=_command(run.cmd),
        env=tuple(entry for entry in run.env or () if entry.find("=") > 0),
        working_dir=run.working_dir or "",
        user=run.user or "",
        stop_signal=run.stop_signal or "",
        exposed_ports=tuple(filter(_EXPOSED_PORT.fullmatch, run.exposed_ports or ()))[:MAX_EXPOSED_PORTS],
        labels=_bounded_labels(run.labels or {}),
    )
    return settings, diff_ids


def chain_ids(diff_ids: Sequence[str]) -> tuple[str, ...]:
    """The identity of each layer *on top of those below it*: hex, lowest first (OCI image-spec, "Layer ChainID").

    Unpacking depends on the layers below (a directory that a layer only mentions keeps their mode and owner), so this,
    not the layer's own digest, says when two images share an unpacked layer.
    """
    chain: list[str] = []
    for diff_id in diff_ids:
        previous = f"sha256:{chain[-1]} " if chain else None
        whole = (previous + diff_id) if previous else diff_id
        chain.append(hashlib.sha256(whole.encode()).hexdigest() if previous else diff_id.partition(":")[2])
    return tuple(chain)


def this_platform() -> Platform:
    """What images this machine runs."""
    machine = platform.machine().lower()
    known = {
        "x86_64": ("amd64", ""),
        "aarch64": ("arm64", "v8"),
        "armv7l": ("arm", "v7"),
        "armv6l": ("arm", "v6"),
        "i686": ("386", ""),
        "i386": ("386", ""),
        "loongarch64": ("loong64", ""),
    }
    architecture, variant = known.get(machine, (machine, ""))
    return Platform("linux", architecture, variant)


def choose(entries: Sequence[Descriptor], wanted: Platform, where: str) -> Descriptor:
    """The entry of an index that fits this machine best; an entry that names no platform only when none that does
    fits."""
    usable = [entry for entry in entries if entry.media_type in MANIFEST_TYPES | INDEX_TYPES or not entry.media_type]
    if not usable:
        kinds = sorted({entry.media_type for entry in entries})
        raise ImageInvalid(
            f"{where} holds no image" + (f", only {', '.join(kinds)[:300]}" if kinds else ": its index is empty")
        )
    exact = [e for e in usable if e.platform == wanted]
    fitting = [e for e in usable if e.platform is not None and _runs(e.platform, wanted)]
    silent = [e for e in usable if e.platform is None]
    for group in (exact, fitting, silent):
        if group:
            return group[0]
    offered = sorted({str(e.platform) for e in usable if str(e.platform) != "unknown/unknown"})
    raise ImageNotFound(f"{where} has no image for {wanted}; it has {', '.join(offered)[:300] or 'none at all'}")


def _runs(offered: Platform, wanted: Platform) -> bool:
    same = offered.os == wanted.os and offered.architecture == wanted.architecture
    if not same or not offered.variant or offered.variant == wanted.variant:
        return same
    # arm/v6 programs run on v7, not the other way round; amd64/v2 and later are not probed for, so they do not count
    # as fitting.
    return wanted.architecture == "arm" and offered.variant < wanted.variant


def _command(value: list[str] | str | None) -> tuple[str, ...]:
    """Very old images have a plain string where a list belongs: Docker runs that by a shell."""
    if isinstance(value, str):
        return ("/bin/sh", "-c", value) if value else ()
    return tuple(value or ())


def _bounded_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """The first of them that have room, long values cut short; a longer name than that is none."""
    kept: dict[str, str] = {}
    left = MAX_LABELS_CHARS
    for raw_name, raw_value in labels.items():
        name, value = printable(raw_name[: MAX_LABEL_CHARS + 1]), _cut(printable(raw_value[: MAX_LABEL_CHARS + 1]))
        size = len(name) + len(value)
        if not 0 < len(name) <= MAX_LABEL_CHARS or size > left:
            continue
        kept[name] = value
        left -= size
        if len(kept) == MAX_LABELS:
            break
    return kept


def _cut(text: str) -> str:
    return text if len(text) <= MAX_LABEL_CHARS else text[: MAX_LABEL_CHARS - 1] + "…"


def _check_descriptor(descriptor: Descriptor, where: str) -> None:
    if not is_digest(descriptor.digest):
        raise ImageInvalid(f"{where} points at `{descriptor.digest[:100]}`, which is no sha256 or sha512 digest")
    if not 0 <= descriptor.size <= MAX_BLOB_BYTES:
        raise ImageInvalid(f"{where} says that {descriptor.digest} has {descriptor.size} bytes")


def _check_layer_type(layer: Descriptor, where: str) -> None:
    kind = layer.media_type
    if kind in LAYER_TYPES:
        return
    if "encrypted" in kind:
        cause = "is encrypted, and there is no key for it here"
    elif "nondistributable" in kind or "foreign" in kind:
        cause = "is a foreign one, which its owner does not let images carry"
    else:
        cause = "is of an unknown type"
    raise ImageInvalid(f"the layer {layer.digest} of {where} {cause} (`{kind[:200]}`)")

"""The options of `rik serve` about images, and the `ImageSettings` that they make."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import SplitResult, urlsplit

import click

from rik.cli.parameters import AtLeastOne, Duration, Size, is_loopback
from rik.settings import ImageSettings

F = TypeVar("F", bound=Callable[..., Any])

MOST_PULLS = 64  # connections at once: more are no faster, and registries refuse them
HUB = "docker.io"
HUB_ALIASES = ("index.docker.io", "registry-1.docker.io", "registry.hub.docker.com")


class Count(click.ParamType[int]):
    """A whole number, `1000000` or `1_000_000`; `most` bounds it."""

    name = "number"

    def __init__(self, most: int = 2**53) -> None:
        self._most = most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        text = str(value).replace("_", "")
        if not (text.isdecimal() and text.isascii()):
            self.fail(f"{value!r} is no number: write digits, such as 1000", param, ctx)
        if int(text) > self._most:
            self.fail(f"{value!r} is too many: at most {self._most}", param, ctx)
        return int(text)


OPTIONS = (
    click.option(
        "--insecure-registry",
        multiple=True,
        metavar="HOST[:PORT]",
        help="A registry without TLS, or whose certificate nobody vouches for; may be repeated.",
    ),
    click.option(
        "--registry-mirror",
        multiple=True,
        metavar="REGISTRY=URL",
        help="Where to ask before that registry, such as docker.io=https://mirror.example; may be repeated.",
    ),
    click.option(
        "--image-max-size",
        type=AtLeastOne(Size(), "no image may be unpacked"),
        default="20G",
        help="How large an image may be when it is unpacked.",
    ),
    click.option(
        "--image-max-files",
        type=AtLeastOne(Count(), "no image may be unpacked"),
        default="1000000",
        help="How many files an image may hold.",
    ),
    click.option(
        "--image-max-ratio",
        type=AtLeastOne(Count(), "no layer may be unpacked"),
        default="200",
        help="How many times as large as it was sent a layer may become.",
    ),
    click.option(
        "--image-ratio-after", type=Size(), default="100M", help="The ratio counts once this much of it was unpacked."
    ),
    click.option(
        "--image-keep", type=Duration(), default="14d", help="Images unused for this long are removed; 0: never."
    ),
    click.option(
        "--image-cache",
        type=Size(),
        default="50Gi",
        help="Unused images are removed, oldest first, while all take more than this; 0: no limit.",
    ),
    click.option(
        "--image-prune-interval",
        type=AtLeastOne(Duration(), "nothing else would be done"),
        default="10m",
        help="How often unused images are looked for.",
    ),
    click.option(
        "--pull-idle",
        type=AtLeastOne(Duration(), "every download has stalled before it began"),
        default="60s",
        help="A download that brings nothing for this long has failed.",
    ),
    click.option(
        "--pull-parallel",
        type=AtLeastOne(Count(MOST_PULLS), "nothing may be downloaded"),
        default="4",
        help="How many layers are downloaded at once.",
    ),
)


def image_options(command: F) -> F:
    """All of them, in this order."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def image_settings(options: dict[str, Any]) -> ImageSettings:
    """From parsed options. Raises click.BadParameter."""
    insecure = tuple(dict.fromkeys(_registry(host, "--insecure-registry") for host in options["insecure_registry"]))
    return ImageSettings(
        max_bytes=options["image_max_size"],
        max_entries=options["image_max_files"],
        max_ratio=options["image_max_ratio"],
        ratio_free_bytes=options["image_ratio_after"],
        idle_s=options["pull_idle"],
        downloads_at_once=options["pull_parallel"],
        mirrors=tuple(dict.fromkeys(_mirror(given, insecure) for given in options["registry_mirror"])),
        insecure_registries=insecure,
        keep_unused_s=options["image_keep"],
        cache_bytes=options["image_cache"],
        prune_interval_s=options["image_prune_interval"],
    )


def _mirror(given: str, insecure: tuple[str, ...]) -> tuple[str, str]:
    """(registry, base URL without a slash at its end), from `REGISTRY=URL`."""
    hint = "--registry-mirror"
    registry, separator, url = str(given).partition("=")
    if not separator:
        raise click.BadParameter(
            f"{_masked(given)!r} names no registry: write REGISTRY=URL, such as {HUB}=https://mirror.example",
            param_hint=hint,
        )
    registry = _registry(registry, hint)
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise click.BadParameter(f"{_masked(url)!r} is no URL: {error}", param_hint=hint) from None
    if parts.scheme not in ("http", "https") or not host:
        raise click.BadParameter(
            f"{_masked(url)!r} is no URL of a mirror: write it like https://mirror.example", param_hint=hint
        )
    if parts.username is not None or parts.password is not None:
        raise click.BadParameter(
            f"the URL of the mirror for {registry} holds credentials, which everybody who sees this command line can "
            f"read: put them into ~/.docker/config.json, for {_authority(parts)}",
            param_hint=hint,
        )
    if parts.query or parts.fragment:
        raise click.BadParameter(f"{url!r}: a mirror's URL ends with its path, without ? or #", param_hint=hint)
    if parts.scheme == "http" and not is_loopback(host) and not {host, _authority(parts)} & set(insecure):
        raise click.BadParameter(
            f"{url!r} would be spoken to by plain http: write https, or add --insecure-registry {_authority(parts)}",
            param_hint=hint,
        )
    return registry, url.rstrip("/")


def _registry(given: str, hint: str) -> str:
    """`HOST` or `HOST:PORT`, as it stands in references; the other names of Docker Hub become docker.io."""
    from rik.images.errors import ImageInvalid
    from rik.images.reference import RegistryReference, parse_reference

    text = str(given).strip()
    if "://" in text:
        raise click.BadParameter(
            f"{_masked(text)!r} has a scheme: write HOST or HOST:PORT, such as {text.partition('://')[2]}"
            if "@" not in text
            else f"{_masked(text)!r} has a scheme: write HOST or HOST:PORT",
            param_hint=hint,
        )
    if text in HUB_ALIASES:
        return HUB
    name = text.lower()
    try:
        # A name without a dot or a port is a registry here, though in a reference it would be part of a repository.
        found = parse_reference(f"{name}/x" if any(c in name for c in ".:") or name == "localhost" else f"{name}.x/x")
    except ImageInvalid:
        found = None
    if not name or "/" in name or not isinstance(found, RegistryReference):
        raise click.BadParameter(
            f"{_masked(text)!r} is no registry: write HOST or HOST:PORT, such as registry.example:5000", param_hint=hint
        )
    return name


def _authority(parts: SplitResult) -> str:
    """`HOST` or `HOST:PORT` of a URL."""
    return parts.netloc.rpartition("@")[2].lower()


def _masked(text: str) -> str:
    """The text without what may be a password."""
    head, at, host = text.rpartition("@")
    return f"…@{host}" if at and head else text

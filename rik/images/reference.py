"""Image references as users write them.

    [registry/]repository[:tag][@digest]     a registry; Docker Hub when none is named, `latest` when neither tag nor
    digest is host                                     the node's own file system oci:DIR[:TAG]
    an OCI image layout oci-archive:FILE[:TAG]                   an OCI image layout in a tar file
    docker-archive:FILE[:REFERENCE]          what `docker save` writes

The grammar of registry references is that of github.com/distribution/reference. As with skopeo, the first colon after
the prefix ends a directory's or file's name. Pure: nothing is looked up.
"""

from __future__ import annotations

import re
from typing import Literal

import msgspec

from rik.images.errors import ImageInvalid

DEFAULT_REGISTRY = "docker.io"
DEFAULT_NAMESPACE = "library"
DEFAULT_TAG = "latest"
HOST = "host"

MAX_REFERENCE_CHARS = 4096  # a path's length; also bounds what is repeated in messages
MAX_REPOSITORY_CHARS = 255  # registry and repository together, as the distribution project has it

_DOMAIN = re.compile(
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*|\[[0-9A-Fa-f:]+\])"
)
_PORT = re.compile(r"[0-9]{1,5}")
_COMPONENT = re.compile(r"[a-z0-9]+(?:(?:\.|__|_|-+)[a-z0-9]+)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")

_ACCEPTED = (
    "an image is `[registry/]repository[:tag][@digest]`, `oci:DIR[:TAG]`, `oci-archive:FILE`, `docker-archive:FILE` "
    "or `host`"
)


class RegistryReference(msgspec.Struct, frozen=True, tag="registry"):
    """`tag` and `digest` may both be given (the digest decides), or one of them; never neither."""

    registry: str
    repository: str
    tag: str | None = None
    digest: str | None = None

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.registry}/{self.repository}{tag}{digest}"


class HostReference(msgspec.Struct, frozen=True, tag="host"):
    """The node's own file system: no layers, nothing to fetch."""

    def __str__(self) -> str:
        return HOST


class LayoutReference(msgspec.Struct, frozen=True, tag="oci"):
    """An OCI image layout directory; `name` None means its only image, or the one tagged `latest`."""

    directory: str
    name: str | None = None

    def __str__(self) -> str:
        return f"oci:{self.directory}" + (f":{self.name}" if self.name else "")


class ArchiveReference(msgspec.Struct, frozen=True, tag="archive"):
    """A tar file; `name` is a tag (oci) or a repository with its tag (docker); None means its only image, or
    `latest`."""

    format: Literal["oci", "docker"]
    file: str
    name: str | None = None

    def __str__(self) -> str:
        return f"{self.format}-archive:{self.file}" + (f":{self.name}" if self.name else "")


Reference = RegistryReference | HostReference | LayoutReference | ArchiveReference


def parse_reference(text: str) -> Reference:
    """Reads a reference; `str()` of the result is its full form, and reads back as the same. Raises ImageInvalid
    naming the wrong part."""
    if not text:
        raise ImageInvalid(f"the image is empty: {_ACCEPTED}")
    if len(text) > MAX_REFERENCE_CHARS:
        raise _invalid(text, f"it has {len(text):,} characters; at most {MAX_REFERENCE_CHARS:,} make sense")
    odd = next((c for c in text if not c.isprintable()), None)
    if odd is not None:
        shown = _without_password(text)[:100]
        raise ImageInvalid(f"{shown!a} is no image reference: it holds the unprintable character {odd!a}")
    if text == HOST:
        return HostReference()
    prefix, colon, rest = text.partition(":")
    if colon and prefix == "oci":
        return LayoutReference(*_split_path(text, rest, "directory"))
    if colon and prefix in ("oci-archive", "docker-archive"):
        file, name = _split_path(text, rest, "file")
        return ArchiveReference("oci" if prefix == "oci-archive" else "docker", file, name)
    return _parse_registry(text)


def familiar(reference: Reference) -> str:
    """The short form for people: `alpine:3.20` rather than `docker.io/library/alpine:3.20`."""
    text = str(reference)
    if isinstance(reference, RegistryReference):
        text = text.removeprefix(f"{DEFAULT_REGISTRY}/").removeprefix(f"{DEFAULT_NAMESPACE}/")
    return text


def is_digest(text: str) -> bool:
    """Whether `text` is a digest this program can check (and so has no `/` or `..` in it)."""
    return _DIGEST.fullmatch(text) is not None


def _split_path(text: str, rest: str, what: str) -> tuple[str, str | None]:
    path, colon, name = rest.partition(":")
    if rest.startswith("//"):
        raise _invalid(text, f"a {what} follows the colon directly, without `//`")
    if not path:
        raise _invalid(text, f"no {what} is named after the colon")
    if colon and not name:
        raise _invalid(text, f"nothing follows the colon after the {what}")
    return path, name or None


def _parse_registry(text: str) -> RegistryReference:
    scheme = _SCHEME.match(text)
    if scheme:
        raise _invalid(text, f"leave out `{scheme.group(0)}`")
    if text != _without_password(text):
        raise _invalid(text, "credentials are no part of it: `docker login` on the node keeps them")
    rest, at, digest = text.partition("@")
    if at and not _DIGEST.fullmatch(digest):
        raise _invalid(text, f"the digest {_quote(digest)} is not `sha256:` and 64 of 0-9 a-f")
    first, slash, remainder = rest.partition("/")
    if slash and (first == "localhost" or any(c in first for c in ".:[") or first != first.lower()):
        registry, path = first, remainder
        _check_registry(text, registry)
    else:
        registry, path = DEFAULT_REGISTRY, rest
    if registry in ("index.docker.io", "registry-1.docker.io"):
        registry = DEFAULT_REGISTRY  # other names of Docker Hub, from old documents
    path, colon, tag = path.partition(":")
    if colon and not _TAG.fullmatch(tag):
        raise _invalid(
            text, f"the tag {_quote(tag)} is not 1 to 128 of A-Z a-z 0-9 _ . -, starting with a letter, a digit or _"
        )
    _check_repository(text, path)
    if registry == DEFAULT_REGISTRY and "/" not in path:
        path = f"{DEFAULT_NAMESPACE}/{path}"
    if len(registry) + 1 + len(path) > MAX_REPOSITORY_CHARS:
        raise _invalid(text, f"registry and repository are longer than {MAX_REPOSITORY_CHARS} characters")
    return RegistryReference(registry, path, tag or (None if digest else DEFAULT_TAG), digest or None)


def _check_registry(text: str, registry: str) -> None:
    end = registry.rfind("]") + 1
    host, colon, port = registry[end:].partition(":")
    host = registry[:end] + host
    if not _DOMAIN.fullmatch(host):
        raise _invalid(text, f"the registry {_quote(registry)} is no host name or address")
    if colon and not (_PORT.fullmatch(port) and 0 < int(port) < 65536):
        raise _invalid(text, f"the registry's port {_quote(port)} is not a number from 1 to 65535")


def _check_repository(text: str, path: str) -> None:
    if not path:
        raise _invalid(text, f"no repository is named; {_ACCEPTED}")
    for component in path.split("/"):
        if _COMPONENT.fullmatch(component):
            continue
        if not component:
            raise _invalid(text, f"the repository {_quote(path)} has an empty part between slashes")
        if component != component.lower():
            raise _invalid(
                text, f"the repository {_quote(path)} has upper-case letters; did you mean {_quote(path.lower())}?"
            )
        raise _invalid(
            text,
            f"{_quote(component)} in the repository {_quote(path)} is not a-z and 0-9, "
            "with single . _ or dashes only in between",
        )


def _quote(text: str) -> str:
    return f"`{text if len(text) <= 100 else text[:100] + '…'}`"


def _without_password(text: str) -> str:
    """`user:password@host/…` is no reference, but people try it: what is between colon and @ is not repeated."""
    before, _, after = text.rpartition("@")
    scheme = _SCHEME.match(before)
    start = scheme.end() if scheme else 0
    name, colon, _ = before[start:].partition(":")
    return f"{before[:start]}{name}:…@{after}" if colon and "/" in after else text


def _invalid(text: str, cause: str) -> ImageInvalid:
    return ImageInvalid(f"{_quote(_without_password(text))} is no image reference: {cause}")

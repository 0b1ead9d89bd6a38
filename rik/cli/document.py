"""Workload documents from files, standard input and image references."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import click

from rik.cli.errors import CommandError, Usage
from rik.cli.spelling import spelled
from rik.errors import DocumentError

STDIN = "-"
JSON = "application/json"
YAML = "application/yaml"
MEDIA_TYPES = {".json": JSON, ".yaml": YAML, ".yml": YAML}
DOCUMENT_MAX_BYTES = 2**20  # what the server takes
NAME_MAX = 63
DIGEST_CHARS = 6  # of a document, in the name of a workload that was made for it


F = TypeVar("F", bound=Callable[..., Any])


class Source(NamedTuple):
    """A document as it was written; `name` is the file's, for messages."""

    name: str
    body: bytes
    media_type: str


def read_source(path: str) -> Source:
    """A file's bytes, or standard input's for `-`. Raises Usage when it cannot be read, CommandError when too large."""
    if path == STDIN:
        body, name = sys.stdin.buffer.read(DOCUMENT_MAX_BYTES + 1), "standard input"
    else:
        name = path
        try:
            with open(path, "rb") as file:
                body = file.read(DOCUMENT_MAX_BYTES + 1)
        except FileNotFoundError:
            raise Usage(f"there is no file {path}", next_step=_nearby(path)) from None
        except IsADirectoryError:
            raise Usage(
                f"{path} is a directory", next_step="name a file in it (an OCI image layout is written oci:DIR)"
            ) from None
        except OSError as error:
            raise Usage(f"{path} cannot be read: {error.strerror or error}") from error
    if len(body) > DOCUMENT_MAX_BYTES:
        raise CommandError(f"{name} is larger than a document may be (1 MiB)", next_step="is it the right file?")
    return Source(name, body, media_type_of(name))


def media_type_of(name: str) -> str:
    """By the file's suffix; without a known one YAML, which JSON is a part of."""
    return MEDIA_TYPES.get(Path(name).suffix.lower(), YAML)


def parse(source: Source) -> Any:
    """The document as plain data. Raises Usage with the place of a syntax error."""
    from rik.model.decoding import decode

    try:
        return decode(source.body, source.media_type)
    except DocumentError as error:
        raise Usage(f"{source.name}: {error.message}", next_step=error.next_step) from error


def looks_like_file(target: str) -> bool:
    """Whether `rik run TARGET` means a file: it is written as only a path is, or is there and holds a document.

    Of a file called `redis` nothing but its content says whether it or the image is meant.
    """
    if target == STDIN:
        return True
    if target.startswith(("oci:", "oci-archive:", "docker-archive:")):
        return False
    if target.startswith((".", "/", "~")) or Path(target).suffix.lower() in MEDIA_TYPES:
        return True
    return os.path.isfile(target) and (not _may_be_image(target) or _holds_mapping(target))


def _may_be_image(target: str) -> bool:
    from rik.images.errors import ImageInvalid
    from rik.images.reference import parse_reference

    try:
        parse_reference(target)
    except ImageInvalid:
        return False
    return True


def _holds_mapping(path: str) -> bool:
    """Whether the file can be read as an object, as every document is one."""
    try:
        return isinstance(parse(read_source(path)), dict)
    except CommandError:
        return False


def for_image(image: str, command: tuple[str, ...]) -> dict[str, Any]:
    """A document that runs `image`, named after it. Raises Usage when it is no image reference."""
    from rik.images.errors import ImageInvalid
    from rik.images.reference import parse_reference

    try:
        parse_reference(image)
    except ImageInvalid as error:
        raise Usage(
            error.message, next_step=error.next_step or "name a file, or an image such as alpine:latest"
        ) from error
    name = name_for(image)
    container: dict[str, Any] = {"name": name, "image": absolute_image(image)}
    if command:
        container["command"] = list(command)
    elif image == "host":
        raise Usage("the image `host` needs a command", next_step=spelled("run host -- COMMAND…"))
    return {"apiVersion": "v1", "kind": "Pod", "name": name, "spec": {"containers": [container]}}


def name_for(image: str) -> str:
    """A workload's name for an image: the last part of its repository, directory or file, as far as names allow."""
    prefix, _, rest = image.partition(":")
    if prefix in ("oci", "oci-archive", "docker-archive"):
        base = rest.partition(":")[0].rstrip("/").rpartition("/")[2]
        base = base.partition(".")[0] or base
    else:
        base = image.partition("@")[0].rpartition("/")[2].partition(":")[0]
    name = re.sub(r"[^a-z0-9]+", "-", base.lower()).strip("-")[:NAME_MAX].strip("-")
    return name or "image"


def absolute_image(image: str) -> str:
    """An image in a local directory or file by its full path: the server's working directory is not ours."""
    prefix, _, rest = image.partition(":")
    if prefix not in ("oci", "oci-archive", "docker-archive"):
        return image
    path, colon, tag = rest.partition(":")
    return f"{prefix}:{os.path.abspath(os.path.expanduser(path))}{colon}{tag}"


def with_command(document: Any, command: tuple[str, ...], source: str) -> Any:
    """The document with `command` in place of its only container's own. Raises Usage when there is not just one."""
    containers = (document.get("spec") or {}).get("containers") if isinstance(document, dict) else None
    if not isinstance(containers, list) or len(containers) != 1 or not isinstance(containers[0], dict):
        raise Usage(
            f"a command can only be given for a document with one container, which {source} has not",
            next_step="leave out what follows `--`, or write the command into the document",
        )
    changed = {key: value for key, value in containers[0].items() if key != "args"} | {"command": list(command)}
    return {**document, "spec": {**document["spec"], "containers": [changed]}}


def named_by_content(document: dict[str, Any]) -> dict[str, Any]:
    """The document under a name of its own: its name and a few digits of its content's digest."""
    digest = hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:DIGEST_CHARS]
    name = f"{str(document['name'])[: NAME_MAX - DIGEST_CHARS - 1].rstrip('-')}-{digest}"
    return {**document, "name": name}


def _nearby(path: str) -> str:
    """What else the user may have meant: a file beside it with nearly that name."""
    from difflib import get_close_matches

    folder = os.path.dirname(path) or "."
    try:
        names = os.listdir(folder)
    except OSError:
        return f"there is no directory {folder} either" if folder != "." else ""
    near = get_close_matches(os.path.basename(path), names, n=1)
    return f"did you mean {os.path.join(os.path.dirname(path), near[0])}?" if near else "check the path"


def file_option(required: bool = True) -> Callable[[F], F]:
    return click.option(
        "-f", "--file", "path", metavar="FILE|-", required=required, help="JSON or YAML; - is standard input."
    )

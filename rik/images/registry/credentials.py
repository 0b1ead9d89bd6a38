"""What this user may show to a registry: read from the files that docker, podman and skopeo keep, afresh each time.

Formats: Docker's `config.json` and containers-auth.json(5). In their order: `$REGISTRY_AUTH_FILE` alone when it is set;
else `$XDG_RUNTIME_DIR/containers/auth.json`, `$XDG_CONFIG_HOME/containers/auth.json` (`~/.config`) and
`$DOCKER_CONFIG/config.json` (`~/.docker`). The first that has something for the registry decides. Nothing here raises
for what is written in a file: a file that cannot be used is a problem to be told, and reading goes on without it.
"""

from __future__ import annotations

import base64
import binascii
import os
import pwd
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import trio

from rik.images.registry.credential_helpers import HelperFailed, ask_helper

# Files of people who are logged in everywhere have a few kilobytes.
MAX_FILE_BYTES = 1 << 20
_HUB = "docker.io"
_HUB_NAMES = frozenset({_HUB, "index.docker.io", "registry-1.docker.io"})
_HUB_KEY = "https://index.docker.io/v1/"


class Credential(msgspec.Struct, frozen=True):
    """A name and password, or one of the two tokens. Its text is never shown."""

    username: str = ""
    password: str = ""
    identity_token: str = ""
    registry_token: str = ""
    origin: str = ""

    def __repr__(self) -> str:
        return f"Credential(from {self.origin})"

    __str__ = __repr__


class Found(msgspec.Struct, frozen=True):
    """What was found for one registry: nothing, perhaps, and what stood in the way of looking everywhere."""

    credential: Credential | None = None
    problems: tuple[str, ...] = ()


class _File(msgspec.Struct):
    auths: dict[str, Any] = {}
    cred_helpers: dict[str, Any] = msgspec.field(default_factory=dict, name="credHelpers")
    creds_store: Any = msgspec.field(default="", name="credsStore")


async def find_credential(host: str, repository: str, environment: Mapping[str, str]) -> Found:
    """What is there for `repository` at `host` (`HOST[:PORT]`, `docker.io` for Docker Hub)."""
    problems: list[str] = []
    for path in auth_files(environment):
        try:
            file = await trio.to_thread.run_sync(_read, path, abandon_on_cancel=True)
            found = await _look_up(file, path, host.lower(), repository, environment) if file is not None else None
        except _Unusable as error:
            problems.append(f"{path} {error}")
        except HelperFailed as error:
            problems.append(f"{path}: {error}")
        else:
            if found is not None:
                return Found(found, tuple(problems))
    return Found(None, tuple(problems))


def auth_files(environment: Mapping[str, str]) -> list[Path]:
    """The files to read, whether they are there or not."""
    alone = environment.get("REGISTRY_AUTH_FILE")
    if alone:
        return [Path(alone)]
    runtime = environment.get("XDG_RUNTIME_DIR")
    home = _home(environment)
    files = [Path(runtime or f"/run/containers/{os.geteuid()}", *(["containers"] if runtime else []), "auth.json")]
    config = environment.get("XDG_CONFIG_HOME") or (home / ".config" if home else None)
    if config:
        files.append(Path(config, "containers", "auth.json"))
    docker = environment.get("DOCKER_CONFIG") or (home / ".docker" if home else None)
    if docker:
        files.append(Path(docker, "config.json"))
    return files


def _home(environment: Mapping[str, str]) -> Path | None:
    if environment.get("HOME"):
        return Path(environment["HOME"])
    try:
        return Path(pwd.getpwuid(os.geteuid()).pw_dir)
    except KeyError:
        return None


class _Unusable(Exception):
    """The file, or the entry that was looked for, cannot be used; the text says why, and holds no secret."""


def _read(path: Path) -> _File | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _Unusable(f"cannot be read: {error.strerror}") from None
    try:
        with os.fdopen(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise _Unusable("is no plain file")
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise _Unusable(f"cannot be read: {error.strerror}") from None
    if len(data) > MAX_FILE_BYTES:
        raise _Unusable(f"has more than {MAX_FILE_BYTES:,} bytes")
    if not data.strip():
        return None  # podman makes an empty file
    try:
        return msgspec.json.decode(data, type=_File)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _Unusable(f"cannot be read: {error}") from None


async def _look_up(
    file: _File, path: Path, host: str, repository: str, environment: Mapping[str, str]
) -> Credential | None:
    helpers = {_normal(key): name for key, name in file.cred_helpers.items()}
    auths = {_normal(key): entry for key, entry in file.auths.items()}
    names = _names(host, repository)
    for name in names:
        if name in helpers:
            return await _ask(helpers[name], name if name != _HUB else _HUB_KEY, path, environment)
    stored: Credential | None = None
    problem: HelperFailed | None = None
    if file.creds_store:
        try:
            stored = await _ask(file.creds_store, host if host != _HUB else _HUB_KEY, path, environment)
        except HelperFailed as error:
            problem = error
    if stored is not None:
        return stored
    for name in names:
        found = _entry(auths[name], name, path) if name in auths else None
        if found is not None:
            return found
    if problem is not None:
        raise problem
    return None


def _names(host: str, repository: str) -> list[str]:
    """The keys that may stand for it, the most particular first."""
    parts = repository.split("/")
    paths = ["/".join(parts[:count]) for count in range(len(parts), 0, -1)]
    return [*(f"{host}/{path}" for path in paths), host]


def _normal(key: str) -> str:
    """`https://index.docker.io/v1/` and the like, as keys were written over the years."""
    key = key.partition("://")[2] or key
    key = key.rstrip("/").removesuffix("/v1").removesuffix("/v2")
    host, slash, path = key.partition("/")
    host = host.lower()
    return (_HUB if host in _HUB_NAMES else host) + slash + path


def _entry(entry: Any, name: str, path: Path) -> Credential | None:
    if not isinstance(entry, dict):
        raise _Unusable(f"has an entry for {name} that is no object")
    origin = str(path)
    auth = entry.get("auth")
    username, password = entry.get("username") or "", entry.get("password") or ""
    if auth:
        username, password = _basic(auth, name)
    identity, registry = entry.get("identitytoken") or "", entry.get("registrytoken") or ""
    if not all(isinstance(value, str) for value in (username, password, identity, registry)):
        raise _Unusable(f"has an entry for {name} with something else than text in it")
    if not (username or identity or registry):
        return None  # docker leaves an empty entry where a credential helper keeps the secret
    return Credential(username, password, identity, registry, origin)


def _basic(auth: object, name: str) -> tuple[str, str]:
    try:
        if not isinstance(auth, str):
            raise ValueError
        text = base64.b64decode(auth + "=" * (-len(auth) % 4), validate=True).decode()
    except (ValueError, binascii.Error):
        raise _Unusable(f"has an `auth` for {name} that is not base64 of NAME:PASSWORD") from None
    username, colon, password = text.partition(":")
    if not colon:
        raise _Unusable(f"has an `auth` for {name} that is not base64 of NAME:PASSWORD")
    return username, password.rstrip("\0")


async def _ask(helper: object, server: str, path: Path, environment: Mapping[str, str]) -> Credential | None:
    answer = await ask_helper(helper, server, environment)
    if answer is None:
        return None
    username, secret = answer
    origin = f"docker-credential-{helper} (named in {path})"
    if username == "<token>":  # as the helpers' protocol has it
        return Credential(identity_token=secret, origin=origin)
    return Credential(username, secret, origin=origin)

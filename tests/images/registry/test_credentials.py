"""Credentials in the files of docker, podman and skopeo, and from their helpers."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest
import trio

from rik.images.registry import credential_helpers
from rik.images.registry.credentials import MAX_FILE_BYTES, Credential, Found, auth_files, find_credential

SECRET = "secret-of-mine"


def auth(name: str, secret: str = SECRET) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{name}:{secret}".encode()).decode()}


class Home:
    """A user's files and programs."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "bin").mkdir()
        self.environment = {"HOME": str(path), "PATH": f"{path}/bin:{os.environ['PATH']}"}
        self.docker = path / ".docker" / "config.json"
        self.podman = path / ".config" / "containers" / "auth.json"

    def write(self, path: Path, **fields: Any) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(fields))
        return path

    def helper(self, name: str, script: str) -> None:
        program = self.path / "bin" / f"docker-credential-{name}"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)

    async def find(self, host: str, repository: str = "org/app") -> Found:
        with trio.fail_after(10):
            return await find_credential(host, repository, self.environment)

    async def user(self, host: str, repository: str = "org/app") -> str | None:
        found = await self.find(host, repository)
        return found.credential.username if found.credential else None


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


@pytest.mark.parametrize(
    "key",
    [
        "reg.example:5000",
        "https://reg.example:5000",
        "http://reg.example:5000/",
        "https://reg.example:5000/v2/",
        "REG.example:5000",
    ],
)
async def test_keys(home: Home, key: str) -> None:
    """A registry is found under its name, as that was written over the years."""
    home.write(home.docker, auths={"other.example": auth("other"), key: auth("me")})
    assert await home.user("reg.example:5000") == "me"
    assert await home.user("reg.example") is None


@pytest.mark.parametrize("key", ["https://index.docker.io/v1/", "docker.io", "index.docker.io", "registry-1.docker.io"])
async def test_docker_hub(home: Home, key: str) -> None:
    """Docker Hub goes by several names."""
    home.write(home.docker, auths={key: auth("me")})
    assert await home.user("docker.io", "library/alpine") == "me"


async def test_namespaces(home: Home) -> None:
    """The most particular entry decides."""
    home.write(home.podman, auths={"quay.io": auth("all"), "quay.io/org": auth("org"), "quay.io/org/app": auth("app")})
    assert await home.user("quay.io", "org/app") == "app"
    assert await home.user("quay.io", "org/other") == "org"
    assert await home.user("quay.io", "organic/app") == "all"


async def test_order_of_files(home: Home) -> None:
    """The first file that has something for the registry decides; `REGISTRY_AUTH_FILE` stands alone."""
    home.write(
        home.docker, auths={"a.example": auth("docker"), "b.example": auth("docker"), "c.example": auth("docker")}
    )
    home.write(home.podman, auths={"a.example": auth("podman"), "b.example": auth("podman")})
    home.environment["XDG_RUNTIME_DIR"] = str(home.path / "run")
    home.write(home.path / "run" / "containers" / "auth.json", auths={"a.example": auth("login")})
    assert [await home.user(f"{name}.example") for name in "abc"] == ["login", "podman", "docker"]
    home.environment["DOCKER_CONFIG"] = str(home.path / "elsewhere")
    assert await home.user("c.example") is None
    alone = home.write(home.path / "alone.json", auths={"b.example": auth("alone")})
    home.environment["REGISTRY_AUTH_FILE"] = str(alone)
    assert [await home.user(f"{name}.example") for name in "abc"] == [None, "alone", None]


async def test_read_afresh(home: Home) -> None:
    """A login takes effect at the next pull."""
    assert await home.user("a.example") is None
    home.write(home.docker, auths={"a.example": auth("me")})
    assert await home.user("a.example") == "me"


async def test_kinds_of_entries(home: Home) -> None:
    """Base64 with or without its padding, plain fields, identity tokens and registry tokens."""
    bare = auth("me", SECRET + "\0\0")["auth"].rstrip("=")
    entries = {
        "a.example": {"auth": bare},
        "b.example": {"username": "me", "password": SECRET},
        "c.example": {**auth("00000000-0000-0000-0000-000000000000", ""), "identitytoken": SECRET},
        "d.example": {"registrytoken": SECRET},
        "e.example": auth("me", "a:b"),
        "f.example": {},
    }
    home.write(home.docker, auths=entries)
    origin = str(home.docker)
    found = {name: (await home.find(name)).credential for name in entries}
    assert found["a.example"] == found["b.example"] == Credential("me", SECRET, origin=origin)
    assert found["c.example"] is not None and found["c.example"].identity_token == SECRET
    assert found["d.example"] == Credential(registry_token=SECRET, origin=origin)
    assert found["e.example"] == Credential("me", "a:b", origin=origin)
    assert found["f.example"] is None


def test_secrets_are_not_shown() -> None:
    """A credential's texts do not hold it."""
    credential = Credential("me", SECRET, SECRET, SECRET, "a file")
    assert SECRET not in f"{credential} {credential!r} {Found(credential)!r}"


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"\xff\xfe",
        b"[]",
        b"null",
        b'{"auths": []}',
        b'{"auths": {"a.example": "text"}}',
        b'{"auths": {"a.example": {"auth": 5}}}',
        b'{"auths": {"a.example": {"auth": "%%%"}}}',
        b'{"auths": {"a.example": {"auth": "bm9jb2xvbg=="}}}',
        b'{"auths": {"a.example": {"username": ["me"]}}}',
        b'{"credsStore": "../../bin/sh"}',
        b'{"credsStore": 5}',
        b'{"credHelpers": {"a.example": "is-not-there"}}',
        b"[" * 1_000_000,
        b" " * (MAX_FILE_BYTES + 1),
    ],
)
async def test_unusable_files(home: Home, content: bytes) -> None:
    """A file that cannot be used is named with the reason, and the next one is read."""
    home.podman.parent.mkdir(parents=True)
    home.podman.write_bytes(content)
    home.write(home.docker, auths={"a.example": auth("me")})
    found = await home.find("a.example")
    assert found.credential is not None and found.credential.username == "me"
    (problem,) = found.problems
    assert str(home.podman) in problem and len(problem) < 500 and SECRET not in problem


async def test_files_that_are_none(home: Home) -> None:
    """Neither a FIFO nor a directory in a file's place holds anything up; an empty file is no problem."""
    home.docker.parent.mkdir()
    os.mkfifo(home.docker)
    home.podman.mkdir(parents=True)
    assert len((await home.find("a.example")).problems) == 2
    home.docker.unlink()
    home.docker.write_text("")
    home.podman.rmdir()
    assert await home.find("a.example") == Found()


@pytest.mark.require("ordinary-user", reason="root may read everything")
async def test_a_file_of_somebody_else(home: Home) -> None:
    """A file that may not be read is a problem, not a failure."""
    home.write(home.docker, auths={}).chmod(0)
    (problem,) = (await home.find("a.example")).problems
    assert "Permission denied" in problem


def test_without_home() -> None:
    """Without HOME the user's directory is that of the password database; nothing is looked for in the root."""
    files = [str(path) for path in auth_files({})]
    assert len(files) == 3 and files[2].endswith("/.docker/config.json")
    assert auth_files({"HOME": ""})[2] == Path(files[2])


# -- helpers -----------------------------------------------------------------------------------------------------------


async def test_helper_of_a_registry(home: Home) -> None:
    """A registry's own helper is asked by `get` with its name, before all else in that file."""
    home.helper("mine", f'read -r host; echo "{{\\"Username\\": \\"$1 $host\\", \\"Secret\\": \\"{SECRET}\\"}}"')
    home.write(home.docker, credHelpers={"a.example": "mine"}, credsStore="other", auths={"a.example": auth("file")})
    found = (await home.find("a.example")).credential
    assert found is not None and (found.username, found.password) == ("get a.example", SECRET)
    assert "docker-credential-mine" in found.origin


async def test_store_of_all(home: Home) -> None:
    """`credsStore` is asked for every registry, for Docker Hub by its old name; what it does not know may be in the
    file."""
    home.helper(
        "store",
        'read -r host; case $host in *docker.io/v1/) echo \'{"Username": "<token>", "Secret": "t"}\';;'
        " *) echo 'credentials not found in native keychain'; exit 1;; esac",
    )
    home.write(home.docker, credsStore="store", auths={"a.example": auth("file"), "b.example": {}})
    assert (await home.find("docker.io")).credential == Credential(
        identity_token="t", origin=f"docker-credential-store (named in {home.docker})"
    )
    assert await home.user("a.example") == "file"
    assert await home.find("b.example") == Found()


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("exit 3", "exit code 3"),
        ("echo out of order; exit 1", "out of order"),
        ("echo garbage", "something else"),
        (f'echo \'{{"Secret": "{SECRET}"\'; exit 1', "exit code 1"),
        ("head -c 3000000 /dev/zero", "more than"),
        ("kill -9 $$", "exit code -9"),
    ],
)
async def test_helpers_that_fail(home: Home, script: str, words: str) -> None:
    """A helper that fails is a problem that says how, without its secrets; the file itself may still serve."""
    home.helper("bad", script)
    home.write(home.docker, credsStore="bad", auths={"a.example": auth("file")})
    (problem,) = (await home.find("b.example")).problems
    assert words in problem and "docker-credential-bad" in problem and SECRET not in problem
    assert await home.user("a.example") == "file"


async def test_a_helper_that_never_ends(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """A helper that is late is killed with all that it has started."""
    monkeypatch.setattr(credential_helpers, "HELPER_DEADLINE_S", 0.5)
    home.helper("slow", f"sleep 300 & echo $! > {home.path}/child; wait")
    home.write(home.docker, credsStore="slow")
    (problem,) = (await home.find("a.example")).problems
    assert "did not answer within" in problem
    await is_gone(int((home.path / "child").read_text()))


async def test_a_helper_that_is_given_up(home: Home) -> None:
    """A cancelled pull leaves no helper."""
    home.helper("slow", f"sleep 300 & echo $! > {home.path}/child; wait")
    home.write(home.docker, credsStore="slow")
    with trio.move_on_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(home.find, "a.example")
            child = home.path / "child"
            while not (child.exists() and child.read_text()):
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
    await is_gone(int(child.read_text()))


async def test_what_helpers_are_told(home: Home) -> None:
    """A helper gets the environment, but nothing of RIK's own in it."""
    home.environment |= {"RIK_TOKEN": SECRET, "AWS_PROFILE": "mine"}
    home.helper("env", f"env > {home.path}/env; exit 1")
    home.write(home.docker, credsStore="env")
    await home.find("a.example")
    told = (home.path / "env").read_text()
    assert "AWS_PROFILE=mine" in told and SECRET not in told


async def is_gone(pid: int) -> None:
    with trio.fail_after(5):
        while True:
            try:
                state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            except FileNotFoundError:
                return
            if state in "ZX":
                return
            await trio.sleep(0.02)

"""Documents from files and images."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rik.cli import document
from rik.cli.errors import Usage
from rik.model.document import validate

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


@pytest.mark.parametrize(
    ("image", "name"),
    [
        ("alpine", "alpine"),
        ("alpine:3.20", "alpine"),
        ("registry.example:5000/team/My_App:v1", "my-app"),
        ("nginx@sha256:" + "0" * 64, "nginx"),
        ("127.0.0.1:5000/app@sha256:" + "0" * 64, "app"),
        ("localhost:5000/team/app:v1.2@sha256:" + "0" * 64, "app"),
        ("ghcr.io/team/my__app", "my-app"),
        ("registry.example/" + "a" * 80, "a" * 63),
        ("oci:/srv/images/busybox/:latest", "busybox"),
        ("docker-archive:./app.tar.gz", "app"),
        ("host", "host"),
    ],
)
def test_name_for_an_image(image: str, name: str) -> None:
    """A workload that is made for an image is named after the last part of its repository, directory or file."""
    assert document.name_for(image) == name


def test_document_for_an_image() -> None:
    """An image becomes a valid document of one container."""
    made = document.for_image("alpine:latest", ("echo", "hi"))
    assert validate(made).document["spec"]["containers"] == [
        {"name": "alpine", "image": "alpine:latest", "command": ["echo", "hi"]}
    ]


def test_local_images_are_named_in_full(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A relative directory is made absolute, since the server's working directory is another."""
    monkeypatch.chdir(tmp_path)
    assert document.absolute_image("oci:layout:v1") == f"oci:{tmp_path}/layout:v1"
    assert document.absolute_image("oci-archive:a.tar") == f"oci-archive:{tmp_path}/a.tar"
    assert document.absolute_image("alpine") == "alpine"


@pytest.mark.parametrize(
    ("target", "is_file"),
    [
        ("-", True),
        ("hello.json", True),
        ("deploy.YAML", True),
        ("./hello", True),
        ("/tmp/x", True),
        ("~/x", True),
        ("alpine", False),
        ("alpine:3.20", False),
        ("registry.example/team/app", False),
        ("oci:./layout.json", False),
    ],
)
def test_file_or_image(target: str, is_file: bool) -> None:
    """What is written as only a path is, is a file, there or not; everything else is an image."""
    assert document.looks_like_file(target) is is_file


def test_file_called_like_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file called like an image is run when it holds a document, and does not hide the image otherwise."""
    monkeypatch.chdir(tmp_path)
    for text in ('{"kind": "Pod"}', "apiVersion: v1\nname: x\n"):
        (tmp_path / "alpine").write_text(text)
        assert document.looks_like_file("alpine")
    for content in (b"\x7fELF\x02\x01\0", b"#!/bin/sh\nexec redis\n", b"", b"alpine: [", b"- a\n"):
        (tmp_path / "alpine").write_bytes(content)
        assert not document.looks_like_file("alpine")
        assert document.looks_like_file("./alpine")
    (tmp_path / "Pod file").write_bytes(b"")
    assert document.looks_like_file("Pod file"), "it can be nothing else"
    (tmp_path / "redis").mkdir()
    assert not document.looks_like_file("redis")


def test_missing_file(tmp_path: Path) -> None:
    """A file that is not there is an error that names the likely one beside it."""
    (tmp_path / "hello.json").write_text("{}")
    with pytest.raises(Usage) as caught:
        document.read_source(str(tmp_path / "helo.json"))
    assert f"did you mean {tmp_path / 'hello.json'}?" in caught.value.next_step


@pytest.mark.parametrize("text", ["", "{", "[1,", "a: [", "\ufeff", '{"a": 1, "a": 2}'])
def test_unreadable_documents(tmp_path: Path, text: str) -> None:
    """A syntax error is an error of usage that names the file."""
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(Usage, match=r"bad\.yaml: "):
        document.parse(document.read_source(str(path)))


def test_command_for_a_document() -> None:
    """A command replaces that of the only container, arguments included."""
    changed = document.with_command(
        {"spec": {"containers": [{"name": "a", "image": "host", "command": ["x"], "args": ["y"]}]}}, ("z",), "f"
    )
    assert changed["spec"]["containers"] == [{"name": "a", "image": "host", "command": ["z"]}]
    with pytest.raises(Usage, match="one container"):
        document.with_command({"spec": {"containers": [{}, {}]}}, ("z",), "f")


def test_name_by_content() -> None:
    """Two documents of one name get names of their own, the same one each time."""
    first = document.named_by_content({"name": "a" * 63, "spec": {"x": 1}})
    second = document.named_by_content({"name": "a" * 63, "spec": {"x": 2}})
    assert first["name"] != second["name"]
    assert first == document.named_by_content({"name": "a" * 63, "spec": {"x": 1}})
    assert len(first["name"]) <= 63


@pytest.mark.parametrize("path", sorted(EXAMPLES.rglob("*.json")), ids=lambda path: path.stem)
def test_examples_are_valid(path: Path) -> None:
    """Every example is a valid document without warnings."""
    assert validate(json.loads(path.read_text())).warnings == ()

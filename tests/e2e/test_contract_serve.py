"""`rik serve` takes every option by flag, by variable and from a file, as `contract.md` promises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest

from rik.cli.serve import make_settings, serve
from rik.settings import Settings
from tests.e2e.server import Client, serving


def parse(*arguments: str) -> Settings:
    context = serve.make_context("serve", list(arguments))
    options: dict[str, Any] = {key: value for key, value in context.params.items() if key != "config"}
    return make_settings(options)


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "serve.yaml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("label", ["[zone=a, disk=ssd]", "{zone: a, disk: ssd}"])
def test_lists_in_a_file(tmp_path: Path, label: str) -> None:
    """What may be given several times is a list in the file; labels may be a mapping too."""
    text = f"label: {label}\nallow-dir:\n  - {tmp_path}\n  - /opt\nroles: [api, scheduler]\n"
    settings = parse("--config", write(tmp_path, text))
    assert settings.worker.labels == {"zone": "a", "disk": "ssd"}
    assert settings.allow_dirs == (tmp_path.resolve(), Path("/opt"))
    assert settings.roles == ("api", "scheduler")


def test_one_of_a_list_in_a_file(tmp_path: Path) -> None:
    """A list of one may be written without the list."""
    settings = parse("--config", write(tmp_path, f"label: zone=a\nallow_dir: {tmp_path}\n"))
    assert settings.worker.labels == {"zone": "a"}
    assert settings.allow_dirs == (tmp_path.resolve(),)


def test_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The flag counts more than the variable, and the variable more than the file."""
    config = write(tmp_path, "node: of-the-file\nplacement: binpack\n")
    assert parse("--config", config).worker.node == "of-the-file"
    monkeypatch.setenv("RIK_SERVE_CONFIG", config)
    assert parse().scheduler.placement == "binpack"
    monkeypatch.setenv("RIK_SERVE_NODE", "of-the-variable")
    assert parse().worker.node == "of-the-variable"
    assert parse("--node", "of-the-flag").worker.node == "of-the-flag"


def test_an_unknown_key(tmp_path: Path) -> None:
    """A key that is no option is wrong usage, and the nearest one is named."""
    with pytest.raises(click.BadParameter, match="did you mean `listen`"):
        parse("--config", write(tmp_path, "listn: 127.0.0.1:0\n"))


async def test_a_further_name(tmp_path: Path) -> None:
    """A Host that nobody allowed is refused, naming the option; one given by --allow-host is served."""
    options = ("--runtime", "fake", "--allow-host", "rik.example.org")
    async with serving(tmp_path / "data", *options) as server, Client(server.url) as client:
        allowed = await client.http.get("/healthz", headers={"Host": "rik.example.org"})
        refused = await client.http.get("/healthz", headers={"Host": "rebound.example.org"})
    assert allowed.status_code == 200
    assert refused.status_code == 403
    assert "--allow-host" in refused.text

"""The options of `rik serve` about images: flags, variables, the file, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest

from rik.cli.parameters import Size
from rik.cli.serve import make_settings, serve
from rik.settings import ImageSettings


def parse(*arguments: str) -> ImageSettings:
    context = serve.make_context("serve", list(arguments))
    options: dict[str, Any] = {key: value for key, value in context.params.items() if key != "config"}
    return make_settings(options).images


def test_defaults() -> None:
    """Without any option the bounds are those of the settings themselves."""
    assert parse() == ImageSettings()


def test_flags() -> None:
    """Every bound is a flag, in the units people write."""
    flags = {
        "--insecure-registry": "Registry.Example:5000",
        "--image-max-size": "1.5GB",
        "--image-max-files": "5_000",
        "--image-max-ratio": "50",
        "--image-ratio-after": "0",
        "--image-keep": "2w",
        "--image-cache": "0",
        "--image-prune-interval": "1h",
        "--pull-idle": "1m",
        "--pull-parallel": "8",
    }
    settings = parse(*(part for flag in flags.items() for part in flag))
    assert settings == ImageSettings(
        insecure_registries=("registry.example:5000",),
        max_bytes=1_500_000_000,
        max_entries=5_000,
        max_ratio=50,
        ratio_free_bytes=0,
        keep_unused_s=14 * 86_400.0,
        cache_bytes=0,
        prune_interval_s=3600.0,
        idle_s=60.0,
        downloads_at_once=8,
    )


def test_mirrors_by_flag() -> None:
    """Mirrors keep their order, lose a slash at the end, and Docker Hub is known by its other names too."""
    settings = parse(
        "--registry-mirror",
        "docker.io=https://mirror.example/hub/",
        "--registry-mirror",
        "index.docker.io=http://127.0.0.1:5001",
        "--insecure-registry",
        "cache.example",
        "--registry-mirror",
        "ghcr.io=http://cache.example:81",
    )
    assert settings.mirrors == (
        ("docker.io", "https://mirror.example/hub"),
        ("docker.io", "http://127.0.0.1:5001"),
        ("ghcr.io", "http://cache.example:81"),
    )


def test_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """What may be given several times stands in a variable with spaces between."""
    monkeypatch.setenv("RIK_SERVE_REGISTRY_MIRROR", "docker.io=https://a.example ghcr.io=https://b.example")
    monkeypatch.setenv("RIK_SERVE_INSECURE_REGISTRY", "a.example b.example:5000")
    monkeypatch.setenv("RIK_SERVE_IMAGE_CACHE", "10Gi")
    settings = parse()
    assert settings.mirrors == (("docker.io", "https://a.example"), ("ghcr.io", "https://b.example"))
    assert settings.insecure_registries == ("a.example", "b.example:5000")
    assert settings.cache_bytes == 10 * 2**30


def test_file(tmp_path: Path) -> None:
    """In the file mirrors are a mapping, of one URL or of several to a registry."""
    path = tmp_path / "serve.yaml"
    path.write_text(
        "registry-mirror:\n"
        "  docker.io: [https://a.example, https://b.example]\n"
        "  ghcr.io: https://c.example\n"
        "insecure-registry: [registry.example:5000]\n"
        "image-max-files: 1000\nimage-keep: 0\npull-idle: 90\n"
    )
    settings = parse("--config", str(path))
    assert settings.mirrors == (
        ("docker.io", "https://a.example"),
        ("docker.io", "https://b.example"),
        ("ghcr.io", "https://c.example"),
    )
    assert settings.insecure_registries == ("registry.example:5000",)
    assert (settings.max_entries, settings.keep_unused_s, settings.idle_s) == (1000, 0.0, 90.0)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--registry-mirror", "https://mirror.example"], "names no registry"),
        (["--registry-mirror", "docker.io=mirror.example"], "is no URL of a mirror"),
        (["--registry-mirror", "docker.io=ftp://mirror.example"], "is no URL of a mirror"),
        (["--registry-mirror", "docker.io=https://"], "is no URL of a mirror"),
        (["--registry-mirror", "docker.io=https://mirror.example:99999"], "is no URL"),
        (["--registry-mirror", "docker.io=https://mirror.example/?a=b"], r"without \? or #"),
        (["--registry-mirror", "docker.io=http://mirror.example"], "--insecure-registry mirror.example"),
        (["--registry-mirror", "https://docker.io=https://mirror.example"], "such as docker.io"),
        (["--registry-mirror", "=https://mirror.example"], "is no registry"),
        (["--insecure-registry", "http://registry.example"], "such as registry.example"),
        (["--insecure-registry", "registry.example/team"], "is no registry"),
        (["--insecure-registry", "registry.example:0"], "is no registry"),
        (["--insecure-registry", ""], "is no registry"),
        (["--image-max-size", "0"], "no image may be unpacked"),
        (["--image-max-size", "-5G"], "is no size"),
        (["--image-max-size", "much"], "is no size"),
        (["--image-max-files", "0"], "no image may be unpacked"),
        (["--image-max-files", "1.5"], "is no number"),
        (["--image-max-ratio", "0"], "no layer may be unpacked"),
        (["--image-prune-interval", "0"], "nothing else would be done"),
        (["--image-keep", "-1d"], "is no duration"),
        (["--pull-idle", "0"], "has stalled before it began"),
        (["--pull-parallel", "0"], "nothing may be downloaded"),
        (["--pull-parallel", "1000"], "at most 64"),
    ],
)
def test_refused(arguments: list[str], why: str) -> None:
    """What makes no sense is wrong usage that names the option and what is wrong with the value."""
    with pytest.raises(click.BadParameter, match=why) as caught:
        parse(*arguments)
    assert arguments[0] in caught.value.format_message()


@pytest.mark.parametrize(
    "given",
    ["docker.io=https://user:hush@mirror.example", "https://user:hush@mirror.example", "user:hush@docker.io=https://a"],
)
def test_credentials_are_not_repeated(given: str) -> None:
    """A mirror's URL with a password in it is refused, and the password is not shown again."""
    with pytest.raises(click.BadParameter) as caught:
        parse("--registry-mirror", given)
    assert "hush" not in caught.value.format_message()


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1048576", 2**20),
        ("20G", 20 * 10**9),
        ("20GB", 20 * 10**9),
        ("20 GB", 20 * 10**9),
        ("20Gi", 20 * 2**30),
        ("20GiB", 20 * 2**30),
        ("512mi", 512 * 2**20),
        ("100k", 100_000),
        ("0.5T", 5 * 10**11),
    ],
)
def test_sizes(text: str, size: int) -> None:
    """G and GB are 10**9 bytes, Gi and GiB 2**30."""
    assert Size().convert(text, None, None) == size

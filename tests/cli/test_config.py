"""Where the server's address and the token come from."""

from __future__ import annotations

from pathlib import Path

import pytest

from rik.cli.config import DEFAULT_SERVER, load_cluster, parse_server
from rik.cli.errors import Usage


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RIKCONFIG", "RIK_CLUSTER_SERVER", "RIK_CLUSTER_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_default() -> None:
    """Without any configuration the server is the one that `rik serve` starts by default."""
    assert load_cluster(None, None).url == DEFAULT_SERVER


def test_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The flag counts more than the variable, and the variable more than the file."""
    write(tmp_path / ".rik/config.yaml", "cluster:\n  name: home\n  server: http://file:1\n  token: from-file\n")
    assert load_cluster(None, None).authority == "file:1"
    assert load_cluster(None, None).token == "from-file"
    monkeypatch.setenv("RIK_CLUSTER_SERVER", "http://variable:2")
    monkeypatch.setenv("RIK_CLUSTER_TOKEN", "from-variable")
    assert load_cluster(None, None).authority == "variable:2"
    assert load_cluster(None, None).token == "from-variable"
    flagged = load_cluster("http://flag:3", "from-flag")
    assert (flagged.authority, flagged.token) == ("flag:3", "from-flag")


def test_named_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """RIKCONFIG names a JSON or YAML file; a certificate in it is found relative to the file."""
    path = write(
        tmp_path / "elsewhere/rik.json", '{"cluster": {"server": "https://rik.example:8443/x/", "ca": "ca.pem"}}'
    )
    monkeypatch.setenv("RIKCONFIG", str(path))
    cluster = load_cluster(None, None)
    assert cluster.url == "https://rik.example:8443/x"
    assert cluster.ca == str(tmp_path / "elsewhere/ca.pem")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "neither JSON nor YAML"),
        ("[]", "has no `cluster`"),
        ("cluster: 5", "has no `cluster`"),
        ("cluster: {server: 5}", "`cluster.server` must be a text, not int"),
        ("cluster: {server: 'ftp://x'}", "is no server address"),
        ("cluster: {token: 'two words'}", "characters that no token has"),
        ("\x00", "neither JSON nor YAML"),
    ],
)
def test_malformed_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, sentence: str) -> None:
    """A malformed configuration file is an error of usage that names what is wrong with it."""
    monkeypatch.setenv("RIKCONFIG", str(write(tmp_path / "bad.yaml", text)))
    with pytest.raises(Usage, match=sentence):
        load_cluster(None, None)


def test_missing_named_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A file that RIKCONFIG names must be there; the one in the home directory need not."""
    monkeypatch.setenv("RIKCONFIG", str(tmp_path / "none.yaml"))
    with pytest.raises(Usage, match="does not exist"):
        load_cluster(None, None)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("127.0.0.1:6000", "http://127.0.0.1:6000"),
        ("rik.example", "http://rik.example:80"),
        ("https://rik.example/", "https://rik.example:443"),
        ("http://[::1]:5000", "http://[::1]:5000"),
    ],
)
def test_addresses(url: str, expected: str) -> None:
    """A server is given as a URL or as HOST:PORT."""
    assert parse_server(url).url == expected


@pytest.mark.parametrize("url", ["http://", "unix:///x", "http://host:port", "http://host:99999", "http://[::1"])
def test_bad_addresses(url: str) -> None:
    """What is no address is refused with an example of one."""
    with pytest.raises(Usage) as caught:
        parse_server(url, "--server")
    assert "from --server" in caught.value.message
    assert DEFAULT_SERVER in caught.value.next_step

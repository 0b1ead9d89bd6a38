"""A server behind TLS."""

from __future__ import annotations

import http.server
import json
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.test_main import rik
from tests.images.registry.certificate import self_signed


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A file with a self-signed certificate for 127.0.0.1 and its key."""
    _, public = self_signed(tmp_path)
    path = tmp_path / "both.pem"
    path.write_bytes((tmp_path / "key.pem").read_bytes() + public.read_bytes())
    return path


@pytest.fixture
def url(certificate: Path) -> Iterator[str]:
    """Something that speaks HTTP over TLS, and is not RIK."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"https://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_unknown_authority(url: str) -> None:
    """A certificate that nobody vouches for ends the call, with the setting that names its authority."""
    done = rik("get", "nodes", "--server", url)
    assert done.returncode == 3
    assert f"the certificate of {url} is not trusted" in done.stderr
    assert "next: set `cluster.ca`" in done.stderr


def test_configured_authority(url: str, certificate: Path, tmp_path: Path) -> None:
    """With the authority in the configuration file the call goes through, and something else than RIK is found out."""
    path = tmp_path / "rik.json"
    path.write_text(json.dumps({"cluster": {"server": url, "ca": certificate.name}}))
    done = rik("get", "nodes", env={"RIKCONFIG": str(path)})
    assert done.returncode == 1
    assert "not in the way RIK does" in done.stderr


def test_tls_where_there_is_none(url: str) -> None:
    """http to a TLS port says what it is."""
    done = rik("get", "nodes", "--server", url.replace("https", "http"))
    assert done.returncode == 3
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr

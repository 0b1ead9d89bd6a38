"""A server behind TLS."""

from __future__ import annotations

import datetime
import http.server
import ipaddress
import json
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.cli.test_main import rik


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A file with a self-signed certificate for 127.0.0.1 and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "rik test")])
    now = datetime.datetime.now(datetime.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "certificate.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + built.public_bytes(serialization.Encoding.PEM))
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

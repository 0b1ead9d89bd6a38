"""Whom pulls believe: the authorities that docker and podman are told of for one registry, and no others."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from rik.images.errors import ImagePullFailed
from rik.images.registry import registries as registries_module
from rik.images.registry.failures import Refusal
from rik.images.registry.tls import TlsContexts
from tests.images.registry.certificate import self_signed
from tests.images.registry.hostile import HostileRegistry, serving_registry
from tests.images.registry.pulling import pull, registries_in
from tests.images.registry.scene import LOWER

pytestmark = pytest.mark.usefixtures("nothing_stays", "home")


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[ssl.SSLContext, Path]:
    return self_signed(tmp_path)


@pytest.fixture
async def registry(certificate: tuple[ssl.SSLContext, Path]) -> AsyncIterator[HostileRegistry]:
    async with serving_registry(tls=certificate[0]) as registry:
        yield registry


async def test_certs_d(
    registry: HostileRegistry,
    certificate: tuple[ssl.SSLContext, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An authority in `certs.d/HOST:PORT` is believed for that registry, from the next pull on."""
    folder = tmp_path / "certs.d"
    monkeypatch.setattr(registries_module, "TlsContexts", lambda: TlsContexts([folder]))
    registries = registries_in(tmp_path)
    image = registry.publish(LOWER)
    with pytest.raises(ImagePullFailed, match=r"certificate .* not trusted") as caught:
        await pull(registries, image.reference)
    assert f"/etc/docker/certs.d/{registry.address}/ca.crt" in caught.value.next_step
    for name in ("127.0.0.1", registry.address):
        (folder / name).mkdir(parents=True)
    authority = certificate[1].read_bytes()
    (folder / "127.0.0.1" / "ca.crt").write_bytes(authority)
    with pytest.raises(ImagePullFailed, match="not trusted"):
        await pull(registries, image.reference)
    (folder / registry.address / "ca.crt").write_bytes(authority)
    assert (await pull(registries, image.reference))[0].digest == image.digest


@pytest.mark.parametrize("name", ["ca.crt", "me.cert"])
async def test_files_that_are_no_certificates(tmp_path: Path, name: str) -> None:
    """A file that is none is named."""
    (tmp_path / "a.example").mkdir()
    (tmp_path / "a.example" / name).write_text("garbage")
    with pytest.raises(Refusal, match=f"{name}.*cannot be used"):
        await TlsContexts([tmp_path]).get("a.example", insecure=False)


async def test_shared() -> None:
    """The system's authorities are read once; insecure registries get a context of their own."""
    contexts = TlsContexts([])
    usual = await contexts.get("a.example", insecure=False)
    assert await contexts.get("b.example", insecure=False) is usual
    assert usual.verify_mode == ssl.CERT_REQUIRED and usual.check_hostname
    unverified = await contexts.get("a.example", insecure=True)
    assert unverified.verify_mode == ssl.CERT_NONE
    assert await contexts.get("a.example", insecure=False) is usual

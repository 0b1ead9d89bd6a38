"""Whom this node believes: the system's authorities, and those that docker and podman are told of for one registry."""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Sequence
from pathlib import Path

import trio

from rik.images.registry.failures import Refusal

CERTIFICATE_FOLDERS = (Path("/etc/docker/certs.d"), Path("/etc/containers/certs.d"))


class TlsContexts:
    """The contexts of a whole store, made when they are first needed: reading the system's authorities takes 20 ms."""

    def __init__(self, folders: Sequence[Path] = CERTIFICATE_FOLDERS) -> None:
        self._folders = folders
        self._system: ssl.SSLContext | None = None
        self._unverified: ssl.SSLContext | None = None

    async def get(self, host: str, *, insecure: bool) -> ssl.SSLContext:
        """For `HOST[:PORT]`; `insecure`: any certificate will do. What lies in `certs.d/HOST[:PORT]/` is read afresh:
        `*.crt` are authorities, `NAME.cert` with `NAME.key` what this node shows of itself. Raises Refusal."""
        return await trio.to_thread.run_sync(self._get, host, insecure)

    def _get(self, host: str, insecure: bool) -> ssl.SSLContext:
        authorities = list(self._files(host, ".crt"))
        pairs = [(path, path.with_suffix(".key")) for path in self._files(host, ".cert")]
        if not authorities and not pairs:
            return self._shared(insecure)
        context = _new(insecure)
        for path in authorities:
            try:
                context.load_verify_locations(path)
            except OSError as error:  # an SSLError is one
                raise Refusal(f"the certificate {path} cannot be used: {error.strerror or error}") from None
        for certificate, key in pairs:
            try:
                context.load_cert_chain(certificate, key, password=_no_password)
            except (OSError, ValueError) as error:
                raise Refusal(f"the certificate {certificate} and {key.name} cannot be used: {error}") from None
        return context

    def _shared(self, insecure: bool) -> ssl.SSLContext:
        if insecure:
            self._unverified = self._unverified or _new(insecure=True)
            return self._unverified
        self._system = self._system or _new(insecure=False)
        return self._system

    def _files(self, host: str, suffix: str) -> Iterator[Path]:
        for folder in self._folders:
            try:
                yield from sorted(path for path in (folder / host).iterdir() if path.suffix == suffix)
            except OSError:
                continue  # it is not there, as for most registries, or not for us to read


def _new(insecure: bool) -> ssl.SSLContext:
    if insecure:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    context = ssl.create_default_context()
    paths = ssl.get_default_verify_paths()
    if paths.cafile is None and paths.capath is None:
        # A Python that was built elsewhere looks for them in vain; certifi comes with httpx.
        import certifi

        context.load_verify_locations(certifi.where())
    return context


def _no_password() -> str:
    """Else OpenSSL would ask at the terminal."""
    return ""

"""The way in: all registries, for one store of images.

It holds what pulls share: tokens, the certificates believed in, and the downloads under way. Everything else is made
for one pull and closed at its end. httpx, which takes a tenth of a second to load, is loaded at the first pull.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast

import trio

from rik.images.manifest import Platform
from rik.images.reference import DEFAULT_REGISTRY, RegistryReference
from rik.images.registry.authorization import Authorization, Tokens
from rik.images.registry.client import Client
from rik.images.registry.credentials import find_credential
from rik.images.registry.downloads import Downloads
from rik.images.registry.endpoints import HUB_HOST, Endpoint, endpoints_of
from rik.images.registry.source import RegistrySource
from rik.images.registry.tls import TlsContexts
from rik.images.source import Source
from rik.settings import ImageSettings

if TYPE_CHECKING:
    from rik.images.registry.transport import Transport

log = logging.getLogger(__name__)

# How long a mirror is passed over that delivered a damaged layer.
DISTRUSTED_S = 600.0


class Registries:
    """`directory` takes what is being downloaded, as files without a name; it is made when it is needed."""

    def __init__(self, settings: ImageSettings, directory: Path) -> None:
        self._settings = settings
        self._downloads = Downloads(directory, settings)
        self._tls = TlsContexts()
        self._tokens = Tokens()
        self._configs: dict[str, bytes] = {}
        self._distrusted: dict[str, float] = {}
        self._insecure = settings.insecure_registries
        if DEFAULT_REGISTRY in self._insecure:
            self._insecure += (HUB_HOST,)

    def source(self, reference: RegistryReference, wanted: Platform) -> Source:
        """For one pull. Nothing is asked yet."""
        endpoints = [
            endpoint
            for endpoint in endpoints_of(reference, self._settings.mirrors, self._insecure)
            if not (endpoint.mirror and self._is_distrusted(endpoint))
        ]

        known: dict[Endpoint, Authorization] = {}

        @asynccontextmanager
        async def open_clients() -> AsyncIterator[Sequence[Client]]:
            # Whoever waits for a mirror that says nothing must have patience left for the registry.
            hurry = len(endpoints) + 1
            async with await self._transport(1) as patient, await self._transport(hurry) as hurried:
                yield [
                    self._client(endpoint, reference.repository, hurried if endpoint.mirror else patient, known)
                    for endpoint in endpoints
                ]

        return RegistrySource(reference, wanted, self._downloads, open_clients, self._distrust, self._configs)

    def _client(
        self, endpoint: Endpoint, repository: str, transport: Transport, known: dict[Endpoint, Authorization]
    ) -> Client:
        async def authorize(base: str) -> Authorization:
            found = await find_credential(endpoint.host, repository, os.environ)
            for problem in found.problems:
                log.warning("credentials for %s: %s", endpoint.host, problem)
            return Authorization(endpoint, base, repository, found, self._tokens, self._insecure)

        return Client(endpoint, repository, transport, authorize, known)

    async def _transport(self, hurry: int) -> Transport:
        name = "rik.images.registry.transport"
        module = await trio.to_thread.run_sync(importlib.import_module, name)
        made = module.Transport(
            self._tls,
            idle_s=self._settings.idle_s / hurry,
            idle_bytes=self._settings.idle_bytes,
            insecure=self._insecure,
            environment=os.environ,
        )
        return cast("Transport", made)

    def _distrust(self, mirror: Endpoint) -> None:
        log.warning("the mirror %s delivered a damaged layer, and is passed over for a while", mirror.name)
        self._distrusted[mirror.name] = trio.current_time() + DISTRUSTED_S

    def _is_distrusted(self, mirror: Endpoint) -> bool:
        return self._distrusted.get(mirror.name, 0.0) > trio.current_time()

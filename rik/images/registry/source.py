"""One image of a registry: resolved and fetched from whichever of its servers delivers.

Mirrors are asked first, in their order. One that fails, for whatever reason, costs the pull nothing but the time; one
that will never deliver is not asked again, and one that fails time and again stands behind the registry. When all
have failed, the error names what each of them did.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, asynccontextmanager
from functools import partial
from typing import TypeVar

from rik.images.errors import ImageError, ImageInvalid, ImagePullFailed, ImageSpoilt
from rik.images.manifest import MAX_INDEX_DEPTH, Descriptor, Platform, choose, read_index, read_manifest
from rik.images.reference import RegistryReference
from rik.images.registry.attempts import TransientFailure, persist
from rik.images.registry.client import Client, Fetched
from rik.images.registry.downloads import Body, Downloads
from rik.images.registry.endpoints import Endpoint
from rik.images.registry.failures import Refusal
from rik.images.source import Layer, Resolved

T = TypeVar("T")

# A mirror that breaks off this often in one pull is asked after the registry.
MOST_STRIKES = 3
# Configs that are kept in memory: asking where a tag leads now then takes one request. They have some kilobytes each.
MAX_CONFIGS_BYTES = 1 << 20

Configs = dict[str, bytes]
OpenClients = Callable[[], AbstractAsyncContextManager[Sequence[Client]]]
Distrust = Callable[[Endpoint], None]


class RegistrySource:
    """`open_clients` makes one client for each server, in their order, the registry's last. `configs`, by their
    digests, is shared by all sources."""

    step = "pull"

    def __init__(
        self,
        reference: RegistryReference,
        wanted: Platform,
        downloads: Downloads,
        open_clients: OpenClients,
        distrust: Distrust,
        configs: Configs,
    ) -> None:
        self._reference = reference
        self._wanted = wanted
        self._downloads = downloads
        self._open_clients = open_clients
        self._distrust = distrust
        self._configs = configs
        self._excluded: dict[Endpoint, str] = {}
        self._strikes: Counter[Endpoint] = Counter()
        self._delivered: dict[str, Endpoint] = {}

    async def resolve(self) -> Resolved:
        async with self._open_clients() as clients:
            fetched, origin = await self._manifest(clients, self._reference.digest or self._reference.tag or "")
            for _ in range(MAX_INDEX_DEPTH):
                if not fetched.is_index:
                    break
                where = f"{self._reference}: the index {fetched.digest}"
                entry = choose(read_index(fetched.data, where), self._wanted, where)
                fetched, _ = await self._manifest(clients, entry.digest, entry)
            if fetched.is_index:
                raise ImageInvalid(f"{self._reference}: indexes are nested more than {MAX_INDEX_DEPTH} deep")
            manifest = read_manifest(fetched.data, f"{self._reference}: the manifest {fetched.digest}")
            config = await self._config(clients, manifest.config)
        layers = tuple(Layer(blob.digest, blob.size, blob.digest) for blob in manifest.layers)
        return Resolved(fetched.digest, config, layers, self._origin(origin))

    @asynccontextmanager
    async def fetching(self, layers: Sequence[Layer], received: Callable[[int], None]) -> AsyncIterator[None]:
        try:
            async with (
                self._open_clients() as clients,
                self._downloads.fetching(
                    layers,
                    partial(self._open_at, clients),
                    received,
                    where=str(self._reference),
                    origin=self._reference.registry,
                ),
            ):
                yield
        except ImageInvalid as error:
            # What was read of it cannot be unread; but the next pull need not get it from the same mirror.
            for digest, endpoint in self._delivered.items():
                if endpoint.mirror and digest in error.message:
                    self._distrust(endpoint)
                    message = f"{error.message}; it came by mirror {endpoint.name}"
                    raise ImageSpoilt(message, next_step=error.next_step) from error
            raise

    def open_layer(self, layer: Layer) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        return self._downloads.open_layer(layer, origin=self._reference.registry)

    # ------------------------------------------------------------------------------------------------------------------

    async def _manifest(
        self, clients: Sequence[Client], name: str, expected: Descriptor | None = None
    ) -> tuple[Fetched, Endpoint]:
        what = f"{self._reference}: the manifest" + (f" {expected.digest}" if expected else "")
        return await self._persist(clients, what, lambda client: client.manifest(name, expected))

    async def _config(self, clients: Sequence[Client], descriptor: Descriptor) -> bytes:
        known = self._configs.get(descriptor.digest)
        if known is not None and len(known) == descriptor.size:
            return known
        what = f"{self._reference}: the config {descriptor.digest}"
        config, _ = await self._persist(clients, what, lambda client: client.config(descriptor))
        self._configs[descriptor.digest] = config
        while sum(map(len, self._configs.values())) > MAX_CONFIGS_BYTES:
            del self._configs[next(iter(self._configs))]
        return config

    async def _persist(
        self, clients: Sequence[Client], what: str, ask: Callable[[Client], Awaitable[T]]
    ) -> tuple[T, Endpoint]:
        return await persist(what, lambda: self._first(clients, what, ask))

    async def _first(
        self, clients: Sequence[Client], what: str, ask: Callable[[Client], Awaitable[T]]
    ) -> tuple[T, Endpoint]:
        """The answer of the first server that has one. Raises TransientFailure when another try may do; ImageError."""
        failed: dict[Endpoint, TransientFailure | Refusal] = {}
        for client in self._order(clients):
            try:
                return await ask(client), client.endpoint
            except (TransientFailure, Refusal) as failure:
                failed[client.endpoint] = failure
                self._note(client.endpoint, failure)
        raise self._sum_up(clients, what, failed)

    @asynccontextmanager
    async def _open_at(self, clients: Sequence[Client], layer: Layer, offset: int) -> AsyncIterator[Body]:
        what = f"{self._reference}: the layer {layer.digest}"
        async with AsyncExitStack() as stack:

            async def ask(client: Client) -> Body:
                return await stack.enter_async_context(client.layer(layer, offset))

            body, endpoint = await self._first(clients, what, ask)
            self._delivered[layer.digest] = endpoint
            came = 0

            async def counted() -> AsyncGenerator[bytes, None]:
                nonlocal came
                async for chunk in body.chunks:
                    came += len(chunk)
                    yield chunk

            try:
                async with aclosing(counted()) as chunks:
                    yield Body(body.start, chunks)
            except TransientFailure as failure:
                self._note(endpoint, failure, in_vain=not came)
                raise self._named(endpoint, failure) from failure
            except Refusal as failure:
                self._note(endpoint, failure)
                if endpoint.mirror:
                    raise TransientFailure(f"{endpoint.name}: {failure.cause}") from failure
                raise failure.kind(f"{what}: {failure.cause}", next_step=failure.next_step) from failure

    def _order(self, clients: Sequence[Client]) -> list[Client]:
        left = [client for client in clients if client.endpoint not in self._excluded]
        return sorted(left, key=lambda client: self._strikes[client.endpoint] >= MOST_STRIKES)

    def _note(self, endpoint: Endpoint, failure: TransientFailure | Refusal, *, in_vain: bool = False) -> None:
        if not endpoint.mirror:
            return
        if isinstance(failure, Refusal):
            self._excluded[endpoint] = failure.cause
        else:
            self._strikes[endpoint] += MOST_STRIKES if failure.unreachable or in_vain else 1

    def _sum_up(
        self, clients: Sequence[Client], what: str, failed: dict[Endpoint, TransientFailure | Refusal]
    ) -> TransientFailure | ImageError:
        """What it comes to that every server has failed: the registry has the last word."""
        registry = clients[-1].endpoint
        final = failed[registry]
        transient = [failure for failure in failed.values() if isinstance(failure, TransientFailure)]
        known = self._excluded | {endpoint: failure.cause for endpoint, failure in failed.items()}
        causes = [f"{endpoint.name}: {cause}" for endpoint, cause in known.items()]
        cause = "; ".join(causes) if len(causes) > 1 else final.cause
        if isinstance(final, TransientFailure):
            unreachable = all(failure.unreachable for failure in transient)
            return TransientFailure(
                cause, retry_after_s=final.retry_after_s, unreachable=unreachable, next_step=final.next_step
            )
        if final.kind is ImagePullFailed and any(not failure.unreachable for failure in transient):
            return TransientFailure(cause)  # a mirror has it, or may have
        return final.kind(f"{what}: {cause}", next_step=final.next_step)

    def _named(self, endpoint: Endpoint, failure: TransientFailure) -> TransientFailure:
        cause = f"{endpoint.name}: {failure.cause}" if endpoint.mirror else failure.cause
        return TransientFailure(
            cause,
            retry_after_s=failure.retry_after_s,
            unreachable=failure.unreachable,
            next_step=failure.next_step,
        )

    def _origin(self, endpoint: Endpoint) -> str:
        registry = self._reference.registry
        return f"{registry} by mirror {endpoint.name}" if endpoint.mirror else registry

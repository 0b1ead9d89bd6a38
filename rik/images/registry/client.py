"""One repository at one server, within one pull: manifests, configs and layers over the distribution API (v2).

Everything raises TransientFailure for what may pass by itself, and Refusal for what this server will never deliver.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import trio

from rik.images.errors import ImageInvalid, ImagePullFailed, ImageUnauthorized
from rik.images.manifest import INDEX_TYPES, MANIFEST_TYPES, MAX_JSON_BYTES, Descriptor
from rik.images.reference import DEFAULT_REGISTRY, is_digest
from rik.images.registry.attempts import TransientFailure
from rik.images.registry.authorization import Authorization
from rik.images.registry.downloads import Body
from rik.images.registry.endpoints import Endpoint, origin_of
from rik.images.registry.failures import NotSpoken, Refusal, failure_of, page_of
from rik.images.source import Layer

if TYPE_CHECKING:
    import httpx

    from rik.images.registry.transport import Transport

_ACCEPTED = ", ".join(
    (
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
        # Not understood, but asked for: registries answer it with a sentence instead of a 404.
        "application/vnd.docker.distribution.manifest.v1+prettyjws;q=0.1",
    )
)
_SCHEMA_1 = re.compile(r"application/vnd\.docker\.distribution\.manifest\.v1\b.*")
_CONTENT_RANGE = re.compile(r"bytes\s+(\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", re.IGNORECASE)
_PROBE_BYTES = 64 << 10
_WANTS_HTTPS = b"https"


class Fetched(NamedTuple):
    """A manifest or an index as it was sent; its digest and size have been checked."""

    data: bytes
    digest: str
    is_index: bool


class _Shape(msgspec.Struct, rename="camel"):
    media_type: str = ""
    schema_version: int = 0
    manifests: msgspec.Raw = msgspec.Raw()
    fs_layers: msgspec.Raw = msgspec.Raw()


class Client:
    """`authorize` makes the Authorization once it is known under which URL the repository is; it is kept in `known`,
    which the clients of one pull share."""

    def __init__(
        self,
        endpoint: Endpoint,
        repository: str,
        transport: Transport,
        authorize: Callable[[str], Awaitable[Authorization]],
        known: dict[Endpoint, Authorization],
    ) -> None:
        self.endpoint = endpoint
        self._repository = repository
        self._transport = transport
        self._authorize = authorize
        self._known = known
        self._preparing = trio.Lock()

    async def manifest(self, name: str, expected: Descriptor | None = None) -> Fetched:
        """`name` is a tag or a digest; `expected` is what an index says of it."""
        async with self._get(f"manifests/{name}", {"Accept": _ACCEPTED}) as response:
            data = await self._transport.body(response, MAX_JSON_BYTES)
            kind, stated = page_of(response.headers), response.headers.get("docker-content-digest", "")
        digest = name if is_digest(name) else f"sha256:{hashlib.sha256(data).hexdigest()}"
        is_index = _is_index(data, kind, expected.media_type if expected else "", self.endpoint.name)
        self._check(data, digest, expected.size if expected else None)
        # Registries may state a sha512 digest where a tag is asked for; that is not this one's concern.
        if stated.startswith(f"{digest.partition(':')[0]}:") and stated != digest:
            raise Refusal(
                f"{self.endpoint.name} states the digest {stated[:200]}, and what it sends has {digest}",
                ImageInvalid,
            )
        return Fetched(data, digest, is_index)

    async def config(self, descriptor: Descriptor) -> bytes:
        """A small blob, checked."""
        if descriptor.size > MAX_JSON_BYTES:
            raise Refusal(f"it has {descriptor.size:,} bytes; at most {MAX_JSON_BYTES:,} are read", ImageInvalid)
        async with self._get(f"blobs/{descriptor.digest}", {}) as response:
            data = await self._transport.body(response, MAX_JSON_BYTES)
        self._check(data, descriptor.digest, descriptor.size)
        return data

    @asynccontextmanager
    async def layer(self, layer: Layer, offset: int) -> AsyncIterator[Body]:
        """Its bytes from `offset` on, or from the start when the server does not resume. They are not checked."""
        ranged = {"Range": f"bytes={offset}-"} if offset else {}
        async with self._get(f"blobs/{layer.digest}", ranged) as response:
            start = self._start(response, layer, offset)
            if start is not None:
                async with aclosing(self._transport.chunks(response)) as chunks:
                    yield Body(start, chunks)
                return
        async with self._get(f"blobs/{layer.digest}", {}) as response:  # it cannot do ranges as it should
            start = self._start(response, layer, 0)
            if start is None:
                raise Refusal(f"{self.endpoint.name} sends a part where all of it was asked for", ImagePullFailed)
            async with aclosing(self._transport.chunks(response)) as chunks:
                yield Body(start, chunks)

    def _start(self, response: httpx.Response, layer: Layer, offset: int) -> int | None:
        """The first byte that will come; None when the answer is no use. Raises Refusal when sizes are lied about."""
        if response.status_code == 206:
            match = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", "").strip())
            if match is None or not offset or int(match[1]) != offset:
                return None
            size = layer.size if match[3] == "*" else int(match[3])
        elif response.status_code == 200:
            offset = 0
            length = response.headers.get("content-length", "")
            size = int(length) if length.isdigit() else layer.size
        else:
            return None
        if size != layer.size:
            raise Refusal(
                f"{self.endpoint.name} has {size:,} bytes of it where the manifest states {layer.size:,}", ImageInvalid
            )
        return offset

    # ------------------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _get(self, path: str, headers: dict[str, str]) -> AsyncIterator[httpx.Response]:
        """The answer when it is a success (or, to a Range, 416), with credentials when they are asked for."""
        authorization = await self._prepare()
        with authorization.concealing():
            async with self._answer(authorization, path, headers) as response:
                yield response

    @asynccontextmanager
    async def _answer(
        self, authorization: Authorization, path: str, headers: dict[str, str]
    ) -> AsyncIterator[httpx.Response]:
        url = f"{authorization.base}/{self._repository}/{path}"
        used = authorization.current
        for is_last in (False, True):
            shown = {"Authorization": used} if used else {}
            async with self._transport.open(url, {**headers, **shown}) as response:
                if response.is_success or (response.status_code == 416 and "Range" in headers):
                    yield response
                    return
                here = origin_of(str(response.url)) == origin_of(url)
                name = self.endpoint.name if here else f"{response.url.host}, where {self.endpoint.name} redirects to,"
                body = await self._read_error(response)
                failure = failure_of(response.status_code, response.headers, body, name)
                challenges = response.headers.get_list("www-authenticate")
                may_renew = response.status_code == 401 and here and not is_last
            if isinstance(failure, Refusal) and failure.kind is ImageUnauthorized and here:
                renewed = await authorization.renew(used, challenges, self._transport) if may_renew else None
                if renewed is None:
                    raise _explained(failure, authorization, self.endpoint)
                used = renewed
            else:
                raise failure

    async def _read_error(self, response: httpx.Response) -> bytes:
        try:
            return await self._transport.body(response, 0)
        except (TransientFailure, Refusal):
            return b""  # the status is known, and says enough

    def _check(self, data: bytes, digest: str, size: int | None) -> None:
        name = self.endpoint.name
        if size is not None and len(data) != size:
            raise Refusal(f"{name} sends {len(data):,} bytes where {size:,} are stated", ImageInvalid)
        algorithm = digest.partition(":")[0]
        found = f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"
        if found != digest:
            raise Refusal(
                f"{name} sends something else: its digest is {found}, and {digest} was asked for", ImageInvalid
            )

    async def _prepare(self) -> Authorization:
        async with self._preparing:
            if self.endpoint.problem:
                raise Refusal(self.endpoint.problem, next_step=self.endpoint.next_step)
            if self.endpoint not in self._known:
                self._known[self.endpoint] = await self._authorize(await self._find_base())
            return self._known[self.endpoint]

    async def _find_base(self) -> str:
        """Which scheme is spoken there: asked without credentials, and only where there is a choice."""
        *others, last = self.endpoint.bases
        failures: list[TransientFailure | Refusal] = []
        for base in others:
            try:
                document = await self._transport.document(f"{base}/", {}, limit=_PROBE_BYTES)
                if not (base.startswith("http:") and document.status == 400 and _WANTS_HTTPS in document.body.lower()):
                    return base
            except (NotSpoken, TransientFailure) as failure:
                failures.append(failure)
        if not failures:
            return last
        try:
            await self._transport.document(f"{last}/", {}, limit=_PROBE_BYTES)
        except NotSpoken:
            raise failures[0] from None  # what is there speaks the first one, badly
        except TransientFailure as failure:
            first = failures[0]
            if isinstance(first, TransientFailure):
                raise first if first.unreachable == failure.unreachable else failure from None
            raise
        return last


def _is_index(data: bytes, kind: str, expected: str, name: str) -> bool:
    """Whether it is an index; a manifest otherwise. Raises Refusal when it is neither."""
    if "html" in kind:
        raise Refusal(f"{name} answers with a web page ({kind}): that is no registry, or something stands before it")
    try:
        shape = msgspec.json.decode(data, type=_Shape)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        what = f" (`{kind}`)" if kind else ""
        raise Refusal(f"{name} sends no manifest{what}: {error}", ImageInvalid) from None
    types = [shape.media_type, kind, expected]
    if any(_SCHEMA_1.fullmatch(text) for text in types) or shape.schema_version == 1 or bytes(shape.fs_layers):
        raise Refusal(
            "it is of Docker's schema 1, which was given up in 2017 and is not supported",
            ImageInvalid,
            "push it anew with a current docker, podman or skopeo",
        )
    known = next((text for text in types if text in INDEX_TYPES | MANIFEST_TYPES), None)
    return known in INDEX_TYPES if known else bool(bytes(shape.manifests))


def _explained(failure: Refusal, authorization: Authorization, endpoint: Endpoint) -> Refusal:
    why, step = authorization.explain()
    if endpoint.host == DEFAULT_REGISTRY and not endpoint.mirror:
        why += "; Docker Hub answers so for repositories that do not exist, too"
    else:
        why += "; many registries answer so for repositories that do not exist, too"
    return failure.amended(why, step)

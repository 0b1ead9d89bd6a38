"""What a case is played in: a registry with one good image, another origin beside it, and a home with credentials."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.images.build import MANIFEST, file, folder, symlink, tar
from tests.images.registry.hostile import Behaviour, HostileRegistry, Published, serving_registry

_NOISE = random.Random(7).randbytes(200_000)  # compresses to nothing less: sizes on the wire are as they seem
LOWER = tar(folder("bin"), file("bin/sh", _NOISE), symlink("bin/ls", "sh"))
UPPER = tar(folder("etc"), file("etc/motd", _NOISE[:50_000]))


class Scene:
    """`registry` holds `image`; `other` is another origin. Cases bend them, and leave checks for afterwards."""

    def __init__(self, registry: HostileRegistry, other: HostileRegistry, home: Path) -> None:
        self.registry, self.other, self.home = registry, other, home
        self.image: Published = registry.publish(LOWER, UPPER)
        self.checks: list[Callable[[], None]] = []

    # -- arranging -----------------------------------------------------------------------------------------------------

    def script(self, path: str, *behaviours: Behaviour) -> None:
        self.registry.script(path, *behaviours)

    def challenge(self, value: str) -> None:
        """Everything is refused with this WWW-Authenticate."""
        self.registry.guard = lambda request: [("WWW-Authenticate", value)]

    def lie(self, change: Callable[[dict[str, Any]], object]) -> str:
        """The reference of the same image with a changed manifest."""
        return self.registry.publish(LOWER, UPPER, repository="lie", change=change).reference

    def document(self, value: Any, media_type: str = MANIFEST) -> str:
        """The reference of this document in place of a manifest."""
        return self.registry.publish_document(json.dumps(value).encode(), media_type).reference

    def login(self, registry: HostileRegistry, user: str, password: str) -> None:
        """Credentials for that registry in the home's config.json, beside those that are there."""
        secret = base64.b64encode(f"{user}:{password}".encode()).decode()
        self.docker_config(auths={registry.address: {"auth": secret}})

    def docker_config(self, auths: dict[str, Any] | None = None, **fields: Any) -> None:
        path = self.home / ".docker" / "config.json"
        path.parent.mkdir(exist_ok=True)
        value = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**value, **fields, "auths": {**value.get("auths", {}), **(auths or {})}}))

    def after(self, check: Callable[[], None]) -> None:
        """Looked at when the pull has ended."""
        self.checks.append(check)

    # -- checking ------------------------------------------------------------------------------------------------------

    def count_requests_at_most(self, most: int) -> None:
        count = len(self.registry.requests) + len(self.other.requests)
        assert count <= most, f"{count} requests"

    def read_at_most(self, most: int) -> None:
        """Bytes that the servers got rid of; socket buffers take some MB that nobody reads."""
        sent = self.registry.sent_bytes + self.other.sent_bytes
        assert sent <= most, f"{sent:,} bytes were taken"

    def nothing_asked(self, registry: HostileRegistry) -> None:
        assert registry.requests == []

    def never_sent(self, header: str) -> None:
        every = [*self.registry.requests, *self.other.requests]
        assert not [request for request in every if header in request.headers]

    def no_credentials_at(self, registry: HostileRegistry) -> None:
        for request in registry.requests:
            assert "authorization" not in request.headers, request
            assert "secret-of-mine" not in f"{request.query}{request.body!r}", request


@asynccontextmanager
async def playing(home: Path) -> AsyncIterator[Scene]:
    async with serving_registry() as registry, serving_registry() as other:
        yield Scene(registry, other, home)

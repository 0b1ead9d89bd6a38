"""A client that believes nothing: every answer is checked against what `/openapi.json` says about it."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import trio
from jsonschema import Draft202012Validator
from trio_websocket import WebSocketConnection, open_websocket_url

MAX_MESSAGE_BYTES = 64 * 2**20


class NotDescribed(AssertionError):
    """An answer is not as the OpenAPI document says."""


class ApiClient(httpx.AsyncClient):
    """httpx, with paths below `/api/v0` by their short names: `await api.call("instances.list", status="Running")`."""

    def __init__(self, url: str, **options: Any) -> None:
        options.setdefault("timeout", 30)
        super().__init__(base_url=url, trust_env=False, **options)
        self.url = url
        self._document: dict[str, Any] | None = None
        self._patterns: list[tuple[re.Pattern[str], str]] = []
        self._validators: dict[str, Any] = {}

    async def send(self, request: httpx.Request, *, stream: bool = False, **options: Any) -> httpx.Response:
        response = await super().send(request, stream=stream, **options)
        if request.url.path != "/openapi.json":
            await self._load()
            self._check(request, response, stream)
        return response

    async def call(self, name: str, **query: Any) -> Any:
        """GET; the decoded body, which must have come with 200 or 204."""
        response = await self.get(f"/api/v0/{name}", params=query)
        assert response.status_code in (200, 204), response.text
        return response.json() if response.content else None

    async def do(self, name: str, body: Any, **query: Any) -> Any:
        """POST; the decoded body, which must have come with a success."""
        response = await self.post(f"/api/v0/{name}", json=body, params=query)
        assert response.is_success, response.text
        return response.json() if response.content else None

    @asynccontextmanager
    async def socket(self, path: str) -> AsyncIterator[WebSocketConnection]:
        """A websocket below `/api/v0`."""
        url = self.url.replace("http", "ws", 1) + "/api/v0/" + path
        async with open_websocket_url(url, max_message_size=MAX_MESSAGE_BYTES) as socket:
            try:
                yield socket
            finally:
                if socket.closed:  # by the server: trio-websocket would leave the TCP connection to the garbage
                    await trio.aclose_forcefully(socket._stream)

    @asynccontextmanager
    async def watch(self, query: str = "") -> AsyncIterator[Frames]:
        """The frames of `instances.watch`, each checked."""
        await self._load()
        async with self.socket(f"instances.watch{'?' if query else ''}{query}") as socket:
            yield Frames(socket, self)

    @property
    def described(self) -> bool:
        """Whether `/openapi.json` was read already."""
        return self._document is not None

    def check_schema(self, name: str, value: Any) -> None:
        """Raises NotDescribed unless `value` is as the schema of that name says."""
        self._validate({"$ref": f"#/components/schemas/{name}"}, value, name)

    async def _load(self) -> None:
        if self._document is not None:
            return
        response = await self.get("/openapi.json")
        document: dict[str, Any] = response.json()
        for path in document["paths"]:
            pattern = "".join(
                "[^/]+" if part.startswith("{") else re.escape(part) for part in re.split(r"(\{[^}]+\})", path)
            )
            self._patterns.append((re.compile(pattern), path))
        self._document = document

    def _check(self, request: httpx.Request, response: httpx.Response, stream: bool) -> None:
        what = f"{request.method} {request.url} -> {response.status_code}"
        media_type = response.headers.get("content-type", "").partition(";")[0]
        path = next((path for pattern, path in self._patterns if pattern.fullmatch(request.url.path)), None)
        if response.status_code >= 400:
            if media_type != "application/problem+json":
                raise NotDescribed(f"{what}: an error as {media_type!r}")
            if request.method != "HEAD" and not stream:
                self.check_schema("Problem", response.json())
                if response.json()["status"] != response.status_code:
                    raise NotDescribed(f"{what}: the problem says {response.json()['status']}")
            if path is None or response.status_code == 405:
                return
        assert self._document is not None
        if path is None:
            raise NotDescribed(f"{what}: no such path in the document")
        method = "get" if request.method == "HEAD" else request.method.lower()
        described = self._document["paths"][path].get(method)
        if described is None:
            raise NotDescribed(f"{what}: no such method in the document")
        outcome = described["responses"].get(str(response.status_code))
        if outcome is None:
            raise NotDescribed(f"{what}: no such status in the document")
        content = outcome.get("content")
        if content is None:
            if not stream and response.content:
                raise NotDescribed(f"{what}: a body where none is described: {response.text[:200]}")
            return
        if media_type not in content:
            raise NotDescribed(f"{what}: {media_type!r} is not among {list(content)}")
        if not stream and media_type == "application/x-ndjson":
            for line in response.text.splitlines():
                self._validate(content[media_type]["schema"], json.loads(line), what)
        elif not stream and request.method != "HEAD" and media_type.endswith("json"):
            self._validate(content[media_type]["schema"], response.json(), what)

    def _validate(self, schema: dict[str, Any], value: Any, what: str) -> None:
        assert self._document is not None
        key = json.dumps(schema, sort_keys=True)
        if key not in self._validators:
            whole = {**schema, "components": self._document["components"]}
            Draft202012Validator.check_schema(whole)
            self._validators[key] = Draft202012Validator(whole)
        errors = [f"{error.json_path}: {error.message[:300]}" for error in self._validators[key].iter_errors(value)]
        if errors:
            raise NotDescribed(f"{what}: " + "; ".join(errors[:5]))


class Frames:
    """An open watch."""

    def __init__(self, socket: WebSocketConnection, client: ApiClient) -> None:
        self.socket = socket
        self._client = client

    async def next(self) -> dict[str, Any]:
        """The next frame, whatever its type."""
        frame: dict[str, Any] = json.loads(await self.socket.get_message())
        self._client.check_schema("WatchFrame", frame)
        return frame

    async def until(self, *types: str) -> dict[str, Any]:
        """The next frame of one of these types; others are passed over."""
        while True:
            frame = await self.next()
            if frame["type"] in types:
                return frame

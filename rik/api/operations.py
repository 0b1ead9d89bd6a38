"""What a call of the API is: the entries of the one table that becomes both the routes and the OpenAPI document."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any, Protocol, TypeVar

import msgspec

from rik.api.service import Service
from rik.errors import BadRequest, FieldError
from rik.model.instance import Status

API = "/api/v0"
GET = "GET"
POST = "POST"
WEBSOCKET = "WEBSOCKET"

JSON = "application/json"
TEXT = "text/plain; charset=utf-8"
PROBLEM = "application/problem+json"
JSON_LINES = "application/x-ndjson"

_DURATION = re.compile(r"(?:(\d{1,6})d)?(?:(\d{1,6})h)?(?:(\d{1,8})m)?(?:(\d{1,10})s)?", re.ASCII)
_TRUE = frozenset({"", "1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})
_STATUSES = {status.value.lower(): status for status in Status}
MAX_INTEGER = 2**63 - 1


class MalformedBody(BadRequest):
    """The body is JSON, but not what the call wants; `errors` says where."""

    title = "Malformed request"

    def __init__(self, message: str, errors: tuple[FieldError, ...] = ()) -> None:
        super().__init__(message)
        self.errors = errors


class Parameter(msgspec.Struct, frozen=True):
    """A query parameter; `kind` is text, texts (may be repeated), integer, boolean, statuses or moment (RFC 3339, or a
    duration before now such as `5m`, parsed to milliseconds since the epoch)."""

    name: str
    kind: str
    description: str
    minimum: int = 0
    maximum: int = MAX_INTEGER
    required: bool = False


class Chunks(Protocol):
    """A body of unknown length."""

    async def chunk(self) -> bytes | None:
        """The next piece, None at the end."""
        ...

    async def aclose(self) -> None: ...


class Reply(msgspec.Struct, frozen=True):
    """What a handler answers."""

    status: int = 200
    body: bytes | Chunks = b""
    media_type: str = JSON
    headers: Mapping[str, str] = {}


class Outcome(msgspec.Struct, frozen=True):
    """One status of an operation in the OpenAPI document. No `schema`: the body is empty, or text. `lines` is the
    schema of each line where the body can also be asked for as JSON_LINES."""

    description: str
    schema: Mapping[str, Any] | None = None
    media_type: str = JSON
    lines: Mapping[str, Any] | None = None


Body = TypeVar("Body")


class Call:
    """A request, freed of HTTP: path and query already parsed, the body read on demand."""

    def __init__(
        self,
        path: Mapping[str, str],
        query: Mapping[str, Any],
        media_type: str = "",
        read: Callable[[], Awaitable[bytes]] | None = None,
    ) -> None:
        self.path = path
        self.query = query
        self.media_type = media_type
        self._read = read

    async def bytes(self) -> bytes:
        """The body. Raises what the server raises for one that is too large or too slow."""
        return await self._read() if self._read is not None else b""

    async def json(self, kind: type[Body]) -> Body:
        """The body as `kind`, whatever its Content-Type says. Raises BadRequest."""
        return decode_body(await self.bytes(), kind)


class Socket(Protocol):
    """An accepted websocket, or one that will be."""

    async def accept(self) -> None: ...

    async def send(self, data: str | bytes) -> None: ...

    async def receive(self) -> str | bytes | None: ...

    async def close(self, code: int, reason: str = "") -> None: ...


Handler = Callable[[Service, Call], Awaitable[Reply]]
SocketHandler = Callable[[Service, Call, Socket], Awaitable[None]]


class Operation(msgspec.Struct, frozen=True):
    """One call. `patient`: its client may take as long as it likes to read (logs that are paged, a terminal)."""

    id: str
    method: str
    path: str
    summary: str
    tag: str
    handler: Handler | None = None
    socket: SocketHandler | None = None
    parameters: tuple[Parameter, ...] = ()
    body: Mapping[str, Any] | None = None
    outcomes: Mapping[int, Outcome] = {}
    patient: bool = False


def encode(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
    """A JSON reply."""
    return Reply(status, msgspec.json.encode(value), JSON, headers or {})


def decode_body(data: bytes, kind: type[Body]) -> Body:
    """JSON to `kind`. Raises BadRequest for what is no JSON, MalformedBody for what has the wrong shape."""
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        message, _, where = str(error).partition(" - at `$")
        pointer = re.sub(r"\[(\d+)\]", r"/\1", where.rstrip("`")).replace(".", "/")
        sentence = message.replace("`", "")
        raise MalformedBody(
            f"the request's body is not as it must be: {sentence}", (FieldError(pointer, sentence),)
        ) from None
    except RecursionError:
        raise BadRequest("the request's body is nested too deeply") from None
    except (msgspec.DecodeError, UnicodeError) as error:
        raise BadRequest(f"the request's body is not JSON: {error}") from None


def parse_query(parameters: Sequence[Parameter], values: Callable[[str], Sequence[str]], now: int) -> dict[str, Any]:
    """Every parameter by its name, None (or an empty tuple) when it is absent. Raises BadRequest naming the wrong one.

    `now`, in milliseconds, is what durations are counted from.
    """
    return {parameter.name: _parse(parameter, values(parameter.name), now) for parameter in parameters}


def _parse(parameter: Parameter, given: Sequence[str], now: int) -> Any:
    name = parameter.name
    if not given:
        if parameter.required:
            raise BadRequest(f"the query parameter `{name}` is missing: {parameter.description}")
        return () if parameter.kind in ("texts", "statuses") else None
    if parameter.kind == "texts":
        return tuple(given)
    if parameter.kind == "statuses":
        return frozenset(_status(name, word) for text in given for word in text.split(",") if word)
    if len(given) > 1:
        raise BadRequest(f"the query parameter `{name}` is given {len(given)} times; give it once")
    text = given[0]
    match parameter.kind:
        case "integer":
            if not re.fullmatch(r"-?\d{1,19}", text, re.ASCII):
                raise BadRequest(f"the query parameter `{name}` must be a whole number, not {_quote(text)}")
            number = int(text)
            if not parameter.minimum <= number <= parameter.maximum:
                bounds = f"at least {parameter.minimum}"
                if parameter.maximum != MAX_INTEGER:
                    bounds += f" and at most {parameter.maximum}"
                raise BadRequest(f"the query parameter `{name}` must be {bounds}, not {_quote(text)}")
            return number
        case "boolean":
            if text.lower() in _TRUE:
                return True
            if text.lower() in _FALSE:
                return False
            raise BadRequest(f"the query parameter `{name}` must be true or false, not {_quote(text)}")
        case "moment":
            return parse_moment(name, text, now)
        case _:
            return text


def parse_moment(name: str, text: str, now: int) -> int:
    """Milliseconds since the epoch from RFC 3339 (`2026-01-31T12:00:00Z`) or a duration before now (`1h30m`)."""
    duration = _DURATION.fullmatch(text)
    if text and duration is not None:
        days, hours, minutes, seconds = (int(part or 0) for part in duration.groups())
        return max(1, now - 1000 * (seconds + 60 * (minutes + 60 * (hours + 24 * days))))
    try:
        moment = datetime.fromisoformat(text.replace(" ", "+"))  # a `+` in a query that was not escaped
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=timezone.utc)  # noqa: UP017 (one spelling for all supported versions)
        at = int(moment.timestamp() * 1000)
    except (ValueError, OverflowError):
        raise BadRequest(
            f"the query parameter `{name}` must be a time such as 2026-01-31T12:00:00Z or a duration such as 5m, "
            f"not {_quote(text)}"
        ) from None
    return max(1, at)


def _status(name: str, word: str) -> Status:
    status = _STATUSES.get(word.strip().lower())
    if status is None:
        known = ", ".join(status.value for status in Status)
        raise BadRequest(f"the query parameter `{name}` must be one of {known}, not {_quote(word)}")
    return status


def _quote(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:60]}…")

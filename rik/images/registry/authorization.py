"""Being let in: Basic, and bearer tokens from the server that a registry names (distribution's "Token Authentication").

A credential is shown to the registry it is kept for, and to the token server which that registry names over a
connection that nobody listens to. Tokens are kept in memory, for the whole store, until shortly before they run out.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, quote_plus, urlencode, urlsplit, urlunsplit

import msgspec
import trio

from rik.images.errors import ImagePullFailed, ImageUnauthorized
from rik.images.manifest import MAX_JSON_BYTES
from rik.images.registry.attempts import TransientFailure
from rik.images.registry.challenges import Challenge, read_challenges
from rik.images.registry.credentials import Credential, Found
from rik.images.registry.endpoints import Endpoint, hostname, is_listed, is_loopback
from rik.images.registry.failures import Refusal, refusal_of

if TYPE_CHECKING:
    from rik.images.registry.transport import Document, Transport

# What the protocol says a token is good for when its server does not.
DEFAULT_TOKEN_S = 60.0
MAX_TOKEN_S = 86_400.0
# A token is not used in its last tenth: clocks differ, and requests take their time.
USED_FRACTION = 0.9
MAX_TOKENS = 1_000
MAX_TOKEN_CHARS = 64 << 10
_CONCEALED = "(concealed)"
_SHORTEST_CONCEALED = 4
_RECOGNIZED_CHARS = 12
_PRINTABLE = re.compile(r"[\x21-\x7e]+")


class _Answer(msgspec.Struct):
    token: str | None = None
    access_token: str | None = None
    expires_in: float | None = None


class Tokens:
    """What got us in lately: the value of an Authorization header for (base URL, repository, credential)."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, str, Credential | None], tuple[str, float]] = {}

    def get(self, base: str, repository: str, credential: Credential | None) -> str | None:
        """None when there is none, or when it has run out."""
        value, until = self._kept.get((base, repository, credential), ("", 0.0))
        return value if value and trio.current_time() < until else None

    def keep(self, base: str, repository: str, credential: Credential | None, value: str, seconds: float) -> None:
        now = trio.current_time()
        if len(self._kept) >= MAX_TOKENS:
            self._kept = {key: kept for key, kept in self._kept.items() if kept[1] > now}
        if len(self._kept) >= MAX_TOKENS:
            self._kept.clear()
        self._kept[base, repository, credential] = (value, now + seconds)


class Authorization:
    """One repository at one server, with what credential files say about it."""

    def __init__(
        self, endpoint: Endpoint, base: str, repository: str, found: Found, tokens: Tokens, insecure: Sequence[str]
    ) -> None:
        self._endpoint = endpoint
        self.base = base
        self._repository = repository
        self._found = found
        self._tokens = tokens
        self._insecure = insecure
        self._renewing = trio.Lock()
        self._secrets = _secrets_of(found.credential)

    @contextmanager
    def concealing(self) -> Iterator[None]:
        """Failures within repeat what servers say, and servers may repeat what they were shown: it is struck out."""
        try:
            yield
        except (TransientFailure, Refusal) as failure:
            failure.cause = concealed(failure.cause, self._secrets)
            failure.args = (failure.cause,)
            raise

    @property
    def current(self) -> str | None:
        """The value of the Authorization header to begin with."""
        value = self._current()
        self._keep_secret(value or "")
        return value

    def _keep_secret(self, value: str) -> None:
        secret = value.partition(" ")[2]
        if len(secret) >= _SHORTEST_CONCEALED:
            self._secrets.add(secret)

    def _current(self) -> str | None:
        credential = self._found.credential
        if credential is not None and credential.registry_token:
            return f"Bearer {_checked(credential.registry_token, credential.origin)}"
        return self._tokens.get(self.base, self._repository, credential)

    async def renew(self, used: str | None, headers: Sequence[str], transport: Transport) -> str | None:
        """Another value, after a 401 with these WWW-Authenticate headers was the answer to `used`; None when there is
        nothing else to show. Raises Refusal and TransientFailure."""
        async with self._renewing:
            if self.current is not None and self.current != used:
                return self.current  # another request was faster
            credential = self._found.credential
            if credential is not None and credential.registry_token:
                return None
            challenges = read_challenges(headers)
            bearer = next((challenge for challenge in challenges if challenge.scheme == "bearer"), None)
            if bearer is not None:
                value, seconds = await self._bearer(bearer, credential, transport)
            elif credential is not None and credential.username and any(c.scheme == "basic" for c in challenges):
                value, seconds = _basic(credential), MAX_TOKEN_S
                if value == used:
                    return None
            else:
                return None
            self._tokens.keep(self.base, self._repository, credential, value, seconds)
            self._keep_secret(value)
            return value

    def explain(self) -> tuple[str, str]:
        """Why it may be that we were not let in, and the next step."""
        host = self._endpoint.host
        step = f"docker login {host} on this node, or put credentials into ~/.docker/config.json"
        credential = self._found.credential
        if credential is not None:
            return f"with the credentials of {credential.origin}", step
        problems = f"; {'; '.join(self._found.problems)}" if self._found.problems else ""
        return f"without credentials: none are there for {host}{problems}", step

    async def _bearer(
        self, challenge: Challenge, credential: Credential | None, transport: Transport
    ) -> tuple[str, float]:
        realm = self._checked_realm(challenge.parameters.get("realm", ""))
        server = urlsplit(realm).netloc
        scope = challenge.parameters.get("scope") or f"repository:{self._repository}:pull"
        wanted = {"service": challenge.parameters.get("service", ""), "scope": scope}
        headers = {"Accept": "application/json"}
        form: dict[str, str] | None = None
        if credential is not None and credential.identity_token:
            form = {"grant_type": "refresh_token", "client_id": "rik", "refresh_token": credential.identity_token}
            form |= wanted
        else:
            if credential is not None and credential.username:
                headers["Authorization"] = _basic(credential)
                wanted["account"] = credential.username
            realm = _with_query(realm, wanted)
        try:
            document = await transport.document(realm, headers, limit=MAX_JSON_BYTES, form=form)
        except Refusal as failure:  # not the image is to blame for what its token server sends
            raise Refusal(f"the token server {server}: {failure.cause}", next_step=failure.next_step) from failure
        except TransientFailure as failure:
            raise TransientFailure(
                f"the token server {server}: {failure.cause}",
                retry_after_s=failure.retry_after_s,
                unreachable=failure.unreachable,
            ) from failure
        return self._token(document, server)

    def _token(self, document: Document, server: str) -> tuple[str, float]:
        where = f"the token server {server}"
        if document.status in (400, 401, 403, 404):
            why, step = self.explain()
            raise refusal_of(document.status, document.headers, document.body, where, kind=ImageUnauthorized).amended(
                why, step
            )
        if document.status != 200:
            raise refusal_of(document.status, document.headers, document.body, where)
        try:
            answer = msgspec.json.decode(document.body, type=_Answer)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise Refusal(f"{where} answers with something else than a token: {error}", ImagePullFailed) from None
        token = _checked(answer.token or answer.access_token or "", where)
        seconds = answer.expires_in if answer.expires_in is not None and answer.expires_in > 0 else DEFAULT_TOKEN_S
        return f"Bearer {token}", min(seconds, MAX_TOKEN_S) * USED_FRACTION

    def _checked_realm(self, realm: str) -> str:
        name = self._endpoint.name
        try:
            parts = urlsplit(realm)
            host = parts.netloc.rpartition("@")[2].lower()
            _ = parts.port  # checks it
        except ValueError:
            host = ""
        if not host or parts.scheme not in ("http", "https"):
            raise Refusal(f"{name} names `{realm[:200]}` as its token server, which is no http or https address")
        if parts.scheme == "http":
            here = is_loopback(host) or is_listed(host, self._insecure)
            same = self.base.startswith("http://") and hostname(host) == hostname(self._endpoint.host)
            if not (self._endpoint.plain and (here or same)):
                raise Refusal(f"{name} names the token server http://{host[:200]}: credentials go over https only")
        return urlunsplit((parts.scheme, host, parts.path, parts.query, ""))


def concealed(text: str, secrets: Collection[str]) -> str:
    """Without any of `secrets`, and without the beginning of one that was cut short by who quoted it."""
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, _CONCEALED)
        start = secret[:_RECOGNIZED_CHARS]
        if len(start) == _RECOGNIZED_CHARS:
            at = text.find(start)
            while at >= 0:
                end = at
                while end < len(text) and secret.startswith(text[at : end + 1]):
                    end += 1
                text = text[:at] + _CONCEALED + text[end:]
                at = text.find(start, at + len(_CONCEALED))
    return text


def _secrets_of(credential: Credential | None) -> set[str]:
    """All that would give it away, in the forms in which it is sent. To strike out what is very short would tell it."""
    if credential is None:
        return set()
    plain = {credential.password, credential.identity_token, credential.registry_token}
    found = plain | {quote_plus(secret) for secret in plain}
    if credential.password:
        found.add(_basic(credential).partition(" ")[2])
    return {secret for secret in found if len(secret) >= _SHORTEST_CONCEALED}


def _basic(credential: Credential) -> str:
    return "Basic " + base64.b64encode(f"{credential.username}:{credential.password}".encode()).decode()


def _checked(token: str, origin: str) -> str:
    """A token becomes a line of our own request: it must not begin another."""
    if not token or len(token) > MAX_TOKEN_CHARS or not _PRINTABLE.fullmatch(token):
        raise Refusal(f"{origin} gives no usable token")
    return token


def _with_query(url: str, more: dict[str, str]) -> str:
    parts = urlsplit(url)
    query = [*parse_qsl(parts.query, keep_blank_values=True), *((key, value) for key, value in more.items() if value)]
    return urlunsplit((parts.scheme, parts.netloc, parts.path, urlencode(query), ""))

"""Every error as `application/problem+json` (RFC 9457)."""

from __future__ import annotations

import logging
import secrets
from http import HTTPStatus
from typing import Any

import msgspec
from werkzeug.exceptions import HTTPException, MethodNotAllowed
from werkzeug.routing.exceptions import WebsocketMismatch

from rik.api.operations import PROBLEM, WEBSOCKET, Reply
from rik.errors import Refused, RikError, StartupError, Unavailable
from rik.link.base import StreamFailed
from rik.model.public import render_refusal

log = logging.getLogger("rik.api")

_DETAILS = {
    400: "the request cannot be understood",
    404: "there is no such route; see /openapi.json for those there are",
    408: "the request's body did not come in time",
    413: "the request's body is too large",
}


def problem(
    status: int,
    detail: str,
    *,
    title: str = "",
    errors: list[dict[str, str]] | None = None,
    reason: str = "",
    next_step: str = "",
    headers: dict[str, str] | None = None,
) -> Reply:
    """A problem document; `next` (what to do about it) is there only when there is something to say."""
    document: dict[str, Any] = {
        "type": "about:blank",
        "title": title or HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "errors": errors or [],
        "reason": reason,
    }
    if next_step:
        document["next"] = next_step
    return Reply(status, msgspec.json.encode(document), PROBLEM, headers or {})


def of_exception(error: BaseException, method: str, max_body_bytes: int) -> Reply:
    """The answer to a request that ended by `error`. A bug is logged, with an id that the answer names.

    `method` is that of the request, WEBSOCKET for one that asked for an upgrade.
    """
    match error:
        case Refused():
            return problem(
                error.http_status,
                error.message,
                title=error.title,
                errors=render_refusal(error),
                reason=error.reason or type(error).__name__,
                next_step=error.next_step,
            )
        case Unavailable():
            return problem(
                503,
                error.message,
                reason=type(error).__name__,
                next_step=error.next_step,
                headers={"Retry-After": str(error.retry_after_s)},
            )
        case StreamFailed():
            status = error.http_status if 400 <= error.http_status <= 599 else 503
            headers = {"Retry-After": "1"} if status == 503 else {}
            return problem(status, error.message, reason=error.reason, next_step=error.next_step, headers=headers)
        case HTTPException():
            return _of_http(error, method, max_body_bytes)
        case _:
            return of_bug(error)


def of_bug(error: BaseException) -> Reply:
    """Tells the client nothing but where the log has the rest."""
    incident = secrets.token_hex(4)
    log.error("incident %s: a bug in RIK", incident, exc_info=error)
    next_step = error.next_step if isinstance(error, RikError) and not isinstance(error, StartupError) else ""
    return problem(
        500,
        f"RIK has made a mistake; its log tells more under incident {incident}",
        title="Internal error",
        reason="InternalError",
        next_step=next_step,
    )


def _of_http(error: HTTPException, method: str, max_body_bytes: int) -> Reply:
    status = error.code or 500
    if isinstance(error, WebsocketMismatch):
        if method == WEBSOCKET:
            return problem(400, "this call is not a websocket: ask without an upgrade")
        if method in ("GET", "HEAD"):
            headers = {"Upgrade": "websocket", "Connection": "Upgrade"}
            return problem(426, "this call is a websocket: ask for an upgrade", headers=headers)
        return _wrong_method(["GET"])
    if isinstance(error, MethodNotAllowed):
        return _wrong_method(sorted(error.valid_methods or ()))
    if status == 413:
        return problem(
            413, f"the request's body is larger than {max_body_bytes} bytes", headers={"Connection": "close"}
        )
    if status >= 500:
        return of_bug(error)
    return problem(status, _DETAILS.get(status, error.description or ""))


def _wrong_method(allowed: list[str]) -> Reply:
    return problem(405, f"this route answers to {', '.join(allowed)}", headers={"Allow": ", ".join(allowed)})

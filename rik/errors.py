"""Every error that RIK raises on purpose.

    RikError                    what failed, on which object, the cause verbatim, the next step
    ├── Refused                 the request's fault: the caller gets `http_status` and the sentence
    │   ├── BadRequest          400
    │   │   ├── DocumentError       the bytes are no document
    │   │   └── InvalidDocument     a document with errors, all of them, each with its JSON pointer
    │   ├── NotFound            404
    │   └── Conflict            409
    ├── Unavailable             503: right request, wrong moment; try again after `retry_after_s`
    │   ├── StoreUnavailable        the store could not make a batch durable
    │   └── NodeUnavailable         the node that would answer is not connected
    ├── StartupError            `rik serve` cannot start: one line on standard error, exit code 1
    │   └── StoreDamaged            the file is not touched
    └── InstanceFailure         an instance cannot go on: `reason` and message become its final status

Errors of third-party libraries are translated into these once, where they enter.
"""

from __future__ import annotations

from typing import NamedTuple


class RikError(Exception):
    """`message` is a sentence for the user; `next_step` (may be empty) says what to do about it."""

    def __init__(self, message: str, *, next_step: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.next_step = next_step

    def __str__(self) -> str:
        return f"{self.message} ({self.next_step})" if self.next_step else self.message


class FieldError(NamedTuple):
    """One thing wrong with a document: `pointer` is an RFC 6901 JSON pointer ("" is the whole document)."""

    pointer: str
    message: str


class Refused(RikError):
    """The request cannot be done as it was asked. `reason` is a code for programs; "": the class's name is."""

    http_status = 400
    title = "Bad request"
    reason = ""
    errors: tuple[FieldError, ...] = ()


class BadRequest(Refused):
    """The request is malformed or asks for what can never be."""


class DocumentError(BadRequest):
    """The bytes cannot be read as a document at all (syntax, encoding, nesting)."""

    title = "Unreadable document"


class InvalidDocument(BadRequest):
    """The document was read and is wrong; `errors` holds every error found."""

    title = "Invalid workload document"

    def __init__(self, errors: tuple[FieldError, ...]) -> None:
        self.errors = errors
        listed = "; ".join(f"{error.pointer or '/'}: {error.message}" for error in errors[:5])
        more = f"; and {len(errors) - 5} more" if len(errors) > 5 else ""
        super().__init__(f"the document has {len(errors)} error{'s' if len(errors) != 1 else ''}: {listed}{more}")


class NotFound(Refused):
    """No such object, now or in the post-mortems."""

    http_status = 404
    title = "Not found"


class Conflict(Refused):
    """The name is taken."""

    http_status = 409
    title = "Conflict"


class Unavailable(RikError):
    """The request is right, the moment is not."""

    http_status = 503
    title = "Unavailable"

    def __init__(self, message: str, *, next_step: str = "", retry_after_s: int = 1) -> None:
        super().__init__(message, next_step=next_step)
        self.retry_after_s = retry_after_s


class StoreUnavailable(Unavailable):
    """Nothing of the batch was made durable; the cause (a full disk, say) is in the message."""


class NodeUnavailable(Unavailable):
    """The node that holds the instance is not connected."""


class StartupError(RikError):
    """`rik serve` cannot start here and now."""


class StoreDamaged(StartupError):
    """The store's file cannot be trusted; it was not changed."""


class InstanceFailure(RikError):
    """Ends one instance. `reason` is a `rik.model.instance.Reason` value; `container` names the one at fault."""

    def __init__(self, reason: str, message: str, *, container: str = "", next_step: str = "") -> None:
        super().__init__(message, next_step=next_step)
        self.reason = reason
        self.container = container

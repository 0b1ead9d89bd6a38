"""What ends a command early: a sentence, the next step, and the exit code of the contract.

CommandError            exit code 1: the thing itself failed, or the request was refused
├── Usage               exit code 2: the command line, the document or the configuration file is wrong
├── RequestRefused      exit code 1: the server answered with an error; `status` is its HTTP status
└── Unreachable         exit code 3: no server answered
"""

from __future__ import annotations

from rik.errors import RikError

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_UNREACHABLE = 3
EXIT_INTERRUPTED = 130  # 128 + SIGINT, what shells report
EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE


class CommandError(RikError):
    """`details` are further lines that belong to the message, such as every error of a document."""

    exit_code = EXIT_FAILED

    def __init__(self, message: str, *, next_step: str = "", details: tuple[str, ...] = ()) -> None:
        super().__init__(message, next_step=next_step)
        self.details = details


class Usage(CommandError):
    """The caller must change what was typed or written."""

    exit_code = EXIT_USAGE


class RequestRefused(CommandError):
    """The server said no; `reason` is its machine-readable word for why ("" when it gave none)."""

    def __init__(
        self, message: str, *, status: int, reason: str = "", next_step: str = "", details: tuple[str, ...] = ()
    ) -> None:
        super().__init__(message, next_step=next_step, details=details)
        self.status = status
        self.reason = reason


class Unreachable(CommandError):
    """Nothing answered at the server's address, or not in time."""

    exit_code = EXIT_UNREACHABLE

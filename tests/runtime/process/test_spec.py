"""What an image's config says, in the form a supervisor reads."""

from __future__ import annotations

import signal

import pytest

from rik.runtime.process.spec import stop_signal


@pytest.mark.parametrize(
    ("written", "number"),
    [
        ("SIGQUIT", signal.SIGQUIT),
        ("quit", signal.SIGQUIT),
        (" 3 ", signal.SIGQUIT),
        ("RTMIN+3", signal.SIGRTMIN + 3),
        ("RTMIN+999", 64),
        *((odd, signal.SIGTERM) for odd in ("", "0", "65", "-1", "²", "RTMIN+²", "RTMIN+", "9" * 5000, "\x1b[31m")),
        ("RTMIN+" + "9" * 5000, 64),
    ],
)
def test_stop_signals(written: str, number: int) -> None:
    """A name or a number; whatever else an image may say is the usual one."""
    assert stop_signal(written) == number

"""Why an image cannot be had: each ends the instance that wanted it, with a reason of its own.

InstanceFailure
└── ImageError
    ├── ImageNotFound        there is no such file, tag or platform
    ├── ImageUnauthorized    it may not be read (outside of `--allow-dir`)
    ├── ImagePullFailed      it could not be fetched or written: the network, the disk, this host
    └── ImageInvalid         what was found is damaged, hostile, over a limit, or no image at all
        └── ImageSpoilt      the same, but it came from a mirror that the next pull does without
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from rik.errors import InstanceFailure
from rik.model.instance import Reason

_FULL = (errno.ENOSPC, errno.EDQUOT)


class ImageError(InstanceFailure):
    """`message` names the reference and the cause; `reason` is fixed by the class."""

    code: Reason = Reason.IMAGE_PULL_FAILED

    def __init__(self, message: str, *, next_step: str = "") -> None:
        # Much of what these messages quote was written by strangers.
        super().__init__(self.code, printable(message), next_step=next_step)


class ImageNotFound(ImageError):
    """There is no such image; what there is instead is in the message when it is known."""

    code = Reason.IMAGE_NOT_FOUND


class ImageUnauthorized(ImageError):
    """It may not be read by this node's settings, or with these credentials."""

    code = Reason.IMAGE_UNAUTHORIZED


class ImagePullFailed(ImageError):
    """It could not be fetched or written: not the image's fault."""

    code = Reason.IMAGE_PULL_FAILED


class ImageInvalid(ImageError):
    """What was found is damaged, hostile, over a limit, or no image."""

    code = Reason.IMAGE_INVALID


class ImageSpoilt(ImageInvalid):
    """What a mirror sent is damaged. It is not asked again for some time: another pull, at once, may well succeed."""


def printable(text: str) -> str:
    """What strangers wrote, escaped where it could command a terminal."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


@contextmanager
def keeping(what: str) -> Iterator[None]:
    """Trouble with the store's own files (OSError) is told as that of `what`, an image or one of its layers."""
    try:
        yield
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        message = f"{what} cannot be kept: {error.strerror or error}{where}"
        raise ImagePullFailed(message, next_step=advice(message)) from error


def advice(message: str) -> str:
    """What to do about a full disk, whoever met it; "" when that is not what the message tells of."""
    full = any(os.strerror(number) in message for number in _FULL)
    return "make room: `rik image prune` removes images that nothing uses" if full else ""

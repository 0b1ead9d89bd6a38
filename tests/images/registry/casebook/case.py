"""One thing that a registry may do to its clients, and how cases are told from one another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from rik.images.errors import ImageError, ImagePullFailed
from tests.images.registry.scene import Scene

QUICK_S = 4.0  # nothing to wait for: an answer, and the verdict
TRIES_S = 40.0  # as often as it makes sense, with growing pauses
IDLE_S = 12.0  # with `idle_s` of one second
REFUSED_S = 10.0  # promised in these very words


class Case(NamedTuple):
    title: str
    error: type[ImageError]
    words: str
    within_s: float
    settings: dict[str, Any]
    arrange: Callable[[Scene], str | None]


CASES: list[Case] = []
Arrange = Callable[[Scene], str | None]


def case(
    error: type[ImageError], words: str, within_s: float = QUICK_S, **settings: Any
) -> Callable[[Arrange], Arrange]:
    """`words` is a regular expression that the message holds, in any letter case; the docstring is the case's title."""

    def add(arrange: Arrange) -> Arrange:
        assert arrange.__doc__
        CASES.append(Case(arrange.__doc__.rstrip("."), error, words, within_s, settings, arrange))
        return arrange

    return add


def stalls(words: str, **settings: Any) -> Callable[[Arrange], Arrange]:
    return case(ImagePullFailed, words, IDLE_S, idle_s=1.0, **settings)

"""How the C library keeps this process's memory. Standard library only."""

from __future__ import annotations

import contextlib
import ctypes

_M_ARENA_MAX = -8  # malloc.h
_ARENAS = 2


def share_arenas() -> None:
    """Lets all threads share two heaps; call it before there are any.

    Else glibc gives every thread that reads, writes or hashes a heap of its own, which hardly shrinks again: a pull of
    250 MB then makes a host 22 MiB larger instead of 16. Other C libraries have no such call, and no such habit.
    """
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, _ARENAS)

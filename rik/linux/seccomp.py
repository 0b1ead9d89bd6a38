"""A filter that takes system calls away from a process and all that it will ever start: by seccomp(2), classic BPF.

Only what no namespace keeps apart is taken: the kernel's keyrings belong to users and sessions, not to containers, so
that a pod would find the keys of whoever started RIK. The calls fail with ENOSYS, as on a kernel without keys, which
programs expect.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

# Per architecture as the kernel tells a filter: numbers of add_key, request_key, keyctl. A machine also runs programs
# of its 32-bit sibling.
_X86_64, _I386, _AARCH64, _ARM = 0xC000003E, 0x40000003, 0xC00000B7, 0x40000028
_KEY_CALLS = {_X86_64: (248, 249, 250), _I386: (286, 287, 288), _AARCH64: (217, 218, 219), _ARM: (309, 310, 311)}
_X32_BIT = 0x40000000

_PR_SET_SECCOMP = 22
_MODE_FILTER = 2
_ALLOW = 0x7FFF0000
_ERRNO = 0x00050000
_LOAD, _AND, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x54, 0x15, 0x06
_NUMBER_OFFSET, _ARCHITECTURE_OFFSET = 0, 4

_libc = ctypes.CDLL(None, use_errno=True)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def deny_keyrings() -> None:
    """For good. This process must have no new privileges. Nothing happens where the kernel has no filters, or on an
    architecture that is not known here."""
    code = _program()
    program = _Program(len(code) // 8, code)
    if _libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(program), 0, 0) < 0:
        number = ctypes.get_errno()
        if number not in (errno.EINVAL, errno.ENOSYS):
            raise OSError(number, os.strerror(number), "prctl PR_SET_SECCOMP")


def _program() -> bytes:
    code = []
    for architecture, numbers in _KEY_CALLS.items():
        rest = len(numbers) + 4
        code += [
            _instruction(_LOAD, _ARCHITECTURE_OFFSET),
            _instruction(_JUMP_IF_EQUAL, architecture, 0, rest),
            _instruction(_LOAD, _NUMBER_OFFSET),
            _instruction(_AND, 0xFFFFFFFF & ~_X32_BIT),
            *(_instruction(_JUMP_IF_EQUAL, number, len(numbers) - at, 0) for at, number in enumerate(numbers)),
            _instruction(_RETURN, _ALLOW),
            _instruction(_RETURN, _ERRNO | errno.ENOSYS),
        ]
    return b"".join([*code, _instruction(_RETURN, _ALLOW)])


def _instruction(operation: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", operation, if_true, if_false, value)

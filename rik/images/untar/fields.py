"""Numbers, times and texts as tar headers hold them. Everything raises ValueError for what cannot be read. Standard
library only."""

from __future__ import annotations

MAX_SIZE = 1 << 62
MAX_TIME_NS = (1 << 62) - 1
_MAX_DIGITS = 20


def number_of(field: bytes) -> int:
    """Octal digits, or GNU's base 256, which the highest bit tells."""
    if not field[0] & 0x80:
        return octal_of(field)
    if field[0] & 0x40:
        return int.from_bytes(field, "big", signed=True)
    return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")


def octal_of(field: bytes) -> int:
    """Octal digits to the first zero byte; none are 0."""
    digits = field.partition(b"\0")[0].strip()
    if digits.isdigit():  # int() accepts more
        try:
            return int(digits, 8)
        except ValueError:
            pass
    elif not digits:
        return 0
    raise ValueError("invalid header")


def decimal_of(value: bytes) -> int:
    """A number in an extended header."""
    if len(value) > _MAX_DIGITS or not value.removeprefix(b"-").isdigit():
        raise ValueError(f"an extended header has {value[:40].decode('latin-1')!a} where a number belongs")
    return int(value)


def size_of(size: int) -> int:
    """`size` when a file can have it."""
    if not 0 <= size <= MAX_SIZE:
        raise ValueError(f"a header gives the size {size}")
    return size


def time_of(value: bytes) -> int:
    """Nanoseconds of a decimal number of seconds, which a float would round; 0 for what is no number."""
    whole, _, fraction = value.partition(b".")
    digits = whole.removeprefix(b"-")
    if not digits.isdigit() or len(digits) > _MAX_DIGITS or (fraction and not fraction.isdigit()):
        return 0
    nanoseconds = int(digits) * 1_000_000_000 + int((fraction + b"000000000")[:9])
    return bounded_time(-nanoseconds if whole.startswith(b"-") else nanoseconds)


def bounded_time(time_ns: int) -> int:
    """The nearest time that a system call can be given."""
    return max(-MAX_TIME_NS, min(MAX_TIME_NS, time_ns))


def text_of(field: bytes) -> str:
    """To the first zero byte; what is no UTF-8 becomes surrogates."""
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")

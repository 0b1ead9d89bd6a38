"""What JSON Schema found, in plain words: a JSON pointer and one sentence for each mistake.

A schema may carry its own sentence (`errorMessage`), and the words that a pattern allows (`examples`), which then serve
for "did you mean". Everything that comes from the document is shortened before it is quoted.
"""

from __future__ import annotations

import difflib
import functools
import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

from rik.errors import FieldError

if TYPE_CHECKING:
    from jsonschema import ValidationError

Path = tuple[str | int, ...]

MAX_QUOTED = 60  # characters of a value of the user's that a message repeats

_TYPE_NAMES = {
    "object": "an object",
    "array": "a list",
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "null": "null",
}
# What people call a field elsewhere; beyond what likeness of spelling finds.
_SYNONYMS = {
    "cmd": "command",
    "entrypoint": "command",
    "environment": "env",
    "network": "ports",
    "workdir": "workingDir",
    "pullPolicy": "imagePullPolicy",
    "pull_policy": "imagePullPolicy",
    "pull": "imagePullPolicy",
    "mem": "memory",
    "gracePeriodSeconds": "stopGraceSeconds",
    "terminationGracePeriodSeconds": "stopGraceSeconds",
    "containerPort": "targetPort",
    "hostPort": "port",
}


class Validator(Protocol):
    """The one method of a jsonschema validator that is used here."""

    def iter_errors(self, instance: Any) -> Iterable[ValidationError]: ...


def build_validator(tree: dict[str, Any]) -> Validator:
    """A Draft 2020-12 validator in which a pattern's `$` is the very end, as in JSON Schema, and no newline follows."""
    from jsonschema import Draft202012Validator, ValidationError, validators

    def check_pattern(_: Any, pattern: str, instance: Any, __: Any) -> Iterator[ValidationError]:
        if isinstance(instance, str) and not _compiled(pattern).search(instance):
            yield ValidationError("")

    extended = validators.extend(Draft202012Validator, {"pattern": check_pattern})  # type: ignore[no-untyped-call]
    validator: Validator = extended(tree)
    return validator


@functools.cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern[:-1] + r"\Z" if pattern.endswith("$") else pattern)


def errors_of(validator: Validator, document: dict[str, Any], limit: int) -> Iterator[FieldError]:
    """Every mistake (the first `limit`), sorted by where it stands; the same one may come twice."""
    found = sorted(islice(validator.iter_errors(document), limit), key=_order)
    mistyped: set[Path] = set()
    for error in found:
        if error.validator == "type":
            path = tuple(error.absolute_path)
            if path in mistyped:
                continue  # a branch of the schema says again, and less well, what was said
            mistyped.add(path)
        yield from _explained(error)


def _order(error: ValidationError) -> list[tuple[int, int, str]]:
    """Items by their number, fields by their name."""
    return [(0, part, "") if isinstance(part, int) else (1, 0, part) for part in error.absolute_path]


def _explained(error: ValidationError) -> Iterator[FieldError]:
    path: Path = tuple(error.absolute_path)
    if error.validator == "required":
        required: Any = error.validator_value
        instance: Any = error.instance
        for name in required:
            if name not in instance:
                yield FieldError(pointer((*path, name)), _missing(name, instance, path))
    else:
        yield FieldError(pointer(path), f"{_label(path)} {_complaint(error)}")


def _missing(name: str, instance: Mapping[str, Any], path: Path) -> str:
    owner = f" in {_label(path)}" if path else ""
    likely = [key for key in instance if alike(key, [name]) == name]
    if likely:
        return f"`{name}` is required{owner}; there is `{_shorten(likely[0])}`: did you mean `{name}`?"
    return f"`{name}` is required{owner}"


def _complaint(error: ValidationError) -> str:
    rule: Mapping[str, Any] = error.schema if isinstance(error.schema, Mapping) else {}
    value: Any = error.instance
    expected: Any = error.validator_value
    match error.validator:
        case "type":
            return _wrong_type(value, [expected] if isinstance(expected, str) else expected)
        case "enum":
            return f"must be {_either(expected)}, not {quote(value)}{did_you_mean(value, expected)}"
        case "pattern" if "examples" in rule:
            return f"must be {_either(rule['examples'])}, not {quote(value)}{did_you_mean(value, rule['examples'])}"
        case "minLength":
            return "must not be empty"
        case "maxLength":
            return f"must have at most {expected} characters, and has {len(value)}"
        case "minimum" | "maximum" | "exclusiveMinimum" if "errorMessage" not in rule:
            return f"must be {_range(rule)}, not {quote(value)}"
    message = rule.get("errorMessage")
    if message is None:
        return f"is not allowed: {_shorten(error.message)}"
    return message if error.validator == "minItems" else f"{message}; not {quote(value)}"


def _wrong_type(value: Any, expected: list[str]) -> str:
    names = " or ".join(_TYPE_NAMES[name] for name in expected)
    message = f"must be {names}, and is {type_name(value)}"
    if expected == ["string"] and isinstance(value, bool | int | float):
        return f'{message}; put it in quotes: "{json.dumps(value)}"'
    if "integer" in expected and isinstance(value, str) and value.strip().isdecimal():
        return f"{message}; write it without quotes"
    if expected == ["array"] and isinstance(value, str):
        return f"{message}; did you mean {_shorten(json.dumps(_words(value)))}?"
    if expected == ["array"] and isinstance(value, dict):
        return f"{message}; put it in brackets: [{{…}}]"
    return message


def _words(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError:  # a quote without its other half
        return command.split()


def _range(rule: Mapping[str, Any]) -> str:
    if "exclusiveMinimum" in rule:
        return f"more than {rule['exclusiveMinimum']} and at most {rule['maximum']}"
    return f"between {rule['minimum']} and {rule['maximum']}"


def _either(words: list[str]) -> str:
    quoted = [f"`{word}`" for word in words]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} or {quoted[-1]}"


def _label(path: Path) -> str:
    """The field that a sentence is about: `name`, or `command[1]` for an item."""
    if not path:
        return "the document"
    indices = ""
    for part in reversed(path):
        if isinstance(part, str):
            return f"`{_shorten(part)}{indices}`"
        indices = f"[{part}]{indices}"
    return f"item {indices}"


# --- words that others use too


def pointer(path: Iterable[str | int]) -> str:
    """RFC 6901: `/spec/containers/0/name`; "" is the whole document."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)


def type_name(value: Any) -> str:
    """`a list`, `text`, …: what a JSON value is."""
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int():
            return "a whole number"
        case float():
            return "a number"
        case str():
            return "text"
        case list():
            return "a list"
    return "an object"


def quote(value: Any) -> str:
    """A value of the user's inside a sentence, shortened."""
    if isinstance(value, dict | list):
        return type_name(value)
    text = value if isinstance(value, str) else json.dumps(value)
    return f"`{_shorten(text)}`" if text else "empty"


def did_you_mean(word: Any, known: Iterable[str]) -> str:
    """`; did you mean `containers`?`, or "" when nothing is alike."""
    match = alike(word, known) if isinstance(word, str) else None
    return f"; did you mean `{match}`?" if match is not None else ""


def alike(word: str, known: Iterable[str]) -> str | None:
    """The one of `known` that was probably meant."""
    by_letters: dict[str, str] = {}
    for candidate in known:
        by_letters.setdefault(_letters(candidate), candidate)  # the first spelling is the preferred one
    synonym = _SYNONYMS.get(word)
    if synonym is not None and synonym in by_letters.values():
        return synonym
    close = difflib.get_close_matches(_letters(word[:MAX_QUOTED]), by_letters, n=1, cutoff=0.7)
    return by_letters[close[0]] if close else None


def _letters(word: str) -> str:
    """Without letter case and joints: api_version, API-Version and apiVersion are alike."""
    return word.lower().replace("_", "").replace("-", "")


def _shorten(text: str) -> str:
    printable = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
    return printable if len(printable) <= MAX_QUOTED else f"{printable[:MAX_QUOTED]}…"

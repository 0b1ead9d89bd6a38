"""Bytes to plain data: one table of decoders by media type or file suffix.

Whatever comes in, the result is a value that can be stored, sent and compared: objects with text keys, lists, text that
can be encoded, whole numbers of 64 bits, finite numbers, booleans and null, nested at most `MAX_DEPTH` deep. Anything
else is a `DocumentError` with a sentence that says where.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from rik.errors import DocumentError

if TYPE_CHECKING:
    import yaml

MAX_DOCUMENT_BYTES = 1 << 20  # the API's limit of a body; what aliases of a YAML document expand to counts too
MAX_DEPTH = 64  # a workload needs 7; far below what any recursive reader of the result can take
_MAX_INTEGER = 2**64 - 1
_MIN_INTEGER = -(2**63)


def decode(data: bytes, media_type_or_suffix: str = "") -> Any:
    """The value that `data` holds, as plain JSON-like data. Raises DocumentError.

    `media_type_or_suffix` is a Content-Type (parameters allowed), a file name or a suffix; whatever is not known to be
    another format is read as JSON, because the original's clients send JSON without a Content-Type. What is declared
    YAML may be JSON as well, so `.yaml` serves for standard input, where nothing is declared.
    """
    if len(data) > MAX_DOCUMENT_BYTES:
        raise DocumentError(f"the document has {len(data)} bytes; {MAX_DOCUMENT_BYTES} are allowed")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DocumentError(f"the document is not UTF-8 text: byte {error.start} is {data[error.start]:#04x}") from None
    if not text.strip():
        raise DocumentError("the document is empty")
    value = _decoder(media_type_or_suffix)(text)
    _refuse_what_cannot_be_kept(value)
    return value


def _decoder(media_type_or_suffix: str) -> Callable[[str], Any]:
    name = media_type_or_suffix.partition(";")[0].strip().lower()
    return _DECODERS.get(name) or _DECODERS.get("." + name.rpartition(".")[2]) or _decode_json


def _refuse_what_cannot_be_kept(root: Any) -> None:
    """Without recursion, so that it can itself not be brought down by depth."""
    waiting: list[tuple[Any, int]] = [(root, 1)]
    while waiting:
        value, depth = waiting.pop()
        match value:
            case str():
                if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
                    raise DocumentError(f"half a surrogate pair, which no text may hold: {_shorten(ascii(value))}")
            case bool() | None:
                pass
            case int():
                if not _MIN_INTEGER <= value <= _MAX_INTEGER:
                    raise DocumentError(f"the number {_shorten(str(value))} is too large: 64 bits are allowed")
            case float():
                if not math.isfinite(value):
                    raise DocumentError("NaN, Infinity and numbers beyond 1e308 are not allowed")
            case dict() | list():
                if depth > MAX_DEPTH:
                    raise DocumentError(_too_deep())
                children = value.values() if isinstance(value, dict) else value
                waiting.extend((child, depth + 1) for child in children)
                if isinstance(value, dict):
                    waiting.extend((key, depth) for key in value)


def _too_deep() -> str:
    return f"the document is nested too deeply: {MAX_DEPTH} levels are allowed"


def _shorten(text: str, length: int = 40) -> str:
    return text if len(text) <= length else f"{text[:length]}…"


# --- JSON


def _decode_json(text: str) -> Any:
    try:
        return _JSON.decode(text)
    except json.JSONDecodeError as error:
        hint = "" if text.lstrip()[0] in '{["' else "; if it is YAML, say so by the media type or a .yaml suffix"
        where = f"line {error.lineno}, column {error.colno}"
        raise DocumentError(
            f"the document is not valid JSON: {error.msg.removesuffix(' at')} at {where}{hint}"
        ) from None
    except RecursionError:
        raise DocumentError(_too_deep()) from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise DocumentError(f"the field `{_shorten(key)}` appears twice in one object")
            seen.add(key)
    return result


def _integer(digits: str, base: int = 10) -> int:
    if len(digits) > 24:  # whatever the base, more than 64 bits; spares int() from quadratic work
        raise DocumentError(f"the number {_shorten(digits)} is too large: 64 bits are allowed")
    return int(digits, base)


def _constant(name: str) -> Any:
    raise DocumentError(f"{name} is no JSON number")


_JSON = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer, parse_constant=_constant)


# --- YAML 1.2 (core schema), built from the parser's events: no tags that make objects, no recursion, bounded aliases

# `no`, `on` and `22:30` stay text, as in YAML 1.2; the parser's own (1.1) reading is not used.
_YAML_NULL = re.compile(r"~|null|Null|NULL|", re.ASCII)
_YAML_TRUE = re.compile(r"true|True|TRUE", re.ASCII)
_YAML_FALSE = re.compile(r"false|False|FALSE", re.ASCII)
_YAML_INT = re.compile(r"[-+]?[0-9]+", re.ASCII)
_YAML_OCTAL = re.compile(r"0o[0-7]+", re.ASCII)
_YAML_HEX = re.compile(r"0x[0-9a-fA-F]+", re.ASCII)
_YAML_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", re.ASCII)
_YAML_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", re.ASCII)
_YAML_TAG = "tag:yaml.org,2002:"
_NO_KEY = object()


def _decode_yaml(text: str) -> Any:
    if text.lstrip()[0] in "{[":
        try:  # JSON may be indented by tabs, which YAML forbids
            return _decode_json(text)
        except DocumentError:
            pass  # in flow style; what is wrong with it is told in YAML's terms
    import yaml

    builder = _YamlBuilder()
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        return builder.build(yaml.parse(text, Loader=loader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = error.problem or error.context or "unreadable"
        raise DocumentError(f"the document is not valid YAML: {problem}{where}") from None
    except yaml.YAMLError as error:
        raise DocumentError(
            f"the document is not valid YAML: {' '.join(str(error).split())}"
        ) from None  # e.g. control characters


class _Open:
    """A list or object whose end has not been seen."""

    def __init__(self, value: dict[str, Any] | list[Any], anchor: str | None) -> None:
        self.value = value
        self.anchor = anchor
        self.key: Any = _NO_KEY
        self.weight = 1


class _YamlBuilder:
    """Builds one document from events. A node's weight is about the bytes it expands to, aliases followed."""

    def __init__(self) -> None:
        self._stack: list[_Open] = []
        self._anchors: dict[str, tuple[Any, int]] = {}
        self._root: Any = None
        self._documents = 0

    def build(self, events: Iterator[yaml.Event]) -> Any:
        import yaml

        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                self._documents += 1
                if self._documents > 1:
                    raise DocumentError(f"one document is expected, and another begins at {_line(event)}")
            elif isinstance(event, yaml.ScalarEvent):
                self._add(_scalar(event), len(event.value) + 1, event.anchor, event)
            elif isinstance(event, yaml.SequenceStartEvent | yaml.MappingStartEvent):
                is_map = isinstance(event, yaml.MappingStartEvent)
                if event.tag not in (None, "!", _YAML_TAG + ("map" if is_map else "seq")):
                    raise DocumentError(f"the tag {_shorten(str(event.tag))} at {_line(event)} is not supported")
                if len(self._stack) >= MAX_DEPTH:
                    raise DocumentError(_too_deep())
                self._stack.append(_Open({} if is_map else [], event.anchor))
            elif isinstance(event, yaml.SequenceEndEvent | yaml.MappingEndEvent):
                done = self._stack.pop()
                self._add(done.value, done.weight, done.anchor, event)
            elif isinstance(event, yaml.AliasEvent):
                if event.anchor not in self._anchors:
                    raise DocumentError(
                        f"the alias *{_shorten(str(event.anchor))} at {_line(event)} has no anchor before it"
                    )
                value, weight = self._anchors[event.anchor]
                self._add(value, weight, None, event)
        return self._root

    def _add(self, value: Any, weight: int, anchor: str | None, event: yaml.Event) -> None:
        if anchor is not None:
            self._anchors[anchor] = (value, weight)
        if not self._stack:
            self._root = value
            return
        parent = self._stack[-1]
        parent.weight += weight
        if parent.weight > MAX_DOCUMENT_BYTES:
            raise DocumentError(f"the document's aliases expand to more than {MAX_DOCUMENT_BYTES} bytes")
        if isinstance(parent.value, list):
            parent.value.append(value)
        elif parent.key is _NO_KEY:
            if not isinstance(value, str):
                raise DocumentError(f"a field's name must be text; put the one at {_line(event)} in quotes")
            if value == "<<":
                raise DocumentError(f"merge keys (<<, at {_line(event)}) are not supported; write the fields out")
            if value in parent.value:
                raise DocumentError(
                    f"the field `{_shorten(value)}` appears twice in one object, again at {_line(event)}"
                )
            parent.key = value
        else:
            parent.value[parent.key] = value
            parent.key = _NO_KEY


def _line(event: yaml.Event) -> str:
    mark = event.start_mark
    return f"line {mark.line + 1}" if mark is not None else "an unknown line"


def _scalar(event: yaml.ScalarEvent) -> Any:
    text: str = event.value
    tag = event.tag
    if tag == _YAML_TAG + "str" or tag == "!" or (tag is None and not event.implicit[0]):
        return text
    if tag is not None and tag not in {_YAML_TAG + kind for kind in ("int", "float", "bool", "null")}:
        raise DocumentError(f"the tag {_shorten(tag)} at {_line(event)} is not supported")
    if _YAML_NULL.fullmatch(text):
        return None
    if _YAML_TRUE.fullmatch(text):
        return True
    if _YAML_FALSE.fullmatch(text):
        return False
    if _YAML_INT.fullmatch(text):
        return _integer(text)
    if _YAML_OCTAL.fullmatch(text):
        return _integer(text[2:], 8)
    if _YAML_HEX.fullmatch(text):
        return _integer(text[2:], 16)
    if _YAML_FLOAT.fullmatch(text):
        return float(text)
    if _YAML_NOT_FINITE.fullmatch(text):
        raise DocumentError(f"the number {text} at {_line(event)} is not finite")
    return text


_DECODERS: dict[str, Callable[[str], Any]] = {
    ".json": _decode_json,
    "application/json": _decode_json,
    ".yaml": _decode_yaml,
    ".yml": _decode_yaml,
    "application/yaml": _decode_yaml,
    "application/x-yaml": _decode_yaml,
    "text/yaml": _decode_yaml,
    "text/x-yaml": _decode_yaml,
    "text/vnd.yaml": _decode_yaml,
}

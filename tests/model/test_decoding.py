"""Bytes to plain data."""

from __future__ import annotations

import json
import random
import string
from typing import Any

import msgspec
import pytest

from rik.errors import DocumentError
from rik.model.decoding import MAX_DEPTH, MAX_DOCUMENT_BYTES, decode

JSON_NAMES = ["", "application/json", "application/json; charset=utf-8", ".json", "pod.json", "text/plain", "a/b"]
YAML_NAMES = [".yaml", ".yml", "pod.YAML", "application/yaml", "application/x-yaml; charset=utf-8", "text/yaml"]


@pytest.mark.parametrize("name", JSON_NAMES + YAML_NAMES)
def test_json_is_read_whatever_it_is_called(name: str) -> None:
    """JSON is parsed whatever the Content-Type, tabs and byte order mark included."""
    data = b'\xef\xbb\xbf{\n\t"kind": "Pod",\n\t"spec": {"containers": [ ]}\n}\n'
    assert decode(data, name) == {"kind": "Pod", "spec": {"containers": []}}


@pytest.mark.parametrize("name", YAML_NAMES)
def test_yaml_is_read_when_declared(name: str) -> None:
    """A YAML media type or suffix chooses YAML."""
    assert decode(b"kind: Pod\nspec:\n  containers: []\n", name) == {"kind": "Pod", "spec": {"containers": []}}


def test_undeclared_yaml_is_refused_with_a_hint() -> None:
    """Text that is no JSON is told how to be taken as YAML."""
    with pytest.raises(DocumentError, match=r"not valid JSON: .*line 1, column 1; if it is YAML, say so"):
        decode(b"kind: Pod\n")


YAML_SCALARS: list[tuple[str, Any]] = [
    ("no", "no"),
    ("on", "on"),
    ("22:30", "22:30"),
    ("2024-01-01", "2024-01-01"),
    ("1_000", "1_000"),
    ("true", True),
    ("False", False),
    ("~", None),
    ("null", None),
    ("", None),
    ("8080", 8080),
    ("-7", -7),
    ("0x1F", 31),
    ("0o17", 15),
    ("017", 17),
    ("0.5", 0.5),
    (".5", 0.5),
    ("1e3", 1000.0),
    ("'8080'", "8080"),
    ('"true"', "true"),
    ("!!str 8080", "8080"),
    ("! 8080", "8080"),
    ("!!int 8080", 8080),
    ("|\n  two\n  lines\n", "two\nlines\n"),
    ("500m", "500m"),
]


@pytest.mark.parametrize(("text", "value"), YAML_SCALARS)
def test_yaml_scalars_mean_what_they_mean_in_yaml_1_2(text: str, value: object) -> None:
    """`no` and `22:30` are text, and nothing becomes a date."""
    found = decode(f"value: {text}".encode(), ".yaml")["value"]
    assert found == value
    assert type(found) is type(value)


def test_yaml_anchors_can_be_used() -> None:
    """An alias is a copy of what its anchor names."""
    text = b"a: &env [{name: A, value: b}]\nb: *env\n"
    assert decode(text, ".yaml") == {"a": [{"name": "A", "value": "b"}], "b": [{"name": "A", "value": "b"}]}


def alias_bomb() -> bytes:
    lines = ["a: &a [x,x,x,x,x,x,x,x,x]"]
    for before, here in zip(string.ascii_lowercase, string.ascii_lowercase[1:], strict=False):
        lines.append(f"{here}: &{here} [{','.join([f'*{before}'] * 9)}]")
    return "\n".join(lines).encode()


REFUSED: dict[str, tuple[bytes, str, str]] = {
    "nothing": (b"", "", "the document is empty"),
    "blank": (b" \n", ".yaml", "the document is empty"),
    "too large": (b" " * (MAX_DOCUMENT_BYTES + 1), "", "1048577 bytes; 1048576 are allowed"),
    "not UTF-8": (b'{"a": "\xff"}', "", "not UTF-8 text: byte 7 is 0xff"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "", "not UTF-8 text"),
    "half a surrogate pair": (b'{"a": "\\ud800"}', "", "surrogate"),
    "half a surrogate pair in a name": (b'{"\\udfff": 1}', "", "surrogate"),
    "syntax": (b'{"a": 1,}', "", "line 1, column"),
    "a control character": (b'{"a": "\x01"}', "", "Invalid control character at line 1, column 8"),
    "two values": (b"{} {}", "", "Extra data"),
    "a duplicate": (b'{"a": 1, "b": {"c": 1, "c": 2}}', "", "the field `c` appears twice"),
    "NaN": (b'{"a": NaN}', "", "NaN is no JSON number"),
    "-Infinity": (b"[-Infinity]", "", "-Infinity is no JSON number"),
    "infinity in disguise": (b"[1e999]", "", "beyond 1e308"),
    "a number of 5,000 digits": (b"[" + b"9" * 5000 + b"]", "", "64 bits are allowed"),
    "a number of 65 bits": (b"[18446744073709551616]", "", "64 bits are allowed"),
    "a large negative number": (b"[-9223372036854775809]", "", "64 bits are allowed"),
    "100,000 lists": (b"[" * 100_000, "", "nested too deeply"),
    "100,000 objects": (b'{"a":' * 100_000, "", "nested too deeply"),
    "100,000 closed lists": (b"[" * 100_000 + b"]" * 100_000, "", "nested too deeply"),
    "just too deep": (b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), "", "nested too deeply"),
    "YAML, 100,000 lists": (b"[" * 100_000, ".yaml", "nested too deeply"),
    "YAML, 100,000 lists in block style": (b"- " * 100_000, ".yaml", "nested too deeply"),
    "YAML syntax": (b"a: [1,\n", ".yaml", "not valid YAML: .* at line 2"),
    "YAML tabs": (b"a:\n\tb: 1\n", ".yaml", "not valid YAML"),
    "YAML duplicate": (b"a: 1\nb: 2\na: 3\n", ".yaml", "the field `a` appears twice in one object, again at line 3"),
    "YAML alias bomb": (alias_bomb(), ".yaml", "aliases expand to more than 1048576 bytes"),
    "YAML long alias": (b"a: &a " + b"x" * 200_000 + b"\nb: [*a,*a,*a,*a,*a,*a]", ".yaml", "aliases expand"),
    "YAML self-reference": (b"&a [*a]", ".yaml", r"the alias \*a at line 1 has no anchor before it"),
    "YAML unknown alias": (b"a: *b", ".yaml", "no anchor before it"),
    "YAML object tag": (b"!!python/object/apply:os.system [id]", ".yaml", "tag .* at line 1 is not supported"),
    "YAML own tag": (b"a: !secret x", ".yaml", "the tag !secret at line 1 is not supported"),
    "YAML binary": (b"a: !!binary eA==", ".yaml", "is not supported"),
    "YAML infinity": (b"a: .inf", ".yaml", "not finite"),
    "YAML float beyond": (b"a: 1e999", ".yaml", "beyond 1e308"),
    "YAML number": (b"a: 0x" + b"f" * 5000, ".yaml", "64 bits"),
    "YAML octal number": (b"a: 0o" + b"7" * 5000, ".yaml", "64 bits"),
    "YAML number as a name": (b"8080: a", ".yaml", "a field's name must be text; put the one at line 1 in quotes"),
    "YAML list as a name": (b"? [a]\n: b", ".yaml", "a field's name must be text"),
    "YAML merge": (b"a: &a {b: 1}\nc:\n  <<: *a\n", ".yaml", "merge keys .* line 3.* are not supported"),
    "YAML documents": (b"a: 1\n---\nb: 2\n", ".yaml", "one document is expected, and another begins at line 2"),
    "YAML control character": (b"a: \x00", ".yaml", "not valid YAML"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_document_is_refused_in_a_sentence(case: str) -> None:
    """Whatever the bytes, the answer is a DocumentError of readable length, never a crash."""
    data, name, message = REFUSED[case]
    with pytest.raises(DocumentError, match=message) as raised:
        decode(data, name)
    assert len(str(raised.value)) < 300


def test_the_largest_numbers_and_depth_are_accepted() -> None:
    """Whole numbers of 64 bits and the full depth come through."""
    assert decode(b"[-9223372036854775808, 18446744073709551615, 1e308]") == [-(2**63), 2**64 - 1, 1e308]
    decode(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)
    decode(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH, ".yaml")


@pytest.mark.parametrize("name", ["", ".yaml"])
def test_random_bytes_never_do_anything_else(name: str) -> None:
    """Random and mangled bytes give a value that can be encoded again, or DocumentError."""
    generator = random.Random(20260)
    seeds = [
        b'{"apiVersion": "v1", "spec": {"containers": [{"name": "a", "n": -1.5e3, "t": true}]}}',
        b"apiVersion: v1\nspec: &s\n  containers:\n    - {name: a, b: *s}\n    - 'x'\n  t: |\n    text\n",
    ]
    alphabet = b'{}[]",:&*!|>-?\\ \n\t\x00\xff\xe2\x82\xac01eE.aN<'
    for _ in range(4000):
        data = bytearray(generator.choice(seeds))
        for _ in range(generator.randrange(1, 8)):
            place = generator.randrange(len(data))
            data[place : place + generator.randrange(3)] = bytes(generator.choices(alphabet, k=generator.randrange(4)))
        try:
            value = decode(bytes(data), name)
        except DocumentError:
            continue
        assert json.loads(msgspec.json.encode(value)) == value

"""A workload document: checked as a whole, with every error and warning at once, and normalised.

Two kinds of rules: those of `schema/workload-v1.json`, which anybody's editor can check too, and those across fields,
below, which JSON Schema cannot say. `rik.model.explain` turns the schema's findings into sentences. The typed form of
an accepted document is made by `rik.model.workload.parse_spec`.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from importlib import resources
from typing import Any, NamedTuple

import msgspec

from rik.errors import FieldError, InvalidDocument
from rik.model import explain
from rik.model.decoding import decode
from rik.model.resources import parse_cpu_millis, parse_memory_bytes
from rik.model.workload import FUNCTION, HOST_IMAGE, POD

__all__ = ["Validated", "decode", "schema", "validate"]

# A megabyte can hold a hundred thousand mistakes; what follows the first few hundred helps nobody.
MAX_ERRORS = 500
MAX_WARNINGS = 100


class Validated(msgspec.Struct, frozen=True):
    """An accepted document: `replicas` and `spec.containers` filled in, optional fields that were null left out, all
    else (unknown fields too) as it was given. `warnings` are sentences that begin with a JSON pointer."""

    document: dict[str, Any]
    warnings: tuple[str, ...] = ()


def validate(document: object) -> Validated:
    """Raises InvalidDocument with every error found (at most `MAX_ERRORS`).

    `document` is what `decode` gave. One of a few containers takes 0.2 ms, one of a megabyte half a second: a server
    gives those to a thread.
    """
    if not isinstance(document, dict):
        kind = explain.type_name(document)
        raise InvalidDocument((FieldError("", f"the document must be an object, and is {kind}"),))
    survey = _Survey()
    normal = survey.copy(document, _fields_by_kind()[_probable_kind(document)], ())
    errors = dict.fromkeys(explain.errors_of(_validator(), normal, MAX_ERRORS))
    kind = _probable_kind(normal)
    if kind != normal.get("kind"):  # all errors at once: also those that come to light when the kind is mended
        errors |= dict.fromkeys(explain.errors_of(_validator(), {**normal, "kind": kind}, MAX_ERRORS))
    faulty = {error.pointer for error in errors}
    warnings = survey.warnings
    for finding in _across_fields(kind, normal.get("spec")):
        if finding.is_warning:
            warnings.append(f"{explain.pointer(finding.path)}: {finding.message}")
        elif explain.pointer(finding.path) not in faulty:  # what is of the wrong type was told already
            errors[FieldError(explain.pointer(finding.path), finding.message)] = None
    if errors:
        raise InvalidDocument(tuple(list(errors)[:MAX_ERRORS]))
    normal.setdefault("replicas", 1)
    normal["spec"].setdefault("containers", [])
    if len(warnings) > MAX_WARNINGS:
        warnings = [*warnings[:MAX_WARNINGS], f": and {len(warnings) - MAX_WARNINGS} more warnings"]
    return Validated(normal, tuple(warnings))


def _probable_kind(document: dict[str, Any]) -> str:
    kind, spec = document.get("kind"), document.get("spec")
    if isinstance(kind, str):
        likely = explain.alike(kind, (POD, FUNCTION))
        if likely is not None:
            return likely
    is_function = isinstance(spec, dict) and "function" in spec and not spec.get("containers")
    return FUNCTION if is_function else POD


def schema() -> bytes:
    """The published schema's text, as it is served at `/workloads/schema-v1.json`."""
    return resources.files("rik.model").joinpath("schema/workload-v1.json").read_bytes()


# --- the schema, read once


@functools.cache
def _validator() -> explain.Validator:
    """Built on first use: importing jsonschema alone takes longer than most commands."""
    return explain.build_validator(_without_references(json.loads(schema())))


@functools.cache
def _fields_by_kind() -> dict[str, dict[str, Any]]:
    """The schema per kind, for walking along a document: a Function's is known in full, a Pod's is not looked into."""
    tree = _without_references(json.loads(schema()))
    function_rule = next(
        rule["then"]["properties"]["spec"]["properties"]["function"]
        for rule in tree["allOf"]
        if rule["if"]["properties"]["kind"]["const"] == FUNCTION
    )
    spec = tree["properties"]["spec"]
    spec_of_function = {**spec, "properties": {**spec["properties"], "function": function_rule}}
    return {POD: tree, FUNCTION: {**tree, "properties": {**tree["properties"], "spec": spec_of_function}}}


def _without_references(tree: dict[str, Any]) -> dict[str, Any]:
    """The schema with every `$ref` replaced by what it names (there is no recursion in it): a third faster to check."""
    definitions = tree["$defs"]

    def inline(node: Any) -> Any:
        if isinstance(node, list):
            return [inline(item) for item in node]
        if not isinstance(node, dict):
            return node
        if isinstance(node.get("$ref"), str):
            target = definitions[node["$ref"].rpartition("/")[2]]
            node = {**target, **{key: value for key, value in node.items() if key != "$ref"}}
        return {key: inline(value) for key, value in node.items() if key not in ("$defs", "$id")}

    result: dict[str, Any] = inline(tree)
    return result


# --- along the document: a copy without nulls, and warnings for what the schema does not know


class _Survey:
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def copy(self, value: Any, node: Any, path: explain.Path) -> Any:
        """`value`, deeply copied. `node` is the schema of this place; None or true where nothing is known."""
        node = node if isinstance(node, dict) else {}
        if "if" in node:  # one object or a list: the only use of it inside the fields
            node = {**node, **node["then" if isinstance(value, list) else "else"]}
        if isinstance(value, list):
            return [self.copy(item, node.get("items"), (*path, index)) for index, item in enumerate(value)]
        if isinstance(value, float) and value.is_integer() and "integer" in node.get("type", ()):
            return int(value)
        if not isinstance(value, dict):
            return value
        known = node.get("properties")
        if known is None:
            return {key: self.copy(item, None, (*path, key)) for key, item in value.items()}
        for key in value:
            if key not in known:
                self._warn_of_unknown(key, known, path)
        return {
            key: self.copy(item, known.get(key), (*path, key))
            for key, item in value.items()
            if item is not None or key not in known
        }

    def _warn_of_unknown(self, key: str, known: dict[str, Any], path: explain.Path) -> None:
        suggestion = explain.did_you_mean(key, known) if len(self.warnings) < MAX_WARNINGS else ""
        self.warnings.append(
            f"{explain.pointer((*path, key))}: RIK does not know this field and ignores it{suggestion}"
        )


# --- rules across fields. Each looks only at what has the right shape: the schema speaks of the rest.


class _Finding(NamedTuple):
    path: explain.Path
    message: str
    is_warning: bool = False


def _across_fields(kind: str, spec: Any) -> Iterator[_Finding]:
    if not isinstance(spec, dict):
        return
    yield from _of_function(spec) if kind == FUNCTION else _of_pod(spec)
    resources = spec.get("resources")
    if isinstance(resources, dict):
        yield from _quantity(resources, "cpu", parse_cpu_millis)
        yield from _quantity(resources, "memory", parse_memory_bytes)


def _quantity(resources: dict[str, Any], name: str, parse: Callable[[object], int]) -> Iterator[_Finding]:
    if name in resources:
        try:
            parse(resources[name])
        except ValueError as error:
            yield _Finding(("spec", "resources", name), str(error))


def _of_pod(spec: dict[str, Any]) -> Iterator[_Finding]:
    if spec.get("function"):
        yield _Finding(("spec", "function"), "has no effect: a Pod runs its containers only", is_warning=True)
    first_with_name: dict[str, int] = {}
    first_with_port: dict[tuple[str, int], str] = {}
    for index, container in enumerate(_objects(spec.get("containers"))):
        if container is None:
            continue
        path: explain.Path = ("spec", "containers", index)
        name = container.get("name")
        if isinstance(name, str):
            first = first_with_name.setdefault(name, index)
            if first != index:
                yield _Finding((*path, "name"), f"`{name}` is also the name of container {first}: names must differ")
        if container.get("image") == HOST_IMAGE and container.get("command", []) == []:
            message = "`command` is required with the image `host`, which has none of its own"
            yield _Finding((*path, "command"), message)
        if container.get("image") == HOST_IMAGE and "imagePullPolicy" in container:
            message = "has no effect: the image `host` is never pulled"
            yield _Finding((*path, "imagePullPolicy"), message, is_warning=True)
        ports = container.get("ports")
        if isinstance(ports, dict):
            yield from _of_port(ports, (*path, "ports"), spec, first_with_port)
        for number, port in enumerate(_objects(ports)):
            if port is not None:
                yield from _of_port(port, (*path, "ports", number), spec, first_with_port)


def _of_function(spec: dict[str, Any]) -> Iterator[_Finding]:
    if spec.get("containers"):
        yield _Finding(("spec", "containers"), "has no effect: a Function starts its rootfs only", is_warning=True)
    if spec.get("hostNetwork") is True:
        message = "has no effect: a Function has a network of its own"
        yield _Finding(("spec", "hostNetwork"), message, is_warning=True)
    function = spec.get("function")
    exposure = function.get("exposure") if isinstance(function, dict) else None
    if isinstance(exposure, dict):
        path = ("spec", "function", "exposure")
        yield from _targets_differ(exposure, path)
        if "targetPort" not in exposure and "target_port" not in exposure:
            yield _Finding((*path, "targetPort"), "`targetPort` is required: the port the function listens on")


def _of_port(
    port: dict[str, Any], path: explain.Path, spec: dict[str, Any], first_with_port: dict[tuple[str, int], str]
) -> Iterator[_Finding]:
    """`first_with_port` remembers, over the whole pod, who has a fixed port of the node."""
    yield from _targets_differ(port, path)
    number = port.get("port", 0)
    target = port.get("targetPort", port.get("target_port"))
    kind = str(port.get("type", "NodePort")).lower()
    if target is None and number == 0:
        yield _Finding((*path, "targetPort"), "`targetPort` is required: the port the container listens on")
    if kind == "loadbalancer":
        message = "RIK has no load balancers: `LoadBalancer` is taken as `NodePort`"
        yield _Finding((*path, "type"), message, is_warning=True)
    if not isinstance(number, int) or number == 0 or kind == "clusterip":
        return
    protocol = str(port.get("protocol", "TCP")).upper()
    here = explain.pointer((*path, "port"))
    first = first_with_port.setdefault((protocol, number), here)
    if first != here:
        yield _Finding((*path, "port"), f"{protocol} port {number} of the node is taken by {first} already")
    if spec.get("hostNetwork") is True and target not in (None, number):
        message = f"has no effect with `hostNetwork`: the pod listens on the node's own port {target}"
        yield _Finding((*path, "port"), message, is_warning=True)


def _targets_differ(port: dict[str, Any], path: explain.Path) -> Iterator[_Finding]:
    if "targetPort" in port and "target_port" in port and port["targetPort"] != port["target_port"]:
        yield _Finding((*path, "target_port"), "`target_port` and `targetPort` are the same field, and differ here")


def _objects(value: Any) -> list[dict[str, Any] | None]:
    """The list's objects in their places, None where something else stands; [] for what is no list."""
    return [item if isinstance(item, dict) else None for item in value] if isinstance(value, list) else []

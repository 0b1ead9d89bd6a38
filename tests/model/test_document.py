"""Workload documents: what is accepted, and what is said of the rest."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from rik.errors import FieldError, InvalidDocument
from rik.model.document import MAX_ERRORS, MAX_WARNINGS, decode, schema, validate
from rik.model.workload import parse_spec

Document = dict[str, Any]


def pod(*containers: Any, **fields: Any) -> Document:
    """A valid Pod, or one with these containers and these fields of its spec."""
    listed = list(containers) or [{"name": "web", "image": "alpine:latest"}]
    return {"apiVersion": "v1", "kind": "Pod", "name": "app", "spec": {"containers": listed, **fields}}


def container(**fields: Any) -> Document:
    return {"name": "web", "image": "alpine:latest", **fields}


def function(**fields: Any) -> Document:
    execution = {"rootfs": "https://example.org/rootfs.tar.gz"}
    spec = {"function": {"execution": execution, **fields}}
    return {"apiVersion": "v1", "kind": "Function", "name": "fn", "spec": spec}


def without(document: Document, name: str) -> Document:
    return {key: value for key, value in document.items() if key != name}


def errors_of(document: object) -> tuple[FieldError, ...]:
    with pytest.raises(InvalidDocument) as raised:
        validate(document)
    return raised.value.errors


def only_error(document: object) -> FieldError:
    errors = errors_of(document)
    assert len(errors) == 1, errors
    return errors[0]


# --- accepted

ORIGINALS: dict[str, Document] = {
    "one container": {
        "apiVersion": "v1",
        "kind": "Pod",
        "name": "alpine",
        "replicas": 1,
        "spec": {"containers": [{"name": "alpine", "image": "alpine:latest"}]},
    },
    "two containers": {
        "apiVersion": "v1",
        "kind": "Pod",
        "name": "2-distro",
        "replicas": 1,
        "spec": {
            "containers": [{"name": "ubuntu", "image": "ubuntu:latest"}, {"name": "alpine", "image": "alpine:latest"}]
        },
    },
    "replicated": {
        "apiVersion": "v1",
        "kind": "Pod",
        "name": "replicated",
        "replicas": 3,
        "spec": {
            "containers": [{"name": "ubuntu", "image": "ubuntu:latest"}, {"name": "alpine", "image": "alpine:latest"}]
        },
    },
    "function": {
        "apiVersion": "v1",
        "kind": "Function",
        "name": "my-function",
        "replicas": 1,
        "spec": {"containers": [], "function": {"execution": {"rootfs": "https://.../alpine.tar.gz"}}},
    },
    "function with exposure": {
        "apiVersion": "v1",
        "kind": "Function",
        "name": "exposed",
        "spec": {
            "function": {
                "execution": {"rootfs": "http://registry.example/v1/functions/go"},
                "exposure": {"port": 47008, "targetPort": 8080, "type": "NodePort"},
            }
        },
    },
    "env and one port, as the command line's proposal writes them": {
        "apiVersion": "v1",
        "kind": "Pod",
        "name": "workload-name",
        "spec": {
            "containers": [
                {
                    "name": "nginx",
                    "image": "nginx",
                    "env": [{"name": "key1", "value": "value1"}, {"name": "key2", "value": "value2"}],
                    "ports": {"port": 80, "target_port": 80, "protocol": "TCP", "type": "clusterIP"},
                }
            ]
        },
    },
    "what the original's own client sends: null for what is absent": {
        "apiVersion": "v1",
        "kind": "Pod",
        "name": "nulls",
        "replicas": None,
        "spec": {"containers": [{"name": "a", "image": "b", "env": None, "ports": None}], "function": None},
    },
    "a Pod that obeys the original's schema to the letter": {
        "apiVersion": "v1",
        "kind": "Pod",
        "name": "letter",
        "replicas": 1,
        "spec": {"containers": [{"name": "a", "image": "b"}], "function": {}},
    },
}


@pytest.mark.parametrize("replicas", [None, 2])
@pytest.mark.parametrize("name", ORIGINALS)
def test_the_originals_documents_are_accepted(name: str, replicas: int | None) -> None:
    """With `replicas` or without, and without a single warning."""
    document = without(ORIGINALS[name], "replicas")
    if replicas is not None:
        document["replicas"] = replicas
    validated = validate(document)
    assert validated.warnings == ()
    assert validated.document["replicas"] == (replicas or 1)
    assert isinstance(validated.document["spec"]["containers"], list)
    parse_spec(validated.document["kind"], validated.document["spec"])


def test_the_normal_form_adds_and_keeps() -> None:
    """`replicas` and `containers` are filled in, null is left out, the rest stays as it was given."""
    given = function() | {"x-owner": {"team": None}}
    given["spec"]["nodeSelector"] = None
    before = json.dumps(given)
    normal = validate(given).document
    assert normal == {**without(given, "spec"), "spec": {"function": given["spec"]["function"], "containers": []}} | {
        "replicas": 1
    }
    assert json.dumps(given) == before, "the caller's document is not touched"
    given["spec"]["function"]["execution"]["rootfs"] = "changed"
    assert normal["spec"]["function"]["execution"]["rootfs"] != "changed", "nor shared"


def test_the_letters_of_port_types_stay_as_given() -> None:
    """The stored document is the user's; its typed form has the canonical words."""
    ports = {"port": 80, "targetPort": 8080, "type": "nodeport", "protocol": "tcp"}
    normal = validate(pod(container(ports=ports))).document
    assert normal["spec"]["containers"][0]["ports"] == ports
    (port,) = parse_spec("Pod", normal["spec"]).ports
    assert (port.port, port.target_port, port.type, port.protocol) == (80, 8080, "NodePort", "TCP")


ACCEPTED: dict[str, Document] = {
    "everything of a Pod": pod(
        container(
            command=["sh", "-c"],
            args=["echo\nü", ""],
            env=[{"name": "PATH", "value": ""}, {"name": "a.b-c", "value": "=="}],
            imagePullPolicy="Always",
            workingDir="/srv/a b",
            user="app:1000",
            stdin=True,
            tty=False,
            ports=[{"targetPort": 1}, {"port": 0, "targetPort": 65535, "type": "CLUSTERIP", "protocol": "uDp"}],
        ),
        resources={"cpu": 0.5, "memory": "256Mi", "pids": 10},
        nodeSelector={"disk": "ssd", "zone": ""},
        hostNetwork=False,
        stopGraceSeconds=0,
        deadlines={"pendingSeconds": 0.5, "creatingSeconds": 86400},
    ),
    "everything of a Function": function(
        execution={"rootfs": "file:///srv/a b.tar", "sha256": "aF" * 32, "init": "/sbin/init", "command": ["/app"]},
        exposure={"port": 0, "target_port": 80, "type": "nodeport", "protocol": "tcp"},
    ),
    "a numeric user": pod(container(user=0)),
    "an empty list of ports": pod(container(ports=[])),
    "a port alone": pod(container(ports={"port": 8080})),
    "the same target twice": pod(container(ports=[{"port": 1, "targetPort": 9}, {"port": 2, "targetPort": 9}])),
    "the same port for TCP and UDP": pod(
        container(ports=[{"port": 53, "targetPort": 53}, {"port": 53, "targetPort": 53, "protocol": "UDP"}])
    ),
    "any number of ports left to RIK": pod(container(ports=[{"port": 0, "targetPort": 1}, {"targetPort": 1}])),
    "both spellings of the target, alike": pod(container(ports={"targetPort": 1, "target_port": 1})),
    "host with a command": pod(container(image="host", command=["true"])),
    "a longest name": pod() | {"name": "a" * 63},
    "a name of one letter": pod() | {"name": "7"},
    "an editor's $schema": pod() | {"$schema": "https://rik-org.github.io/rik/workloads/schema-v1.json"},
    "10,000 replicas": pod() | {"replicas": 10_000},
    "a whole number written as 2.0": pod() | {"replicas": 2.0},
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_the_contract_allows_is_accepted(name: str) -> None:
    """Each field of the contract, at its limits, without warnings; and the typed form can be made."""
    validated = validate(ACCEPTED[name])
    assert validated.warnings == ()
    parse_spec(validated.document["kind"], validated.document["spec"])
    assert type(validated.document["replicas"]) is int


def test_the_pull_policy_of_a_container() -> None:
    """It is as Kubernetes has it, IfNotPresent when nothing is said."""
    policies = [container(name=f"c{n}", **more) for n, more in enumerate(({}, {"imagePullPolicy": "Always"}))]
    spec = parse_spec("Pod", validate(pod(*policies, container(imagePullPolicy="Never"))).document["spec"])
    assert [item.image_pull_policy for item in spec.containers] == ["IfNotPresent", "Always", "Never"]


IMAGES = [
    "alpine",
    "library/alpine:3.19",
    "localhost:5000/a/b:tag@sha256:" + "0" * 64,
    "oci:./layout",
    "oci:/srv/my images:latest",
    "oci-archive:/tmp/a.tar",
    "docker-archive:/tmp/b.tar",
    "a" * 512,
]


@pytest.mark.parametrize("image", IMAGES)
def test_images_are_accepted(image: str) -> None:
    """Every form of the contract; a directory's name may hold spaces."""
    validate(pod(container(image=image)))


@pytest.mark.parametrize("cpu", [0.5, 2, 0.001, "500m", "1", "1.5", "2000m"])
@pytest.mark.parametrize("memory", ["256Mi", "1Gi", "64Ki", "1Ti", "64k", "100M", "1G", "1048576", 1048576, "1.5Gi"])
def test_quantities_are_accepted(cpu: object, memory: object) -> None:
    """Cores and millicores; binary and decimal units and plain bytes."""
    validate(pod(resources={"cpu": cpu, "memory": memory}))


# --- refused, one at a time: where, and in which words

REFUSED: dict[str, tuple[Any, str, str]] = {
    "a list": ([], "", "the document must be an object, and is a list"),
    "text": ("pod", "", "the document must be an object, and is text"),
    "null": (None, "", "the document must be an object, and is null"),
    "no apiVersion": (without(pod(), "apiVersion"), "/apiVersion", "`apiVersion` is required"),
    "no kind": (without(pod(), "kind"), "/kind", "`kind` is required"),
    "no name": (without(pod(), "name"), "/name", "`name` is required"),
    "no spec": (without(pod(), "spec"), "/spec", "`spec` is required"),
    "a null for what is required": (pod() | {"name": None}, "/name", "`name` is required"),
    "old spelling": (
        without(pod(), "apiVersion") | {"api_version": "v1"},
        "/apiVersion",
        "`apiVersion` is required; there is `api_version`: did you mean `apiVersion`?",
    ),
    "old version": (pod() | {"apiVersion": "v0"}, "/apiVersion", "`apiVersion` must be `v1`, not `v0`"),
    "kind in the plural": (
        pod() | {"kind": "pods"},
        "/kind",
        "must be `Pod` or `Function`, not `pods`; did you mean `Pod`?",
    ),
    "kind in small letters": (function() | {"kind": "function"}, "/kind", "did you mean `Function`?"),
    "an unknown kind": (pod() | {"kind": "Deployment"}, "/kind", "must be `Pod` or `Function`, not `Deployment`"),
    "kind of another type": (pod() | {"kind": 7}, "/kind", "must be `Pod` or `Function`, not `7`"),
    "name with capitals": (pod() | {"name": "My App"}, "/name", "must be 1 to 63 of a-z, 0-9 and -"),
    "empty name": (pod() | {"name": ""}, "/name", "must be 1 to 63 of a-z"),
    "long name": (pod() | {"name": "a" * 64}, "/name", "must be 1 to 63 of a-z"),
    "name with a newline": (pod() | {"name": "app\n"}, "/name", "must be 1 to 63 of a-z"),
    "name ending in -": (pod() | {"name": "app-"}, "/name", "must be 1 to 63 of a-z"),
    "name of other letters": (pod() | {"name": "ünï"}, "/name", "must be 1 to 63 of a-z"),
    "numeric name": (pod() | {"name": 7}, "/name", '`name` must be text, and is a whole number; put it in quotes: "7"'),
    "no replicas": (pod() | {"replicas": 0}, "/replicas", "must be between 1 and 10000, not `0`"),
    "too many replicas": (pod() | {"replicas": 10_001}, "/replicas", "must be between 1 and 10000"),
    "replicas in quotes": (
        pod() | {"replicas": "3"},
        "/replicas",
        "whole number, and is text; write it without quotes",
    ),
    "half a replica": (pod() | {"replicas": 1.5}, "/replicas", "must be a whole number, and is a number"),
    "replicas true": (pod() | {"replicas": True}, "/replicas", "must be a whole number, and is true or false"),
    "spec of another type": (pod() | {"spec": []}, "/spec", "`spec` must be an object, and is a list"),
    "no containers": (pod() | {"spec": {}}, "/spec/containers", "`containers` is required in `spec`"),
    "empty containers": (
        pod() | {"spec": {"containers": []}},
        "/spec/containers",
        "`containers` must not be empty: a Pod needs at least one container",
    ),
    "misspelled containers": (
        pod() | {"spec": {"contianers": [container()]}},
        "/spec/containers",
        "`containers` is required in `spec`; there is `contianers`: did you mean `containers`?",
    ),
    "one container without a list": (
        pod() | {"spec": {"containers": container()}},
        "/spec/containers",
        "`containers` must be a list, and is an object; put it in brackets: [{…}]",
    ),
    "a container of another type": (
        pod("alpine"),
        "/spec/containers/0",
        "`containers[0]` must be an object, and is text",
    ),
    "a null container": (pod(None), "/spec/containers/0", "must be an object, and is null"),
    "a container without a name": (
        pod({"image": "a"}),
        "/spec/containers/0/name",
        "`name` is required in `containers[0]`",
    ),
    "a container without an image": (pod({"name": "a"}), "/spec/containers/0/image", "`image` is required"),
    "containers of one name": (
        pod(container(), container()),
        "/spec/containers/1/name",
        "`web` is also the name of container 0",
    ),
    "empty image": (pod(container(image="")), "/spec/containers/0/image", "must not be empty"),
    "image with a space": (
        pod(container(image="al pine")),
        "/spec/containers/0/image",
        "is no image: write [registry/]",
    ),
    "image with a newline": (pod(container(image="alpine\n")), "/spec/containers/0/image", "is no image"),
    "oci with a NUL": (pod(container(image="oci:a\0b")), "/spec/containers/0/image", "is no image"),
    "long image": (pod(container(image="a" * 513)), "/spec/containers/0/image", "at most 512 characters, and has 513"),
    "host alone": (
        pod(container(image="host", args=["true"])),
        "/spec/containers/0/command",
        "`command` is required with the image `host`",
    ),
    "host with an empty command": (
        pod(container(image="host", command=[])),
        "/spec/containers/0/command",
        "is required",
    ),
    "command as text": (
        pod(container(command="sh -c 'a b'")),
        "/spec/containers/0/command",
        'must be a list, and is text; did you mean ["sh", "-c", "a b"]?',
    ),
    "command with half a quote": (
        pod(container(command="echo 'a")),
        "/spec/containers/0/command",
        'did you mean ["echo", "\'a"]?',
    ),
    "a number in a command": (
        pod(container(command=["sleep", 5])),
        "/spec/containers/0/command/1",
        '`command[1]` must be text, and is a whole number; put it in quotes: "5"',
    ),
    "NUL in a command": (pod(container(command=["a\0"])), "/spec/containers/0/command/0", "must not hold a NUL"),
    "NUL in args": (pod(container(args=["\0"])), "/spec/containers/0/args/0", "must not hold a NUL"),
    "NUL in env": (
        pod(container(env=[{"name": "A", "value": "\0"}])),
        "/spec/containers/0/env/0/value",
        "`value` must not hold a NUL",
    ),
    "env without a name": (
        pod(container(env=[{"name": "", "value": ""}])),
        "/spec/containers/0/env/0/name",
        "must be the name of a variable: not empty, without = and NUL",
    ),
    "env with =": (pod(container(env=[{"name": "A=", "value": ""}])), "/spec/containers/0/env/0/name", "without = and"),
    "env with NUL": (pod(container(env=[{"name": "A\0", "value": ""}])), "/spec/containers/0/env/0/name", "and NUL"),
    "env without a value": (
        pod(container(env=[{"name": "A"}])),
        "/spec/containers/0/env/0/value",
        "`value` is required",
    ),
    "env as an object": (pod(container(env={"A": "b"})), "/spec/containers/0/env", "must be a list, and is an object"),
    "env with a number": (
        pod(container(env=[{"name": "A", "value": 8080}])),
        "/spec/containers/0/env/0/value",
        'put it in quotes: "8080"',
    ),
    "relative directory": (
        pod(container(workingDir="srv")),
        "/spec/containers/0/workingDir",
        "must be an absolute path",
    ),
    "user with a space": (pod(container(user="a b")), "/spec/containers/0/user", "must be user[:group]"),
    "negative user": (pod(container(user=-1)), "/spec/containers/0/user", "must be user[:group]"),
    "tty as text": (pod(container(tty="yes")), "/spec/containers/0/tty", "must be true or false, and is text"),
    "port beyond": (pod(container(ports={"port": 65536})), "/spec/containers/0/ports/port", "between 0 and 65535"),
    "negative port in a list": (
        pod(container(ports=[{"port": -1, "targetPort": 1}])),
        "/spec/containers/0/ports/0/port",
        "between 0 and 65535, not `-1`",
    ),
    "target 0": (pod(container(ports={"targetPort": 0})), "/spec/containers/0/ports/targetPort", "between 1 and 65535"),
    "port without a target": (pod(container(ports={"port": 0})), "/spec/containers/0/ports/targetPort", "is required"),
    "empty port": (pod(container(ports=[{}])), "/spec/containers/0/ports/0/targetPort", "`targetPort` is required"),
    "targets that differ": (
        pod(container(ports={"targetPort": 1, "target_port": 2})),
        "/spec/containers/0/ports/target_port",
        "are the same field, and differ here",
    ),
    "port as text": (
        pod(container(ports={"port": "80"})),
        "/spec/containers/0/ports/port",
        "must be a whole number, and is text; write it without quotes",
    ),
    "ports as a number": (pod(container(ports=80)), "/spec/containers/0/ports", "must be a list or an object"),
    "unknown protocol": (
        pod(container(ports={"port": 1, "protocol": "SCTP"})),
        "/spec/containers/0/ports/protocol",
        "must be `TCP` or `UDP`, not `SCTP`",
    ),
    "misspelled port type": (
        pod(container(ports={"port": 1, "type": "node-prot"})),
        "/spec/containers/0/ports/type",
        "must be `NodePort`, `ClusterIP` or `LoadBalancer`, not `node-prot`; did you mean `NodePort`?",
    ),
    "misspelled pull policy": (
        pod(container(imagePullPolicy="always")),
        "/spec/containers/0/imagePullPolicy",
        "must be `IfNotPresent`, `Always` or `Never`, not `always`; did you mean `Always`?",
    ),
    "pull policy of another type": (
        pod(container(imagePullPolicy=True)),
        "/spec/containers/0/imagePullPolicy",
        "must be `IfNotPresent`, `Always` or `Never`, not `true`",
    ),
    "a port taken twice by one container": (
        pod(container(ports=[{"port": 80, "targetPort": 1}, {"port": 80, "targetPort": 2, "protocol": "tcp"}])),
        "/spec/containers/0/ports/1/port",
        "TCP port 80 of the node is taken by /spec/containers/0/ports/0/port already",
    ),
    "a port taken twice by two containers": (
        pod(container(ports={"port": 80}), container(name="b", ports={"port": 80, "type": "loadbalancer"})),
        "/spec/containers/1/ports/port",
        "is taken by /spec/containers/0/ports/port already",
    ),
    "cpu in words": (pod(resources={"cpu": "lots"}), "/spec/resources/cpu", "'lots' is no amount of cpu"),
    "no cpu": (pod(resources={"cpu": 0}), "/spec/resources/cpu", "cpu must be"),
    "negative cpu": (pod(resources={"cpu": -1}), "/spec/resources/cpu", "no amount of cpu"),
    "cpu as a list": (pod(resources={"cpu": []}), "/spec/resources/cpu", "must be a number or text, and is a list"),
    "cpu without end": (pod(resources={"cpu": "9" * 500}), "/spec/resources/cpu", "at most 40 characters"),
    "memory 0": (pod(resources={"memory": "0"}), "/spec/resources/memory", "must be more than 0"),
    "memory in a wrong unit": (pod(resources={"memory": "256MB"}), "/spec/resources/memory", "no amount of memory"),
    "memory true": (pod(resources={"memory": True}), "/spec/resources/memory", "must be a number or text"),
    "no pids": (pod(resources={"pids": 0}), "/spec/resources/pids", "must be between 1 and"),
    "resources as a list": (pod(resources=[]), "/spec/resources", "must be an object"),
    "selector with a number": (
        pod(nodeSelector={"a/b~c": 1}),
        "/spec/nodeSelector/a~1b~0c",
        'must be text, and is a whole number; put it in quotes: "1"',
    ),
    "hostNetwork as text": (pod(hostNetwork="true"), "/spec/hostNetwork", "must be true or false, and is text"),
    "grace below": (pod(stopGraceSeconds=-1), "/spec/stopGraceSeconds", "must be between 0 and 3600, not `-1`"),
    "grace beyond": (pod(stopGraceSeconds=3601), "/spec/stopGraceSeconds", "must be between 0 and 3600"),
    "deadline 0": (
        pod(deadlines={"pendingSeconds": 0}),
        "/spec/deadlines/pendingSeconds",
        "must be more than 0 and at most 86400, not `0`",
    ),
    "deadline beyond": (pod(deadlines={"creatingSeconds": 1e9}), "/spec/deadlines/creatingSeconds", "at most 86400"),
    "Function without function": (
        pod() | {"kind": "Function", "spec": {"containers": []}},
        "/spec/function",
        "`function` is required in `spec`",
    ),
    "Function without execution": (
        pod() | {"kind": "Function", "spec": {"function": {}}},
        "/spec/function/execution",
        "`execution` is required in `function`",
    ),
    "Function without rootfs": (function(execution={}), "/spec/function/execution/rootfs", "`rootfs` is required"),
    "function of another type": (
        pod() | {"kind": "Function", "spec": {"function": "x"}},
        "/spec/function",
        "`function` must be an object, and is text",
    ),
    "rootfs by ftp": (
        function(execution={"rootfs": "ftp://example.org/a"}),
        "/spec/function/execution/rootfs",
        "must be the http, https or file URL of a root file system; not `ftp://example.org/a`",
    ),
    "rootfs without a host": (function(execution={"rootfs": "http:///a"}), "/spec/function/execution/rootfs", "URL of"),
    "rootfs with a newline": (
        function(execution={"rootfs": "http://a/\nb"}),
        "/spec/function/execution/rootfs",
        "must be the http, https or file URL",
    ),
    "a short digest": (
        function(execution={"rootfs": "http://a/b", "sha256": "abc"}),
        "/spec/function/execution/sha256",
        "must be 64 hexadecimal digits; not `abc`",
    ),
    "relative init": (
        function(execution={"rootfs": "http://a/b", "init": "init"}),
        "/spec/function/execution/init",
        "must be an absolute path",
    ),
    "exposure without a target": (
        function(exposure={"port": 46000}),
        "/spec/function/exposure/targetPort",
        "`targetPort` is required: the port the function listens on",
    ),
    "exposure by ClusterIP": (
        function(exposure={"targetPort": 1, "type": "ClusterIP"}),
        "/spec/function/exposure/type",
        "must be `NodePort`, not `ClusterIP`",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_each_mistake_is_named_with_its_place(name: str) -> None:
    """One mistake, one error: its JSON pointer, and a sentence."""
    document, pointer, sentence = REFUSED[name]
    error = only_error(document)
    assert error.pointer == pointer
    assert sentence in error.message
    assert len(error.message) < 250


def test_all_errors_come_at_once() -> None:
    """Schema and cross-field mistakes together, even under a misspelled kind."""
    document = {
        "apiVersion": "v2",
        "kind": "pod",
        "name": "-",
        "replicas": 0,
        "spec": {
            "containers": [
                {"name": "a", "imgae": "x"},
                {"name": "a", "image": "host", "ports": [{"port": 70000}]},
            ],
            "resources": {"memory": "0", "cpu": "x"},
        },
    }
    assert {error.pointer for error in errors_of(document)} == {
        "/apiVersion",
        "/kind",
        "/name",
        "/replicas",
        "/spec/containers/0/image",
        "/spec/containers/1/name",
        "/spec/containers/1/command",
        "/spec/containers/1/ports/0/port",
        "/spec/resources/memory",
        "/spec/resources/cpu",
    }


def test_an_empty_object_lacks_what_is_required() -> None:
    """Each required field is an error of its own, in the schema's order."""
    assert [error.pointer for error in errors_of({})] == ["/apiVersion", "/kind", "/name", "/spec"]


def test_errors_stand_in_the_order_of_the_items() -> None:
    """Item 10 comes after item 9, not after item 1."""
    pointers = [error.pointer for error in errors_of(pod(*[{"name": f"c{number}"} for number in range(12)]))]
    assert pointers == [f"/spec/containers/{number}/image" for number in range(12)]


def test_a_flood_of_mistakes_is_cut_off() -> None:
    """A large document that is wrong everywhere gets a bounded answer."""
    document = pod(*[{"nmae": number, "image": 7} for number in range(5000)])
    assert len(errors_of(document)) == MAX_ERRORS


# --- warnings

WARNED: dict[str, tuple[Document, str]] = {
    "unknown at the top": (
        pod() | {"replica": 3},
        "/replica: RIK does not know this field and ignores it; did you mean `replicas`?",
    ),
    "unknown and unlike": (pod() | {"x-team": "a"}, "/x-team: RIK does not know this field and ignores it"),
    "unknown in spec": (
        pod(hostnetwork=True),
        "/spec/hostnetwork: RIK does not know this field and ignores it; did you",
    ),
    "unknown in a container": (
        pod(container(working_dir="/")),
        "/spec/containers/0/working_dir: RIK does not know this field and ignores it; did you mean `workingDir`?",
    ),
    "the original's older word for ports": (
        pod(container(network={"port": 80})),
        "/spec/containers/0/network: RIK does not know this field and ignores it; did you mean `ports`?",
    ),
    "another word for the pull policy": (
        pod(container(pullPolicy="Always")),
        "/spec/containers/0/pullPolicy: RIK does not know this field and ignores it; did you mean `imagePullPolicy`?",
    ),
    "a pull policy for what is never pulled": (
        pod(container(image="host", command=["true"], imagePullPolicy="Never")),
        "/spec/containers/0/imagePullPolicy: has no effect: the image `host` is never pulled",
    ),
    "unknown in a port": (
        pod(container(ports={"port": 1, "targetport": 2})),
        "/spec/containers/0/ports/targetport: RIK does not know this field and ignores it; did you mean `targetPort`?",
    ),
    "unknown in a listed port": (
        pod(container(ports=[{"port": 1, "nmae": 2}])),
        "/spec/containers/0/ports/0/nmae: RIK",
    ),
    "unknown in env": (
        pod(container(env=[{"name": "A", "value": "b", "valueFrom": {}}])),
        "/spec/containers/0/env/0/valueFrom: RIK does not know",
    ),
    "unknown in resources": (
        pod(resources={"limits": {}}),
        "/spec/resources/limits: RIK does not know this field and ignores it",
    ),
    "unknown in a function": (
        function(expose={}),
        "/spec/function/expose: RIK does not know this field and ignores it; did you mean `exposure`?",
    ),
    "unknown in a function's execution": (
        function(execution={"rootfs": "http://a/b", "sha_256": "x"}),
        "/spec/function/execution/sha_256: RIK does not know this field and ignores it; did you mean `sha256`?",
    ),
    "a name to be escaped": (pod() | {"a/b~c": 1}, "/a~1b~0c: RIK does not know"),
    "LoadBalancer": (
        pod(container(ports={"port": 80, "type": "loadBalancer"})),
        "/spec/containers/0/ports/type: RIK has no load balancers: `LoadBalancer` is taken as `NodePort`",
    ),
    "another port on the host's network": (
        pod(container(ports=[{"port": 80, "target_port": 8080}]), hostNetwork=True),
        "/spec/containers/0/ports/0/port: has no effect with `hostNetwork`: the pod listens on the node's own port",
    ),
    "a Pod with a function": (
        pod(function={"execution": {}}),
        "/spec/function: has no effect: a Pod runs its containers",
    ),
    "a Function with containers": (
        {**function(), "spec": {**function()["spec"], "containers": [container()]}},
        "/spec/containers: has no effect: a Function starts its rootfs only",
    ),
    "a Function on the host's network": (
        {**function(), "spec": {**function()["spec"], "hostNetwork": True}},
        "/spec/hostNetwork: has no effect: a Function has a network of its own",
    ),
}


@pytest.mark.parametrize("name", WARNED)
def test_what_has_no_effect_is_accepted_with_a_warning(name: str) -> None:
    """Unknown fields anywhere, and known ones without effect, are named by their pointer and kept."""
    document, warning = WARNED[name]
    validated = validate(document)
    assert len(validated.warnings) == 1
    assert validated.warnings[0].startswith(warning)
    assert validated.document["spec"] == {"containers": [], **document["spec"]}


def test_same_port_on_the_hosts_network_is_no_mistake() -> None:
    """With `hostNetwork`, a port that leads to itself, or none asked for, needs no warning."""
    ports = [{"port": 80, "targetPort": 80}, {"targetPort": 81}, {"port": 82}]
    assert validate(pod(container(ports=ports), hostNetwork=True)).warnings == ()


def test_a_flood_of_unknown_fields_is_cut_off() -> None:
    """The warnings of a large document are bounded, and say so."""
    warnings = validate(pod() | {f"field{number}": 1 for number in range(5000)}).warnings
    assert len(warnings) == MAX_WARNINGS + 1
    assert warnings[-1] == ": and 4900 more warnings"


# --- the schema itself, and anything at all


def test_the_schema_is_the_published_one() -> None:
    """A valid Draft 2020-12 schema under the original's `$id`, which any validator can use."""
    published = json.loads(schema())
    Draft202012Validator.check_schema(published)
    assert published["$id"] == "https://rik-org.github.io/rik/workloads/schema-v1.json"
    any_validator = Draft202012Validator(published)
    for document in ACCEPTED.values():
        assert any_validator.is_valid(document)


def test_every_field_of_the_schema_is_described_by_a_type_or_reference() -> None:
    """No field of the schema lets anything pass, but for a Pod's own function."""

    def undescribed(node: Any, path: str) -> list[str]:
        if isinstance(node, list):
            return [found for item in node for found in undescribed(item, path)]
        if not isinstance(node, dict):
            return []
        found = [
            f"{path}/{name}"
            for name, field in node.get("properties", {}).items()
            if isinstance(field, bool) or not field.keys() & {"type", "$ref", "enum", "const", "required", "properties"}
        ]
        return found + [item for key, value in node.items() for item in undescribed(value, f"{path}/{key}")]

    assert [path for path in undescribed(json.loads(schema()), "") if "/then/" not in path] == [
        "/properties/spec/properties/function/execution",
        "/properties/spec/properties/function/exposure",
    ]


def mutated(generator: random.Random, value: Any, fields: list[str]) -> Any:
    """A copy of `value` in which about every tenth thing is something else."""
    if generator.random() < 0.08:
        return anything(generator, fields, 3)
    if isinstance(value, dict):
        result = {key: mutated(generator, item, fields) for key, item in value.items() if generator.random() > 0.04}
        if generator.random() < 0.1:
            result[generator.choice(fields)] = anything(generator, fields, 2)
        return result
    if isinstance(value, list):
        return [mutated(generator, item, fields) for item in value for _ in range(generator.choice((0, 1, 1, 1, 2)))]
    return value


def anything(generator: random.Random, fields: list[str], depth: int) -> Any:
    kind = generator.randrange(10 if depth else 8)
    if kind == 8:
        return [anything(generator, fields, depth - 1) for _ in range(generator.randrange(4))]
    if kind == 9:
        return {generator.choice(fields): anything(generator, fields, depth - 1) for _ in range(generator.randrange(5))}
    words = ["", "host", "Pod", "TCP", "\0", "a\n", "500m", "-1", "'", "é" * 70, "/", "~"]
    scalars = [None, True, False, generator.randrange(-2, 70_000), 2**63, -0.0, 1.5, generator.choice(words)]
    return scalars[kind]


def test_random_documents_never_do_anything_else() -> None:
    """A random JSON value is accepted, in a form that can be typed and stored, or refused by InvalidDocument."""
    generator = random.Random(20261)
    seeds = [*ORIGINALS.values(), *ACCEPTED.values()]
    fields = sorted({name for seed in seeds for name in json.dumps(seed).split('"')[1::2]})
    outcomes = {"accepted": 0, "refused": 0}
    for _ in range(4000):
        document = mutated(generator, generator.choice(seeds), fields)
        before = json.dumps(document)
        try:
            validated = validate(document)
        except InvalidDocument as invalid:
            outcomes["refused"] += 1
            assert invalid.errors
            assert all(error.message and len(error.message) < 300 for error in invalid.errors)
        else:
            outcomes["accepted"] += 1
            normal = validated.document
            parse_spec(normal["kind"], normal["spec"])
            assert decode(json.dumps(normal).encode()) == normal
            again = validate(normal)
            assert again.document == normal, "the normal form is its own normal form"
        assert json.dumps(document) == before
    assert min(outcomes.values()) > 200, outcomes


def test_examples_of_this_repository_are_valid() -> None:
    """Every document under `examples/` is accepted without a warning."""
    examples = Path(__file__).parents[2] / "examples"
    for path in sorted(examples.rglob("*.json")) + sorted(examples.rglob("*.yaml")):
        assert validate(decode(path.read_bytes(), path.name)).warnings == (), path

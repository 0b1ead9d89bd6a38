"""The JSON schemas of what the API takes and gives: `components.schemas` of the OpenAPI document.

Objects are closed (`additionalProperties: false`), so that a test notices a field nobody has described; clients should
take no notice of that and accept what is new.
"""

from __future__ import annotations

from typing import Any

from rik.model.instance import Reason, Status

Schema = dict[str, Any]


def ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def array(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def closed(properties: dict[str, Schema], optional: frozenset[str] = frozenset()) -> Schema:
    """An object of exactly these properties."""
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def nullable(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


TEXT: Schema = {"type": "string"}
INTEGER: Schema = {"type": "integer"}
COUNT: Schema = {"type": "integer", "minimum": 0}
BOOLEAN: Schema = {"type": "boolean"}
ANYTHING: Schema = {"type": "object"}
TIME: Schema = {
    "type": "string",
    "format": "date-time",
    "pattern": r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d{3}Z$",
}
PORT: Schema = {"type": "integer", "minimum": 0, "maximum": 65535}
NAME: Schema = {"type": "string", "pattern": "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"}
STATUS: Schema = {"type": "string", "enum": [status.value for status in Status]}
REASON: Schema = {"type": "string", "enum": ["", *(reason.value for reason in Reason)]}
LIMITS: Schema = {"type": "object", "additionalProperties": {"anyOf": [{"const": True}, TEXT, BOOLEAN]}}
RESOURCES: Schema = closed({"cpu_millis": COUNT, "memory_bytes": COUNT, "pids": COUNT})

_PROGRESS: dict[str, Schema] = {
    "done": COUNT,
    "total": COUNT,
    "unit": TEXT,
    "layers": nullable(closed({"done": COUNT, "total": COUNT})),
    "seconds": {"type": "number", "minimum": 0},
}
_SUMMARY: dict[str, Schema] = {
    "id": TEXT,
    "uid": TEXT,
    "name": TEXT,
    "kind": {"type": "string", "enum": ["Pod", "Function"]},
    "namespace": TEXT,
    "workload_id": TEXT,
    "workload": TEXT,
    "status": STATUS,
    "reason": REASON,
    "message": TEXT,
    "node": TEXT,
    "stale_since": nullable(TIME),
    "created_at": TIME,
    "updated_at": TIME,
    "step": TEXT,
    "progress": nullable(closed(_PROGRESS)),
    "containers": array(ref("Container")),
    "ip": TEXT,
    "ports": array(ref("Port")),
    "enforced": LIMITS,
    "revision": COUNT,
}
_FULL: dict[str, Schema] = {
    **_SUMMARY,
    "spec": ANYTHING,
    "decision": TEXT,
    "images": array(ref("ImageUse")),
    "history": array(closed({"status": STATUS, "at": nullable(TIME), "message": TEXT})),
    "log_tail": array(closed({"container": TEXT, "stream": TEXT, "at": nullable(TIME), "line": TEXT})),
}

_SECONDS: Schema = {"type": "number", "minimum": 0}
_PULLED_IMAGE: dict[str, Schema] = {
    "reference": TEXT,
    "digest": TEXT,
    "origin": TEXT,
    "cached": BOOLEAN,
    "layers": COUNT,
    "pulled_layers": COUNT,
    "pulled_bytes": COUNT,
    "size_bytes": COUNT,
    "seconds": _SECONDS,
    "pulled_at": nullable(TIME),
    "exposed_ports": array(TEXT),
    "dropped": {"type": "object", "additionalProperties": COUNT},
    "labels": {"type": "object", "additionalProperties": TEXT},
}
_STORED_IMAGE: dict[str, Schema] = {
    "references": array(TEXT),
    "digest": TEXT,
    "origin": TEXT,
    "layers": COUNT,
    "size_bytes": COUNT,
    "pulled_bytes": COUNT,
    "seconds": _SECONDS,
    "pulled_at": nullable(TIME),
    "used_at": nullable(TIME),
    "instances": array(TEXT),
    "exposed_ports": array(TEXT),
    "dropped": {"type": "object", "additionalProperties": COUNT},
    "labels": {"type": "object", "additionalProperties": TEXT},
}

SCHEMAS: dict[str, Schema] = {
    "ImageUse": closed({**_PULLED_IMAGE, "containers": array(TEXT)}),
    "ImageEntry": closed({"id": TEXT, "name": TEXT, "value": closed({"node": TEXT, **_STORED_IMAGE})}),
    "Pulled": closed({"image": TEXT, "pulled": array(closed({"node": TEXT, **_PULLED_IMAGE}))}),
    "PullLine": {
        "oneOf": [
            closed({"type": {"const": "progress"}, "node": TEXT, "step": TEXT, **_PROGRESS}),
            closed({"type": {"const": "image"}, "node": TEXT, **_PULLED_IMAGE}),
            closed({"type": {"const": "error"}, "node": TEXT, "problem": ref("Problem")}),
        ]
    },
    "PrunedImages": closed(
        {
            "nodes": array(
                closed(
                    {
                        "node": TEXT,
                        "removed": array(closed(_STORED_IMAGE)),
                        "freed_bytes": COUNT,
                        "kept": COUNT,
                        "size_bytes": COUNT,
                    }
                )
            ),
            "freed_bytes": COUNT,
        }
    ),
    "Problem": closed(
        {
            "type": TEXT,
            "title": TEXT,
            "status": {"type": "integer", "minimum": 400, "maximum": 599},
            "detail": TEXT,
            "errors": array(closed({"pointer": TEXT, "message": TEXT})),
            "reason": TEXT,
            "next": TEXT,
        },
        frozenset({"next"}),
    ),
    "Container": closed(
        {
            "name": TEXT,
            "image": TEXT,
            "state": {"type": "string", "enum": ["waiting", "creating", "running", "exited"]},
            "exit_code": nullable(INTEGER),
            "signal": nullable(TEXT),
            "oom_killed": BOOLEAN,
            "started_at": nullable(TIME),
            "ended_at": nullable(TIME),
        }
    ),
    "Port": closed(
        {
            "port": PORT,
            "targetPort": PORT,
            "protocol": {"type": "string", "enum": ["TCP", "UDP"]},
            "type": {"type": "string", "enum": ["NodePort", "ClusterIP"]},
            "address": TEXT,
        }
    ),
    "InstanceSummary": closed(_SUMMARY),
    "InstanceWithSpec": closed({**_SUMMARY, "spec": ANYTHING}),
    "Instance": closed(_FULL),
    "InstanceEntry": closed({"id": TEXT, "name": TEXT, "value": ref("InstanceSummary")}),
    "WorkloadDocument": {
        "type": "object",
        "description": "See /workloads/schema-v1.json.",
        "required": ["apiVersion", "kind", "name", "spec", "replicas"],
        "properties": {"replicas": INTEGER, "spec": {"type": "object", "required": ["containers"]}},
    },
    "WorkloadEntry": closed({"id": TEXT, "name": TEXT, "value": ref("WorkloadDocument")}),
    "NodeEntry": closed({"id": TEXT, "name": TEXT, "value": ref("Node")}),
    "Node": closed(
        {
            "id": TEXT,
            "name": TEXT,
            "status": {"type": "string", "enum": ["Ready", "NotReady"]},
            "roles": array(TEXT),
            "labels": {"type": "object", "additionalProperties": TEXT},
            "runtimes": array(
                closed({"name": TEXT, "ok": BOOLEAN, "reason": TEXT, "kinds": array(TEXT), "limits": LIMITS})
            ),
            "capacity": RESOURCES,
            "allocated": RESOURCES,
            "instances": COUNT,
            "heartbeat_at": nullable(TIME),
            "version": TEXT,
            "boot_id": TEXT,
            "cordoned": BOOLEAN,
            "metrics": ANYTHING,
        }
    ),
    "Event": closed(
        {
            "revision": COUNT,
            "at": nullable(TIME),
            "namespace": TEXT,
            "object": TEXT,
            "node": TEXT,
            "type": {"type": "string", "enum": ["Normal", "Warning"]},
            "reason": TEXT,
            "message": TEXT,
        }
    ),
    "ClusterInfo": closed(
        {
            "id": TEXT,
            "version": TEXT,
            "revision": COUNT,
            "leader": TEXT,
            "nodes": closed({"total": COUNT, "ready": COUNT}),
            "store": TEXT,
        }
    ),
    "Created": closed({"id": TEXT, "warnings": array(TEXT)}),
    "Explanation": {
        "type": "object",
        "required": ["instance", "status", "node", "decision", "nodes"],
        "properties": {
            "instance": TEXT,
            "uid": TEXT,
            "status": STATUS,
            "reason": REASON,
            "message": TEXT,
            "node": TEXT,
            "decision": {**TEXT, "description": "Why it was placed as it was, or is not."},
            "now": {**TEXT, "description": "What would be decided at this moment."},
            "policy": TEXT,
            "nodes": array(
                {
                    "type": "object",
                    "required": ["name", "fits", "why"],
                    "properties": {"name": TEXT, "fits": BOOLEAN, "why": TEXT},
                }
            ),
        },
    },
    "Stats": ANYTHING,
    "Audit": {"type": "object", "required": ["resources", "orphans"]},
    "Doctor": {"type": "object", "required": ["checks"]},
    "LogLine": closed({"at": TEXT, "container": TEXT, "stream": TEXT, "line": TEXT}),
    "SnapshotFrame": closed(
        {"type": {"const": "snapshot"}, "revision": COUNT, "instances": array(ref("InstanceSummary"))}
    ),
    "InstanceFrame": closed(
        {
            "type": {"const": "instance"},
            "revision": COUNT,
            "op": {"type": "string", "enum": ["put", "delete"]},
            "instance": {
                "if": {"properties": {"status": {"enum": ["Failed", "Terminated"]}}},
                "then": ref("Instance"),
                "else": ref("InstanceSummary"),
            },
        }
    ),
    "WatchFrame": {
        "oneOf": [
            ref("SnapshotFrame"),
            ref("InstanceFrame"),
            closed({"type": {"const": "batch"}, "changes": array(ref("InstanceFrame"))}),
            closed({"type": {"const": "sync"}, "revision": COUNT}),
            closed(
                {
                    "type": {"const": "progress"},
                    "instance": TEXT,
                    "step": TEXT,
                    **_PROGRESS,
                }
            ),
            closed({"type": {"const": "gap"}, "oldest": COUNT}),
            closed({"type": {"const": "bye"}}),
        ]
    },
}

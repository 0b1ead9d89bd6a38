"""Logs, exec and attach."""

from __future__ import annotations

from typing import Any

import trio

from rik.api.logs import LogQuery, LogReader, LogText, stream_logs
from rik.api.operations import API, GET, TEXT, WEBSOCKET, Call, Operation, Outcome, Parameter, Reply, Socket
from rik.api.service import Service
from rik.api.terminals import bridge, exec_request, open_exec
from rik.messages import Attach, Exec

MAX_CELLS = 65_535

LOG_PARAMETERS = (
    Parameter("container", "text", "Only this container's."),
    Parameter("tail", "integer", "Only so many of the last lines."),
    Parameter("since", "moment", "Only lines since then: RFC 3339, or a duration before now such as 5m."),
    Parameter("follow", "boolean", "Go on with new lines until the instance has ended."),
    Parameter("timestamps", "boolean", "Each line after its time."),
)
EXEC_PARAMETERS = (
    Parameter("command", "texts", "The program and its arguments, a parameter each.", required=True),
    Parameter("container", "text", "In this container; the first by default."),
    Parameter("tty", "boolean", "Give it a terminal."),
    Parameter("cols", "integer", "The terminal's width.", minimum=1, maximum=MAX_CELLS),
    Parameter("rows", "integer", "The terminal's height.", minimum=1, maximum=MAX_CELLS),
)


def _log_query(query: dict[str, Any]) -> LogQuery:
    return LogQuery(
        query["container"] or "",
        query["tail"],
        query["since"] or 0,
        bool(query["follow"]),
        bool(query["timestamps"]),
    )


async def read_logs(service: Service, call: Call) -> Reply:
    query = _log_query(dict(call.query))
    reader = await LogReader.open(service, call.path["instance"], query)
    return Reply(200, LogText(reader, query, service.closing), TEXT)


async def watch_logs(service: Service, call: Call, socket: Socket) -> None:
    reader = await LogReader.open(service, call.path["instance"], _log_query(dict(call.query)))
    try:
        await socket.accept()
        await stream_logs(service, reader, socket)
    finally:
        await reader.aclose()


async def exec_in_instance(service: Service, call: Call, socket: Socket) -> None:
    query = call.query
    request = exec_request(query["command"], query["container"] or "", bool(query["tty"]), query["cols"], query["rows"])
    await _converse(service, call.path["instance"], request, socket)


async def attach_to_instance(service: Service, call: Call, socket: Socket) -> None:
    await _converse(service, call.path["instance"], Attach("", call.query["container"] or ""), socket)


async def _converse(service: Service, instance: str, request: Exec | Attach, socket: Socket) -> None:
    stream = await open_exec(service, instance, request)
    try:
        await socket.accept()
        await bridge(service, stream, socket)
    finally:
        with trio.CancelScope(shield=True):
            await stream.aclose()


OPERATIONS = (
    Operation(
        "instances.logs",
        GET,
        f"{API}/instances.logs/{{instance}}",
        "What the instance has written; without `container` of all its containers, prefixed when there are several.",
        "instances",
        read_logs,
        parameters=LOG_PARAMETERS,
        outcomes={200: Outcome("The lines.", media_type=TEXT)},
        patient=True,
    ),
    Operation(
        "instances.logs.stream",
        WEBSOCKET,
        f"{API}/instances.logs/{{instance}}",
        "The same as text frames of JSON, a line each (schema LogLine).",
        "instances",
        socket=watch_logs,
        parameters=LOG_PARAMETERS,
        outcomes={101: Outcome("The websocket is open.", media_type="")},
        patient=True,
    ),
    Operation(
        "instances.exec",
        WEBSOCKET,
        f"{API}/instances.exec/{{instance}}",
        "Run a command in the instance. Binary frames, by their first byte: 0 input (empty: its end), 1 output, "
        '2 error output, 3 JSON control: {"resize":[cols,rows]}, {"exit":N}, {"error":…}.',
        "instances",
        socket=exec_in_instance,
        parameters=EXEC_PARAMETERS,
        outcomes={101: Outcome("The websocket is open.", media_type="")},
        patient=True,
    ),
    Operation(
        "instances.attach",
        WEBSOCKET,
        f"{API}/instances.attach/{{instance}}",
        "The input and output of the container's main process; frames as in instances.exec.",
        "instances",
        socket=attach_to_instance,
        parameters=(EXEC_PARAMETERS[1],),
        outcomes={101: Outcome("The websocket is open.", media_type="")},
        patient=True,
    ),
)

"""Following instances from their creation to Running or a final status, and to their end."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import trio

from rik.cli.client import Client
from rik.cli.errors import RequestRefused
from rik.cli.output import note
from rik.cli.progress import fields_of
from rik.cli.story import Record, is_final
from rik.cli.stream import Frame

PATIENCE_S = 60.0  # how long a server may be away, for a restart say, before following it is given up


class Followed:
    """The latest known record of each instance that is followed, fed by the frames of a watch.

    `gone` are the names whose record was removed from the list: they are over, whatever their last status.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.names = list(names)
        self.latest: dict[str, dict[str, Any]] = {}
        self.gone: set[str] = set()
        self._wanted = frozenset(self.names)

    def apply(self, frame: Frame) -> list[Record]:
        """Takes one frame in; returns the records that it changed."""
        kind = frame.get("type")
        if kind == "snapshot":
            there = {record["name"]: record for record in frame["instances"] if record["name"] in self._wanted}
            for name in self._wanted - there.keys():  # it was created before the watch began, so it has been removed
                self.gone.add(name)
                self.latest.setdefault(name, {"name": name})
            self.latest.update(there)
            return list(there.values())
        if kind == "instance":
            return self._apply_change(frame["op"], frame["instance"])
        if kind == "progress":
            return self._apply_progress(frame)
        return []

    def _apply_change(self, op: str, record: dict[str, Any]) -> list[Record]:
        name = record["name"]
        if name not in self._wanted:
            return []
        if op == "delete":
            self.gone.add(name)
        self.latest[name] = record
        return [record]

    def _apply_progress(self, frame: Frame) -> list[Record]:
        record = self.latest.get(str(frame.get("instance")))
        if record is None or record.get("status") != "Creating":
            return []
        record["step"] = frame.get("step")
        record["progress"] = fields_of(frame, record.get("progress") or {})
        return [record]

    def over(self, name: str) -> bool:
        """Whether the instance has ended, or its record is gone."""
        return name in self.gone or is_final(self.latest.get(name, {}))

    def settled(self, name: str) -> bool:
        """Whether it is Running, or over."""
        return self.over(name) or self.latest.get(name, {}).get("status") == "Running"

    @property
    def all_settled(self) -> bool:
        return all(self.settled(name) for name in self.names)

    @property
    def all_over(self) -> bool:
        return all(self.over(name) for name in self.names)


async def next_frame(frames: trio.MemoryReceiveChannel[Frame]) -> Frame:
    """The next frame; losses and gaps of the connection are told on standard error."""
    frame = await frames.receive()
    if frame["type"] == "lost":
        note(f"connection lost ({frame['error']}); trying again")
    elif frame["type"] == "resumed":
        note("connected again")
    return frame


def full_record(client: Client, record: Record) -> Record:
    """The record with its history and last lines, post-mortem included; `record` itself when there is none any more."""
    try:
        full = client.get("instances.get", str(record.get("uid") or record["name"])).json()
    except RequestRefused as error:
        if error.status != 404:
            raise
        return record
    return full if isinstance(full, dict) else record

"""How long a silent node is believed. Pure: times are those of the caller's monotonic clock, in seconds.

Leases live in memory only and start afresh with the scheduler: a node is not blamed for the scheduler's own absence.
"""

from __future__ import annotations


class Leases:
    """`lease_s` after a node was last heard of its lease has run out; `lost_after_s` later it is lost."""

    def __init__(self, lease_s: float, lost_after_s: float) -> None:
        self._lease_s = lease_s
        self._lost_after_s = lost_after_s
        self._heard: dict[str, float] = {}

    def hear(self, node_id: str, now: float) -> None:
        self._heard[node_id] = now

    def forget(self, node_id: str) -> None:
        self._heard.pop(node_id, None)

    def forgive(self, duration_s: float) -> None:
        """Moves every lease on by a time in which nobody could be heard, because this process itself stood still."""
        for node_id in self._heard:
            self._heard[node_id] += duration_s

    def valid(self, node_id: str, now: float) -> bool:
        heard = self._heard.get(node_id)
        return heard is not None and now - heard < self._lease_s

    def run_out(self, now: float) -> list[str]:
        """Every node whose lease has run out, the lost ones among them."""
        return [node_id for node_id, heard in self._heard.items() if now - heard >= self._lease_s]

    def lost(self, now: float) -> list[str]:
        limit = self._lease_s + self._lost_after_s
        return [node_id for node_id, heard in self._heard.items() if now - heard >= limit]

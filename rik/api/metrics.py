"""What `/metrics` tells Prometheus. Each api has a registry of its own, so that several may live in one process."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from rik.api.session import Session
from rik.api.view import View
from rik.api.watch import Hub
from rik.model.instance import Status
from rik.model.node import NodeStatus

# From what a question to the view takes to what a busy store does.
_BUCKETS_S = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0)


class Metrics:
    """Counts requests, and reads everything else from the view when it is asked."""

    def __init__(self, view: View, hub: Hub, session: Session) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "rik_http_requests", "Requests answered, by route and status.", ("route", "status"), registry=self._registry
        )
        self._seconds = Histogram(
            "rik_http_request_seconds",
            "Time from a request to the beginning of its answer.",
            registry=self._registry,
            buckets=_BUCKETS_S,
        )
        self._registry.register(_ViewCollector(view, hub, session))
        ProcessCollector(registry=self._registry)

    def count(self, route: str, status: int, seconds: float) -> None:
        """`route` is an operation's id, or "" for what matches none."""
        self._requests.labels(route or "unknown", str(status)).inc()
        self._seconds.observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self._registry)


class _ViewCollector(Collector):
    def __init__(self, view: View, hub: Hub, session: Session) -> None:
        self._view = view
        self._hub = hub
        self._session = session

    def collect(self) -> Iterator[Metric]:
        view = self._view
        statuses = Tally(record.status for record in view.instances.values())
        instances = GaugeMetricFamily("rik_instances", "Listed instances by status.", labels=["status"])
        for status in Status:
            instances.add_metric([status.value], statuses[status])
        yield instances
        ready = Tally(node.status for node in view.nodes.values())
        nodes = GaugeMetricFamily("rik_nodes", "Nodes by status.", labels=["status"])
        for node_status in NodeStatus:
            nodes.add_metric([node_status.value], ready[node_status])
        yield nodes
        yield GaugeMetricFamily("rik_workloads", "Workloads.", value=len(view.workloads))
        yield GaugeMetricFamily("rik_commit_revision", "The last revision that is committed.", value=view.revision)
        yield GaugeMetricFamily("rik_watchers", "Clients of instances.watch.", value=self._hub.watchers)
        yield CounterMetricFamily("rik_watch_gaps", "Gaps that were told to watchers.", value=self._hub.gaps)
        yield GaugeMetricFamily(
            "rik_scheduler_connected", "Whether the api has a scheduler.", value=int(self._session.connected)
        )

"""The deployment's health as Prometheus metrics, read from the ledger when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from runner import health
from runner.app import QUEUES
from runner.errors import SettingsError
from runner.store import Ledger


class DeploymentCollector(Collector):
    """Asks the ledger once a scrape; holds nothing between two."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def describe(self) -> list[Metric]:
        """Nothing beforehand: registering must not ask the server."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Counters by worker and in all, shares and their targets, workers, slots and queue lengths."""
        total, each = self._ledger.health()
        for name in sorted(total):
            yield CounterMetricFamily(f"runner_{name}", f"{name} of all workers since the server began", total[name])
            family = CounterMetricFamily(f"runner_worker_{name}", f"{name} of one live worker", labels=["worker"])
            for worker, counts in each.items():
                family.add_metric([worker], counts.get(name, 0))
            yield family
        share = GaugeMetricFamily("runner_share", "what went well, from 0 to 1", labels=["of"])
        target = GaugeMetricFamily("runner_share_target", "the share to exceed", labels=["of"])
        for one in health.shares(total):
            share.add_metric([one.name], one.value)
            if one.target is not None:
                target.add_metric([one.name], one.target)
        yield from (share, target)
        saved = health.calls_saved(total)
        yield CounterMetricFamily("runner_upstream_calls_saved", "questions that a cache answered", saved)
        yield from self._queues()

    def _queues(self) -> Iterator[Metric]:
        messages = GaugeMetricFamily("runner_queue_messages", "chunks that wait", labels=["queue"])
        slots = GaugeMetricFamily("runner_slots", "chunks that the live workers do at once", labels=["queue"])
        for queue in QUEUES:
            messages.add_metric([queue], self._ledger.waiting(queue))
            slots.add_metric([queue], self._ledger.slots(queue))
        yield from (messages, slots)
        yield GaugeMetricFamily("runner_workers", "workers with a heartbeat", len(self._ledger.workers()))


@contextmanager
def serving(ledger: Ledger, address: str, port: int) -> Iterator[int]:
    """Serve ``/metrics`` while the block runs; yields the port, which 0 leaves to the system.

    Raises:
        SettingsError: the address cannot be listened on.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(DeploymentCollector(ledger))
    try:
        server, thread = start_http_server(port, address, registry)
    except OSError as error:
        raise SettingsError(f"cannot listen on {address}:{port} ({error.strerror}): choose another --port.") from None
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join(5)
        server.server_close()

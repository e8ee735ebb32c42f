from __future__ import annotations

import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from runner import exporter, monitor, valkey
from runner.errors import SettingsError
from runner.store import Ledger, Work


def scraped(port: int) -> dict[tuple[str, str], float]:
    """Every sample, by name and label value."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as page:
        text = page.read().decode()
    return {
        (sample.name, "".join(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture
def busy(ledger: Ledger) -> Ledger:
    """A deployment with a worker that has done one chunk."""
    ledger.beat("w@here", {"name": "w@here", "queues": ["fetch"], "concurrency": 8})
    ledger.reserve("b")
    ledger.activate("b", Work(spec="{}", total=10, queue="fetch", limit_s=60.0, priority="normal"))
    ledger.top_up("b", slots=1)
    ledger.begin("b", 0, "w@here/1")
    counters = {"cache_requests": 10, "cache_loads": 1, "http_requests": 4, "http_requests_ok": 3, "tasks_ok": 1}
    ledger.commit("b", 0, 10, 10, failed=0, seconds=1.0, worker="w@here", slots=1, blob=b"x", counters=counters)
    ledger.server.rpush("fetch", "{}")
    return ledger


def test_prometheus_reads_counters_shares_targets_and_queues(busy: Ledger) -> None:
    with exporter.serving(busy, "127.0.0.1", 0) as port:
        found = scraped(port)
        assert monitor.serves_metrics(port)
    assert found["runner_http_requests_total", ""] == 4
    assert found["runner_worker_http_requests_total", "w@here"] == 4
    assert found["runner_share", "cache"] == 0.9
    assert found["runner_share", "http_requests"] == 0.75
    assert found["runner_share_target", "http_requests"] == 0.99
    assert found["runner_upstream_calls_saved_total", ""] == 9
    assert found["runner_queue_messages", "fetch"] == 1
    assert found["runner_slots", "fetch"] == 8
    assert found["runner_workers", ""] == 1


def test_a_scrape_shows_what_has_happened_since_the_last(busy: Ledger) -> None:
    with exporter.serving(busy, "127.0.0.1", 0) as port:
        before = scraped(port)["runner_tasks_ok_total", ""]
        busy.server.hincrby("runner:health", "tasks_ok", 5)
        assert scraped(port)["runner_tasks_ok_total", ""] == before + 5


def test_it_is_gone_when_the_block_ends(busy: Ledger) -> None:
    with exporter.serving(busy, "127.0.0.1", 0) as port:
        pass
    assert not monitor.serves_metrics(port)


def test_a_port_that_is_taken_is_said(busy: Ledger, valkey_url: str) -> None:
    taken = int(valkey_url.rpartition(":")[2].partition("/")[0])
    assert valkey.is_taken(taken)
    with pytest.raises(SettingsError, match="choose another --port"), exporter.serving(busy, "127.0.0.1", taken):
        pass

from __future__ import annotations

import logging

import pytest
import redis

from runner.store import Ledger, connect
from runner.valkey import free_port
from workers import quarantine
from workers.quarantine import Quarantine, refused


def put(ledger: Ledger, *messages: bytes) -> None:
    place = Quarantine(ledger, "w@host")
    for message in messages:
        place.put("malformed", message, queue="backtest", words="no task message")


def test_a_refused_message_is_counted_and_kept_for_a_look(ledger: Ledger) -> None:
    put(ledger, b"first", b"second \x80\x04\x00 \xff")
    counts, kept = refused(ledger)
    assert counts == {"malformed": 2}
    assert [entry["message"] for entry in kept] == ["second \\x80\x04\x00 \\xff", "first"]
    assert {(entry["reason"], entry["queue"], entry["worker"]) for entry in kept} == {
        ("malformed", "backtest", "w@host")
    }
    assert kept[1]["size_bytes"] == 5


def test_what_is_kept_is_bounded_in_number_and_size(ledger: Ledger) -> None:
    put(ledger, *[b"\xff" * 10**6] * (quarantine.KEPT + 20))
    counts, kept = refused(ledger)
    assert counts["malformed"] == quarantine.KEPT + 20
    assert len(kept) == quarantine.KEPT
    assert {len(entry["message"]) for entry in kept} == {quarantine.SHOWN_CHARS}
    assert kept[0]["size_bytes"] == 10**6


def test_a_flood_of_messages_is_no_flood_of_lines(ledger: Ledger, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        put(ledger, *[b"x"] * 500)
    assert len(caplog.records) == 1


def test_a_server_that_is_away_loses_the_copy_and_raises_nothing(caplog: pytest.LogCaptureFixture) -> None:
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    with redis.Redis(port=free_port(), retry=Retry(NoBackoff(), 0)) as nobody:
        place = Quarantine(Ledger(nobody), "w@host")
        place.put("malformed", b"x", queue="backtest", words="no task message")
    assert "was not kept" in caplog.text


def test_a_full_server_loses_the_copy_and_raises_nothing(url: str, caplog: pytest.LogCaptureFixture) -> None:
    with connect(url) as server:
        before = server.config_get("maxmemory")["maxmemory"]
        server.config_set("maxmemory", 1)
        try:
            put(Ledger(server), b"x")
        finally:
            server.config_set("maxmemory", before)
    assert "was not kept" in caplog.text

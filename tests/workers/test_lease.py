from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import psutil

import runner
from runner.app import TRANSPORT_OPTIONS
from runner.store import Ledger
from tests.faults.helpers import owners, sweep_of
from tests.support import Worker, wait_until
from workers.lease import RENEW_EVERY_S


def test_several_renewals_fit_into_the_visibility_timeout() -> None:
    assert TRANSPORT_OPTIONS["visibility_timeout"] / RENEW_EVERY_S >= 4


def test_a_live_worker_renews_what_it_holds_and_a_stopped_one_does_not(
    client: runner.Client, ledger: Ledger, start_worker: Callable[..., Worker], tmp_path: Path
) -> None:
    worker = start_worker(1)
    sweep = sweep_of(client, 1, gate=tmp_path / "gate")
    wait_until(lambda: owners(ledger, sweep.id) != {}, "the run is in a child")
    server = ledger.server
    [(tag, _)] = server.zrange("unacked_index", 0, -1, withscores=True)

    def age_s() -> float:
        seconds, micros = server.time()
        return float(seconds + micros / 1e6 - (server.zscore("unacked_index", tag) or 0))

    server.zadd("unacked_index", {tag: server.time()[0] - 25})
    wait_until(lambda: age_s() < RENEW_EVERY_S, "it is renewed", timeout_s=3 * RENEW_EVERY_S)

    main = psutil.Process(worker.process.pid)
    main.suspend()
    try:
        server.zadd("unacked_index", {tag: server.time()[0] - 25})
        wait_until(lambda: age_s() > 26, "nobody renews it", timeout_s=5)
    finally:
        main.resume()
    (tmp_path / "gate").touch()
    assert sweep.result(timeout=60, progress=False).frame["sharpe"].notna().all()
    wait_until(lambda: not server.exists("unacked"), "it is acknowledged")

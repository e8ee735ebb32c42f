"""A real Valkey server for the session, and real workers for the tests that ask for them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import redis

import runner
from runner import settings, store
from tests.support import KEY, SECRET, Deployment, Worker, running_valkey, running_worker


@pytest.fixture(autouse=True, scope="session")
def no_deployment_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests see neither the RUNNER_* variables nor the stack of the person who runs them."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("RUNNER_")]:
            patch.delenv(name)
        patch.setenv("RUNNER_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="session")
def valkey_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_valkey(tmp_path_factory.mktemp("valkey")) as url:
        yield url


@pytest.fixture
def url(valkey_url: str) -> Iterator[str]:
    """An empty server."""
    with redis.Redis.from_url(valkey_url) as server:
        server.flushall()
    yield valkey_url
    store.connect(valkey_url).close()


@pytest.fixture
def ledger(url: str) -> store.Ledger:
    return store.Ledger(store.connect(url))


@pytest.fixture
def client(url: str) -> Iterator[runner.Client]:
    """A client of the test's own, empty server: no worker but those that the test starts."""
    with runner.Client(url, SECRET) as client:
        yield client


@pytest.fixture(scope="session")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A server and one worker with two children, shared by the tests that leave the worker as it was."""
    folder = tmp_path_factory.mktemp("deployment")
    with running_valkey(folder) as url, running_worker(url, SECRET, 2, folder, sys.executable) as worker:
        yield Deployment(url, worker)


@pytest.fixture(scope="session")
def fetcher(deployment: Deployment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """A fetch worker beside the shared deployment's, with keys as an operator would set them."""
    folder = tmp_path_factory.mktemp("fetcher")
    keys = {"RUNNER_TIINGO_KEY": KEY, "RUNNER_ALPACA_KEY_ID": KEY, "RUNNER_ALPACA_SECRET_KEY": KEY}
    with running_worker(deployment.url, SECRET, 4, folder, sys.executable, queue="fetch", **keys) as worker:
        yield worker


@pytest.fixture
def team(deployment: Deployment) -> Iterator[runner.Client]:
    """A client of the shared deployment, which has forgotten all earlier sweeps."""
    ledger = store.Ledger(store.connect(deployment.url))
    for batch in ledger.batches():
        ledger.remove(batch)
    with runner.Client(deployment.url, SECRET) as client:
        yield client


@pytest.fixture
def start_worker(url: str, tmp_path: Path) -> Iterator[Callable[..., Worker]]:
    """Start a worker on the test's server; every one is gone when the test ends, however it ends."""
    with ExitStack() as stack:

        def start(
            concurrency: int = 2, *, secret: str = SECRET, python: str = sys.executable, queue: str = "backtest"
        ) -> Worker:
            return stack.enter_context(running_worker(url, secret, concurrency, tmp_path, python, queue=queue))

        yield start


@pytest.fixture
def worker(start_worker: Callable[..., Worker]) -> Worker:
    return start_worker()


@pytest.fixture
def settings_of(monkeypatch: pytest.MonkeyPatch) -> Callable[..., settings.Settings]:
    """The settings of an environment with these RUNNER_* variables."""

    def load(**variables: str) -> settings.Settings:
        for name, value in variables.items():
            monkeypatch.setenv(f"RUNNER_{name.upper()}", value)
        return settings.load()

    return load

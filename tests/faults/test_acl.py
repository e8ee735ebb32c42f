"""docs/users.acl on a real server: what each user has to do works, and what it has no business with is denied."""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import sys
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.exceptions import AuthenticationError, NoPermissionError

import runner
from runner import monitor, valkey
from tests.misbehaving import serving
from tests.support import ROOT, SECRET, running_worker, wait_until
from workers.standin import make_app as make_standin

USERS = ("worker", "client", "flower")


@dataclass(frozen=True)
class Guarded:
    """A server that knows the three users, and an administrator for the test."""

    port: int
    passwords: dict[str, str]

    def url(self, user: str) -> str:
        return f"redis://{user}:{self.passwords[user]}@127.0.0.1:{self.port}/0"

    def connect(self, user: str) -> Any:
        return redis.Redis.from_url(self.url(user))

    def denied(self) -> set[tuple[str, str]]:
        """Who was denied what since the last question."""
        with self.connect("admin") as server:
            entries = server.acl_log()
            server.acl_log_reset()
        return {(entry["username"], entry["object"]) for entry in entries}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("guarded")
    found = Guarded(valkey.free_port(), {user: secrets.token_hex(16) for user in (*USERS, "admin")})
    users = (ROOT / "docs" / "users.acl").read_text()
    for user in USERS:
        users = users.replace(f"{user.upper()}_PASSWORD", found.passwords[user])
    (folder / "users.acl").write_text(f"{users}user admin on >{found.passwords['admin']} ~* &* +@all\n")
    usual = valkey.configuration(port=found.port, password="unused", folder=folder)
    usual = re.sub(r"^requirepass .*$", f"aclfile {folder}/users.acl", usual, flags=re.MULTILINE)
    (folder / "valkey.conf").write_text(usual)
    command = [str(valkey.find_server()), str(folder / "valkey.conf")]
    with (folder / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            wait_until(lambda: valkey.answers(found.url("admin"), process.pid), "it answers", log=folder / "log")
            yield found
        finally:
            process.kill()


@pytest.fixture(scope="module")
def crew(guarded: Guarded, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("crew")
    with ExitStack() as stack, ThreadPoolExecutor() as starters:

        def start(queue: str) -> None:
            stack.enter_context(running_worker(guarded.url("worker"), SECRET, 2, folder, sys.executable, queue=queue))

        list(starters.map(start, ("backtest", "fetch")))
        yield


@pytest.fixture
def client(guarded: Guarded, crew: None) -> Iterator[runner.Client]:
    with runner.Client(guarded.url("client"), SECRET) as client:
        yield client


def test_a_whole_deployment_works_with_these_rights_and_asks_for_none_beyond(
    guarded: Guarded, client: runner.Client
) -> None:
    prices, points = runner.sample_data("SP500"), runner.grid(n=range(2, 50))
    guarded.denied()
    sweep = client.sweep(lambda bars, n: bars.close > bars.sma(n), prices, points)
    assert not len(sweep.result(timeout=60, progress=False).errors)
    sweep.pause()
    sweep.cancel()
    assert client.attach(sweep.id).progress().done == 48
    with serving(make_standin()) as url:
        options: dict[str, Any] = {"base_url": f"{url}/binance", "start": "2018-01-01", "end": "2019-01-01"}
        assert len(client.fetch(["A1", "A2"], source="binance", progress=False, **options)) == 2
        source = runner.Source("binance", ["A1", "A3"], **options)
        fed = client.sweep(lambda bars, n: bars.close > bars.sma(n), source, points)
        assert len(fed.result(timeout=60, progress=False).frame) == 96
    assert client.health().frame.loc["all", "tasks"] == 1.0
    assert len(client.workers()) == 2
    # Once, at the beginning: a client of least rights may not ask how the server is set up; the workers do.
    with runner.Client(guarded.url("client"), SECRET):
        assert guarded.denied() == {("client", "info")}


def test_flower_shows_workers_and_tasks_with_these_rights(
    guarded: Guarded, client: runner.Client, tmp_path: Path
) -> None:
    port, login = valkey.free_port(), f"{monitor.USER}:{monitor.password(SECRET)}"
    environment = monitor.environment(
        os.environ, url=guarded.url("flower"), secret=SECRET, address="127.0.0.1", port=port, folder=tmp_path
    )

    def page(path: str) -> str:
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}{path}", headers={"Authorization": f"Basic {b64encode(login.encode()).decode()}"}
        )
        with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310 -- our own, on loopback
            return str(answer.read().decode())

    log = tmp_path / "flower.log"
    with (
        log.open("wb") as output,
        subprocess.Popen(monitor.command(), env=environment, stdout=output, stderr=output, cwd=ROOT) as process,
    ):
        try:
            wait_until(lambda: monitor.answers(port, login), "Flower answers", log=log, process=process)
            guarded.denied()
            sweep = client.sweep(lambda bars, n: bars.close > n, runner.sample_data("SP500"), runner.grid(n=range(9)))
            sweep.result(timeout=60, progress=False)
            wait_until(lambda: sweep.id in page("/api/tasks"), "it shows the task", log=log)
            wait_until(
                lambda: page("/api/workers?refresh=1").count("active_queues") == 2, "it shows both workers", log=log
            )
            assert '"messages": 0' in page("/api/queues/length")
            assert not {what for who, what in guarded.denied() if who == "flower"}
        finally:
            process.terminate()


DELETE = "return redis.call('DEL', 'unacked')"
FORBIDDEN: dict[str, Callable[[Any], object]] = {
    "empty the server": lambda server: server.flushall(),
    "read its configuration": lambda server: server.config_get("requirepass"),
    "change its configuration": lambda server: server.config_set("dir", "/"),
    "list keys": lambda server: server.keys("*"),
    "scan keys": lambda server: server.scan(),
    "see other clients": lambda server: server.client_list(),
    "watch commands": lambda server: server.execute_command("MONITOR"),
    "make itself more rights": lambda server: server.acl_setuser("client", enabled=True, commands=["+@all"]),
    "see the users": lambda server: server.acl_list(),
    "stop the server": lambda server: server.shutdown(nosave=True),
    "make it a replica": lambda server: server.replicaof("127.0.0.1", 1),
    "delete the queue": lambda server: server.delete("backtest:3"),
    "read messages": lambda server: server.lrange("backtest:3", 0, -1),
    "take messages": lambda server: server.rpop("backtest:3"),
    "read what others run": lambda server: server.hgetall("unacked"),
    "delete what others run": lambda server: server.delete("unacked"),
    "be a worker": lambda server: server.zadd("runner:workers", {"evil@host": 1}),
    "delete the workers": lambda server: server.delete("runner:workers"),
    "change the counters": lambda server: server.hset("runner:health", "tasks_ok", 1),
    "write to the cache": lambda server: server.set("runner:cache:market1:entry:x", b"x"),
    "read the cache": lambda server: server.get("runner:cache:market1:entry:x"),
    "change the fingerprint of the secret": lambda server: server.set("runner:secret", "x"),
    "write a key of somebody else": lambda server: server.set("session:1", "x"),
    "do it in a script": lambda server: server.eval("return redis.call('DEL', KEYS[1])", 1, "unacked"),
    "do it in a script of its own keys": lambda server: server.register_script(DELETE)(keys=["runner:x"]),
    "stop workers by broadcast": lambda server: server.publish("/0.celery.pidbox", "{}"),
    "listen to the workers' events": lambda server: subscribed(server, "/0.celeryev/*"),
}  # fmt: skip
# Flower asks workers by broadcast and listens to their events; workers answer only questions (workers/gate.py).
FLOWERS = {"stop workers by broadcast", "listen to the workers' events"}
WORKERS = {
    "empty the server", "read its configuration", "change its configuration", "list keys", "see other clients",
    "watch commands", "make itself more rights", "see the users", "stop the server", "make it a replica",
    "write a key of somebody else",
}  # fmt: skip


def subscribed(server: Any, pattern: str) -> object:
    with server.pubsub() as channel:
        channel.psubscribe(pattern)
        return channel.get_message(timeout=5)


CASES = [
    *(("client", what) for what in FORBIDDEN),
    *(("flower", what) for what in FORBIDDEN.keys() - FLOWERS),
    *(("worker", what) for what in WORKERS),
]


@pytest.mark.parametrize(("user", "what"), sorted(CASES))
def test_what_a_user_has_no_business_with_is_denied(guarded: Guarded, user: str, what: str) -> None:
    with guarded.connect(user) as server, pytest.raises(redis.RedisError) as caught:
        FORBIDDEN[what](server)
    assert isinstance(caught.value, NoPermissionError) or "permission" in str(caught.value).lower()


@pytest.mark.parametrize("url", ["redis://127.0.0.1:{port}/0", "redis://:guess@127.0.0.1:{port}/0"])
def test_nobody_else_gets_in(guarded: Guarded, url: str) -> None:
    with redis.Redis.from_url(url.format(port=guarded.port)) as server, pytest.raises(AuthenticationError):
        server.ping()


def test_flower_may_not_touch_batches_nor_submit(guarded: Guarded) -> None:
    attempts: list[Callable[[Any], object]] = [
        lambda server: server.hgetall("runner:batch:x"),
        lambda server: server.get("runner:code:x"),
        lambda server: server.lpush("backtest:3", "{}"),
        lambda server: server.hget("unacked", "x"),
    ]
    for attempt in attempts:
        with guarded.connect("flower") as server, pytest.raises(NoPermissionError):
            attempt(server)


def test_the_file_tells_no_password_that_works() -> None:
    words = re.findall(r">(\S+)", (ROOT / "docs" / "users.acl").read_text())
    assert words == [f"{user.upper()}_PASSWORD" for user in USERS]

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kombu
import pytest
import redis
from kombu import Consumer, Producer, Queue
from kombu.transport import redis as stock

from runner import transport, valkey
from runner.app import TRANSPORT_OPTIONS, make_app
from runner.errors import VersionMismatch
from tests.support import wait_until

QUEUE = Queue("backtest")
Connection: Any = transport.Connection  # its base has no types


@pytest.fixture
def connection(url: str) -> Iterator[Any]:
    with Connection(url, transport_options=TRANSPORT_OPTIONS) as connection:
        yield connection


@pytest.fixture
def taken(connection: Any) -> Iterator[Any]:
    """A channel that holds one message, unacknowledged."""
    channel = connection.channel()
    QUEUE(channel).declare()
    Producer(channel).publish({"n": 1}, routing_key="backtest")
    got: list[Any] = []
    with Consumer(channel, [QUEUE], callbacks=[lambda _, message: got.append(message)]):
        connection.drain_events(timeout=5)
        assert len(got) == 1
        yield channel


def test_another_kombu_is_refused_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kombu, "__version__", "5.8.0")
    with pytest.raises(VersionMismatch, match=r"kombu 5\.8\.0 is installed.*5\.7\.0.*constraints\.txt"):
        make_app("redis://127.0.0.1:1/0")


def test_a_channel_that_lost_its_connection_says_so_as_a_connection_error(taken: Any) -> None:
    tag = taken.qos.held()[0]
    owner, taken.connection.client = taken.connection.client, None
    try:
        taken._disconnect_pools()
        with pytest.raises(redis.ConnectionError, match="was lost"):
            taken.basic_ack(tag)
        assert redis.ConnectionError in transport.Transport.connection_errors
    finally:
        taken.connection.client = owner


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://:pass%40word@127.0.0.1:1/3", "redis://:**@127.0.0.1:1/3"),
        ("rediss://:pass%40word@example.org:1/0", "rediss://:**@example.org:1/0"),
        ("unix://:pass%40word@/run/valkey.sock?db=2", "redis+socket:///run/valkey.sock"),
    ],
)
def test_every_kind_of_url_comes_to_our_transport_and_shows_no_password(url: str, shown: str) -> None:
    connection = make_app(url).connection()
    assert type(connection.transport) is transport.Transport
    assert connection.as_uri() == shown
    described = {name: value for name, value in connection.info().items() if name != "password"}
    assert "word" not in str(described)
    assert connection.password == "pass@word"


def test_other_applications_of_the_process_keep_kombus_own_transport() -> None:
    make_app("redis://127.0.0.1:1/0")
    assert type(kombu.Connection("redis://127.0.0.1:1/0").transport) is stock.Transport


def test_tls_checks_the_certificate_unless_the_url_says_otherwise() -> None:
    assert make_app("rediss://h:1/0").conf.broker_use_ssl == {"ssl_cert_reqs": "required"}
    lax = make_app("rediss://h:1/0?ssl_cert_reqs=none&ssl_ca_certs=/ca.pem").conf.broker_use_ssl
    assert lax == {"ssl_cert_reqs": "none", "ssl_ca_certs": "/ca.pem"}
    assert not make_app("redis://h:1/0").conf.broker_use_ssl


def test_a_unix_socket_serves_as_well_as_a_port(tmp_path: Path) -> None:
    path = tmp_path / "s"
    text = valkey.configuration(port=0, password="p@ss word", folder=tmp_path)
    (tmp_path / "valkey.conf").write_text(f"{text}unixsocket {path}\n")
    url = f"unix://:p%40ss%20word@{path}?db=2"
    command = [str(valkey.find_server()), str(tmp_path / "valkey.conf")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            wait_until(lambda: valkey.answers(url, process.pid), "Valkey answers", process=process)
            with make_app(url) as app, app.connection() as connection, redis.Redis.from_url(url) as server:
                queue = QUEUE(connection.channel())
                queue.declare()
                app.send_task("any", args=[1], queue="backtest", priority=0)
                assert server.llen("backtest") == 1
                assert queue.get(no_ack=True).headers["task"] == "any"
        finally:
            process.kill()


def test_renewing_makes_a_message_young_and_brings_none_back(taken: Any, url: str) -> None:
    qos = taken.qos
    [tag] = qos.held()
    with redis.Redis.from_url(url) as server:
        server.zadd("unacked_index", {tag: 1.0})
        qos.renew()
        score = server.zscore("unacked_index", tag)
        assert score is not None
        assert abs(float(score) - server.time()[0]) < 5
        server.zrem("unacked_index", tag)
        qos.renew()
        assert server.zscore("unacked_index", tag) is None
        qos.ack(tag)
        assert qos.held() == []


@pytest.mark.parametrize("off_s", [60.0, -60.0])
def test_a_host_whose_clock_is_wrong_by_a_minute_takes_no_ones_message(
    taken: Any, url: str, monkeypatch: pytest.MonkeyPatch, off_s: float
) -> None:
    true_time = time.time
    [tag] = taken.qos.held()
    with (
        redis.Redis.from_url(url) as server,
        Connection(url, transport_options=TRANSPORT_OPTIONS) as other,
        monkeypatch.context() as wrong,
    ):
        for module in (transport, stock):
            wrong.setattr(module, "time", lambda: true_time() + off_s)
        channel = other.channel()
        channel.qos.restore_visible(interval=1)
        assert server.hexists("unacked", tag)
        server.zadd("unacked_index", {tag: server.time()[0] - 29})
        channel.qos.restore_visible(interval=1)
        assert server.hexists("unacked", tag)
        server.zadd("unacked_index", {tag: server.time()[0] - 31})
        channel.qos.restore_visible(interval=1)
        assert not server.hexists("unacked", tag)
        assert server.llen("backtest") == 1
        taken_by_it = channel.basic_get("backtest")
        channel.qos.append(taken_by_it, taken_by_it.delivery_tag)
        assert abs(float(server.zscore("unacked_index", taken_by_it.delivery_tag) or 0) - server.time()[0]) < 5


def test_a_full_server_delivers_what_it_cannot_record(url: str, connection: Any) -> None:
    channel = connection.channel()
    QUEUE(channel).declare()
    Producer(channel).publish({"n": 1}, routing_key="backtest")
    got: list[Any] = []
    with redis.Redis.from_url(url) as server, Consumer(channel, [QUEUE], callbacks=[lambda *each: got.append(each)]):
        most = server.config_get("maxmemory")["maxmemory"]
        server.config_set("maxmemory", 100_000)
        try:
            connection.drain_events(timeout=5)
            [(body, message)] = got
            assert body == {"n": 1}
            assert not server.exists("unacked")
            message.ack()
            assert channel.qos.held() == []
        finally:
            server.config_set("maxmemory", most)


def test_a_channel_is_quiet_when_nothing_is_read_and_nothing_unacknowledged(taken: Any) -> None:
    assert not taken.quiet
    taken.basic_ack(taken.qos.held()[0])
    assert not taken.quiet
    for tag in list(taken._consumers):
        taken.basic_cancel(tag)
    assert taken.quiet

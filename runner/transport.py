"""kombu's Redis transport with four of its faults mended; for the kombu that is pinned, and no other.

- `Channel`: a channel whose connection is gone says so as a connection error, from which Celery recovers.
- `QoS`: the age of an unacknowledged message is reckoned by the server's clock, can be renewed, and a message that a
  full server cannot record is delivered all the same.
- `Connection`: takes this transport whatever the URL's scheme is called, and waits seconds between tries, not half
  a minute.

An application takes them by ``Celery(amqp="runner.transport:AMQP")``: nothing of kombu's own is changed, and other
applications of the process are left alone.
"""

from __future__ import annotations

import logging
from time import time
from typing import Any

import kombu
from celery.app import amqp
from kombu import connection as pooled
from kombu.transport import redis as stock
from kombu.transport import virtual
from kombu.utils.json import dumps
from redis import exceptions
from redis.connection import parse_url

from runner.errors import VersionMismatch

logger = logging.getLogger(__name__)

# What this file replaces is kombu's inside: read, and tested by tests/faults, in this version only.
KOMBU = "5.7.0"

# Between tries to reach a server that is away. kombu waits up to 30 s, so that long would workers idle after an outage.
FIRST_WAIT_S = 0.5
WAIT_STEP_S = 0.5
LONGEST_WAIT_S = 5.0


def check_version() -> None:
    """Refuse a kombu that this transport was not written for.

    Raises:
        VersionMismatch: another one is installed.
    """
    if kombu.__version__ != KOMBU:
        raise VersionMismatch(
            f"kombu {kombu.__version__} is installed: recovery was written for and tested with {KOMBU}; "
            "install the pinned versions with `pip install -c constraints.txt .`"
        )


class QoS(stock.QoS):
    """Which messages of a channel are unacknowledged."""

    # kombu writes and compares the host's own clock: one host that is half a minute ahead would take what others hold.
    ahead_s = 0.0

    def set_clock(self) -> None:
        """Learn by how much the server's clock is ahead of this host's."""
        with self.channel.conn_or_acquire() as client:
            seconds, micros = client.time()
        self.ahead_s = seconds + micros / 1e6 - time()

    @property
    def visibility_timeout(self) -> float:
        """What kombu subtracts from this host's clock, so that the age comes out by the server's."""
        return float(self.channel.visibility_timeout) - self.ahead_s

    def append(self, message: Any, delivery_tag: str) -> None:
        """Record a message as unacknowledged; when the server has no memory for the record, go on without it.

        The message is off the queue already. The ledger knows its chunk and finds it again should this worker die.
        """
        delivery = message.delivery_info
        record = dumps([message._raw, delivery["exchange"], delivery["routing_key"]])  # noqa: SLF001 -- as kombu does
        try:
            with self.pipe_or_acquire() as pipe:
                pipe.zadd(self.unacked_index_key, {delivery_tag: time() + self.ahead_s})
                pipe.hset(self.unacked_key, delivery_tag, record)
                pipe.execute()
        except exceptions.OutOfMemoryError as error:
            logger.warning(
                "the server is full and did not record a message as taken; it is run all the same: %s", error
            )
        virtual.QoS.append(self, message, delivery_tag)

    def held(self) -> list[str]:
        """Tags of the messages that are neither acknowledged nor rejected."""
        return [tag for tag in list(self._delivered) if tag not in self._dirty]

    def renew(self) -> None:
        """Say that the worker which holds them lives. XX: what was acknowledged or taken meanwhile stays so."""
        self.set_clock()
        tags = self.held()
        if tags:
            with self.channel.conn_or_acquire() as client:
                client.zadd(self.unacked_index_key, dict.fromkeys(tags, time() + self.ahead_s), xx=True)


class Channel(stock.Channel):
    """A channel that survives the loss of its connection."""

    QoS = QoS

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)  # type: ignore[no-untyped-call]  # kombu has no types
        self.qos.set_clock()

    @property
    def quiet(self) -> bool:
        """Whether nothing is under way: no queue is read, no answer is awaited, no message is unacknowledged."""
        return not self.active_queues and not self._in_poll and not self.qos.held()

    def _connparams(self, asynchronous: bool = False) -> dict[str, Any]:  # noqa: FBT001, FBT002 -- kombu's signature
        """Celery 5.7.0 closes a lost connection and then still acknowledges on it: here that met a None.

        The AttributeError was no connection error and ended the worker's main process (measured: 5 of 5).
        """
        if self.connection is None or self.connection.client is None:
            raise exceptions.ConnectionError("this channel's connection to the server was lost")
        params: dict[str, Any] = super()._connparams(asynchronous=asynchronous)  # type: ignore[no-untyped-call]  # likewise
        if "path" in params:  # kombu takes a unix socket's password from the URL alone, and shows that URL as the host
            params |= {"username": self.connection.client.userid, "password": self.connection.client.password}
        return params


class Transport(stock.Transport):
    """kombu's transport over our channels."""

    Channel = Channel


class Connection(kombu.Connection):
    """A connection over `Transport`, whatever its URL calls it."""

    def get_transport_cls(self) -> type[Transport]:
        """Always ours; the URL's own name of the transport stays, for Flower and the logs."""
        return Transport

    def ensure_connection(self, *args: Any, **options: Any) -> kombu.Connection:
        """As kombu's, with shorter waits."""
        waits = {"interval_start": FIRST_WAIT_S, "interval_step": WAIT_STEP_S, "interval_max": LONGEST_WAIT_S}
        options = {**waits, **options}
        return super().ensure_connection(*args, **options)  # type: ignore[no-untyped-call, no-any-return]  # likewise

    def Pool(self, limit: int | None = None, **options: Any) -> Pool:  # noqa: N802 -- kombu's name
        """Of connections like this one; kombu's makes its own."""
        return Pool(self, limit, **options)  # type: ignore[no-untyped-call]  # likewise


class PooledConnection(Connection, pooled.PooledConnection):
    """A connection that goes back to its pool; publishers use them."""


class Pool(pooled.ConnectionPool):
    """A pool of our connections."""

    def new(self) -> PooledConnection:
        """One more."""
        options = dict(self.connection._info(resolve=False))  # noqa: SLF001 -- as kombu does
        return PooledConnection(self, **options)  # type: ignore[no-untyped-call]  # likewise


def broker_settings(url: str) -> dict[str, Any]:
    """Celery's settings of a server, from a URL as redis-py reads it: ``redis://``, ``rediss://`` or ``unix://``.

    kombu does not know ``unix://``, and takes ``rediss://`` for TLS without a look at the certificate.
    """
    parts = parse_url(url)  # type: ignore[no-untyped-call]  # redis-py has no type for it
    if url.startswith("unix:"):
        return {
            "broker_url": f"redis+socket://{parts['path']}?virtual_host={parts.get('db', 0)}",
            "broker_user": parts.get("username"),
            "broker_password": parts.get("password"),
        }
    tls = {name: value for name, value in parts.items() if name.startswith("ssl_")}
    return {
        "broker_url": url,
        **({"broker_use_ssl": {"ssl_cert_reqs": "required", **tls}} if url.startswith("rediss:") else {}),
    }


class AMQP(amqp.AMQP):  # type: ignore[misc]  # Celery has no types
    """What makes an application's connections."""

    Connection = Connection

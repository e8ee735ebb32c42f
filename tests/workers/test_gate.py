from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from celery.worker.control import Panel
from hypothesis import given
from hypothesis import strategies as st

from runner import signing
from runner.app import make_app, publish_chunk
from runner.signing import Refused
from runner.store import Ledger
from tests.support import SECRET
from workers import gate

BATCH, LIST = "sweep", "backtest:3"


@pytest.fixture
def real(url: str, ledger: Ledger) -> bytes:
    """A message as a client publishes it."""
    with make_app(url) as app:
        publish_chunk(app, SECRET, BATCH, 16, queue="backtest", priority="normal")
    popped: bytes = ledger.server.rpop(LIST)
    return popped


def checked(raw: bytes, *, key: str = LIST, now_s: float | None = None) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(gate.checked(SECRET, key, raw, time.time() if now_s is None else now_s))
    return made


def reason(raw: bytes, **options: Any) -> str:
    with pytest.raises(Refused) as caught:
        checked(raw, **options)
    return caught.value.reason


def changed(raw: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    message = json.loads(raw)
    change(message)
    return json.dumps(message).encode()


def body(raw: bytes | dict[str, Any]) -> Any:
    message = raw if isinstance(raw, dict) else json.loads(raw)
    return json.loads(base64.b64decode(message["body"]))


def with_body(raw: bytes, content: Any) -> bytes:
    return changed(raw, lambda message: message.update(body=base64.b64encode(json.dumps(content).encode()).decode()))


def with_header(raw: bytes, **headers: Any) -> bytes:
    return changed(raw, lambda message: message["headers"].update(headers))


def test_a_real_message_passes_and_says_what_it_said(real: bytes) -> None:
    before, after = json.loads(real), checked(real)
    assert body(after) == body(real)
    for part in ("headers", "properties"):
        same = before[part].keys() & after[part].keys() - {"delivery_tag"}
        assert {name: after[part][name] for name in same} == {name: before[part][name] for name in same}
    assert [before[name] for name in ("content-type", "content-encoding")] == ["application/json", "utf-8"]


def test_a_message_that_was_given_back_by_a_dead_worker_passes_again(real: bytes) -> None:
    again = json.dumps(checked(real)).encode()
    again = changed(again, lambda message: message["headers"].update(redelivered=True))
    assert body(checked(again)) == body(real)


def test_what_stands_around_the_envelope_has_no_effect(real: bytes) -> None:
    def hostile(message: dict[str, Any]) -> None:
        message["headers"].update(eta="2099-01-01T00:00:00", timelimit=[0.001, 0.001], compression="gzip", group="g")
        message["headers"].update(argsrepr="<script>", stamps={"a": 1}, retries=-1, shadow="os.system")
        message["properties"].update(reply_to="evil", priority=[], delivery_tag=3, delivery_info=[1])
        message.update({"content-type": "application/x-python-serialize", "content-encoding": "zlib_codec"})

    callbacks = {"callbacks": [{"task": "evil"}], "chain": [{"task": "evil"}], "errbacks": None, "chord": None}
    raw = changed(with_body(real, [*body(real)[:1], {"x": 1}, callbacks]), hostile)
    made, usual = checked(raw), checked(real)
    for message in (made, usual):
        del message["properties"]["delivery_tag"]
    assert made == usual


def test_two_copies_of_a_message_are_told_apart(real: bytes) -> None:
    assert checked(real)["properties"]["delivery_tag"] != checked(real)["properties"]["delivery_tag"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda raw: raw + b" " * gate.MOST_BYTES, "oversized"),
        (lambda raw: raw[:-1], "malformed"),
        (lambda raw: b"[" * 4000, "malformed"),
        (lambda raw: b"\x80\x05.", "malformed"),
        (lambda raw: b"9" * 5000, "malformed"),
        (lambda raw: changed(raw, lambda message: message.update(body="@")), "malformed"),
        (lambda raw: changed(raw, lambda message: message["headers"].pop("id")), "malformed"),
        (lambda raw: with_body(raw, [[], {}, {}]), "malformed"),
        (lambda raw: with_body(raw, [[{"batch": "x", "start": 0}], {}, {}]), "malformed"),
        (lambda raw: with_header(raw, id="sweep:0"), "misplaced"),
        (lambda raw: with_header(raw, id=[1]), "misplaced"),
        (lambda raw: with_header(raw, task="tasks.fetch.fetch_chunk"), "misplaced"),
        (lambda raw: with_body(raw, [[{**body(raw)[0][0], "exp": 10**12}], {}, {}]), "altered"),
        (lambda raw: with_body(raw, [[{**body(raw)[0][0], "kid": "00000000"}], {}, {}]), "foreign-key"),
    ],
)  # fmt: skip
def test_a_message_that_is_not_as_it_was_sent_is_refused(
    real: bytes, change: Callable[[bytes], bytes], expected: str
) -> None:
    assert reason(change(real)) == expected


def test_a_message_in_another_queue_than_its_own_is_refused(real: bytes) -> None:
    assert reason(real, key="fetch:3") == "misplaced"


def test_a_message_has_its_time(real: bytes) -> None:
    assert reason(real, now_s=time.time() + signing.MESSAGE_LIFETIME_S + 1) == "expired"


@given(st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
def test_bytes_from_anywhere_are_refused_and_raise_nothing_else(raw: bytes) -> None:
    assert reason(raw) in {"malformed", "foreign-key"}


def test_a_size_is_judged_before_anything_is_parsed() -> None:
    assert reason(b"[" * 10**7) == "oversized"


def test_the_longest_of_our_messages_is_far_from_the_limit(url: str, ledger: Ledger) -> None:
    with make_app(url) as app:
        publish_chunk(app, SECRET, "x" * 80 + "/fetch", 10**9, queue="backtest", priority="normal")
    assert len(ledger.server.rpop(LIST)) < gate.MOST_BYTES / 3


def test_a_broadcast_can_only_ask() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Panel, "data", dict(Panel.data))
        gate.only_questions()
        assert Panel.data.keys() >= {"ping", "stats", "active"}
        assert not Panel.data.keys() & {"shutdown", "terminate", "revoke", "pool_shrink", "add_consumer", "rate_limit"}

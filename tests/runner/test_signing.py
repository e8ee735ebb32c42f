from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner import signing
from runner.errors import SignatureError

SECRET = "a-secret-of-the-tests"
TASK, ID = "tasks.backtest.run_chunk", "sweep:0"


def sealed(**changes: Any) -> dict[str, Any]:
    options: dict[str, Any] = {"task": TASK, "task_id": ID, "now_s": 1000.0, "body": {"batch": "sweep", "start": 0}}
    return signing.seal(SECRET, **{**options, **changes})


def unseal(envelope: Any, **changes: Any) -> dict[str, Any]:
    options: dict[str, Any] = {"task": TASK, "task_id": ID, "now_s": 1000.0}
    return signing.unseal(SECRET, envelope, **{**options, **changes})


def test_a_sealed_message_is_opened_also_after_a_trip_through_json() -> None:
    assert unseal(json.loads(json.dumps(sealed()))) == {"batch": "sweep", "start": 0}


@pytest.mark.parametrize("change", [{"task": "tasks.other"}, {"task_id": "sweep:16"}])
def test_a_message_relabelled_for_another_task_or_id_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(SignatureError, match="signed for"):
        unseal(sealed(), **change)


def test_an_expired_message_is_refused() -> None:
    with pytest.raises(SignatureError, match="expired"):
        unseal(sealed(), now_s=1001.0 + signing.MESSAGE_LIFETIME_S)


@pytest.mark.parametrize("field", ["v", "task", "id", "exp", "body", "mac"])
def test_a_message_with_any_field_altered_or_missing_is_refused(field: str) -> None:
    with pytest.raises(SignatureError):
        unseal({**sealed(), field: "other"})
    with pytest.raises(SignatureError):
        unseal({key: value for key, value in sealed().items() if key != field})


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_anything_else_is_refused_and_never_crashes(envelope: Any) -> None:
    with pytest.raises(SignatureError):
        unseal(envelope)


def test_another_secret_opens_nothing() -> None:
    with pytest.raises(SignatureError, match="RUNNER_SECRET"):
        signing.unseal("another-secret-altogether", sealed(), task=TASK, task_id=ID, now_s=1000.0)


@given(st.binary(max_size=200))
def test_code_comes_back_only_as_it_was_signed(payload: bytes) -> None:
    signed = signing.sign_code(SECRET, payload)
    assert signing.verify_code(SECRET, signed) == payload
    for position in (0, 63, len(signed) - 1):
        forged = bytearray(signed)
        forged[position] ^= 1
        with pytest.raises(SignatureError):
            signing.verify_code(SECRET, bytes(forged))


def test_a_signature_for_one_purpose_is_none_for_another() -> None:
    assert signing.mac(SECRET, "code", b"x") != signing.mac(SECRET, "message", b"x")
    assert signing.mac(SECRET, "code", b"ab", b"c") != signing.mac(SECRET, "code", b"a", b"bc")

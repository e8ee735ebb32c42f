from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner import signing
from runner.errors import SignatureError
from runner.signing import Refused

SECRET = "a-secret-of-the-tests"
OTHER = "another-secret-altogether"
# Lone surrogates too: JSON has them.
ANY_TEXT = st.characters(exclude_categories=())
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


@pytest.mark.parametrize("field", sorted(signing.FIELDS))
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
    | st.fixed_dictionaries(dict.fromkeys(signing.FIELDS, st.none() | st.integers() | st.text(ANY_TEXT) | st.floats()))
)
def test_anything_else_is_refused_and_never_crashes(envelope: Any) -> None:
    with pytest.raises(SignatureError):
        unseal(envelope)


def test_another_secret_opens_nothing() -> None:
    with pytest.raises(SignatureError, match="RUNNER_SECRET"):
        signing.unseal(OTHER, sealed(), task=TASK, task_id=ID, now_s=1000.0)


@pytest.mark.parametrize(
    ("envelope", "options", "reason"),
    [
        ({"batch": "sweep", "start": 0}, {}, "malformed"),
        ({**sealed(), "body": {"batch": float("nan")}}, {}, "malformed"),
        ({**sealed(), "kid": "00000000"}, {}, "foreign-key"),
        ({**sealed(), "kid": [1]}, {}, "foreign-key"),
        ({**sealed(), "body": {"batch": "sweep", "start": 1}}, {}, "altered"),
        ({**sealed(), "mac": "\ud800"}, {}, "altered"),
        ({**sealed(), "mac": None}, {}, "altered"),
        (sealed(), {"task_id": "sweep:16"}, "misplaced"),
        (sealed(), {"now_s": 2e9}, "expired"),
    ],
)
def test_each_refusal_has_a_reason_to_be_counted_under(envelope: Any, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(Refused) as caught:
        unseal(envelope, **options)
    assert caught.value.reason == reason


# Rotation

OLD, BOTH_OLD, BOTH_NEW, NEW = SECRET, f"{SECRET},{OTHER}", f"{OTHER}, {SECRET}", OTHER


def opens(theirs: str, mine: str) -> bool:
    """Whether a process with the secret ``mine`` takes messages, code and batches of one with ``theirs``."""
    message = signing.seal(theirs, task=TASK, task_id=ID, now_s=1000.0, body={})
    try:
        signing.unseal(mine, message, task=TASK, task_id=ID, now_s=1000.0)
        signing.verify_code(mine, signing.sign_code(theirs, b"code"))
        signing.verify_spec(mine, "b", signing.sign_spec(theirs, "b", "{}").encode())
    except SignatureError:
        return False
    return True


@pytest.mark.parametrize(("before", "after"), [(OLD, BOTH_OLD), (BOTH_OLD, BOTH_NEW), (BOTH_NEW, NEW)])
def test_at_each_step_of_a_rotation_those_before_and_after_it_understand_each_other(before: str, after: str) -> None:
    assert opens(before, after)
    assert opens(after, before)
    assert set(signing.fingerprints(before)) & set(signing.fingerprints(after))


def test_a_key_that_was_taken_away_opens_nothing_any_more() -> None:
    assert not opens(OLD, NEW)
    assert not opens(BOTH_OLD, NEW)
    assert not set(signing.fingerprints(OLD)) & set(signing.fingerprints(NEW))


def test_passwords_come_from_the_key_that_signs() -> None:
    assert signing.derive(BOTH_NEW, "flower") == signing.derive(NEW, "flower") != signing.derive(OLD, "flower")


def test_neither_passwords_nor_fingerprints_nor_key_ids_tell_the_secret() -> None:
    told = [signing.derive(SECRET, "flower"), *signing.fingerprints(SECRET), sealed()["kid"]]
    assert len(set(told)) == len(told)
    assert not any(SECRET in word or word in SECRET for word in told)


# Batches and code


def test_a_batchs_spec_counts_under_its_own_name_only() -> None:
    signed = signing.sign_spec(SECRET, "mine", '{"strategy": "é"}').encode()
    assert signing.verify_spec(SECRET, "mine", signed).decode() == '{"strategy": "é"}'
    with pytest.raises(SignatureError, match="batch 'yours' is not as it was signed"):
        signing.verify_spec(SECRET, "yours", signed)
    with pytest.raises(SignatureError):
        signing.verify_spec(SECRET, "mine", signed + b" ")


@given(st.binary(max_size=200))
def test_bytes_that_nobody_signed_are_neither_code_nor_a_spec(forged: bytes) -> None:
    with pytest.raises(SignatureError):
        signing.verify_code(SECRET, forged)
    with pytest.raises(SignatureError):
        signing.verify_spec(SECRET, "b", forged)


def test_signed_code_is_no_spec_and_a_spec_no_code() -> None:
    with pytest.raises(SignatureError):
        signing.verify_spec(SECRET, "b", signing.sign_code(SECRET, b"{}"))
    with pytest.raises(SignatureError):
        signing.verify_code(SECRET, signing.sign_spec(SECRET, "b", "{}").encode())


@given(st.binary(max_size=200))
def test_code_comes_back_only_as_it_was_signed(payload: bytes) -> None:
    signed = signing.sign_code(SECRET, payload)
    assert signing.verify_code(SECRET, signed) == payload
    for position in (0, 7, 8, 71, len(signed) - 1):
        forged = bytearray(signed)
        forged[position] ^= 1
        with pytest.raises(SignatureError):
            signing.verify_code(SECRET, bytes(forged))


def test_a_signature_for_one_purpose_is_none_for_another() -> None:
    assert signing.mac(SECRET, "code", b"x") != signing.mac(SECRET, "message", b"x")
    assert signing.mac(SECRET, "code", b"ab", b"c") != signing.mac(SECRET, "code", b"a", b"bc")

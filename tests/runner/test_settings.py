from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from runner import settings
from runner.errors import SettingsError
from runner.settings import Settings


def test_secrets_show_as_stars(settings_of: Callable[..., Settings]) -> None:
    found = settings_of(url="redis://:hunter2hunter2@h:6379/0", secret="0123456789abcdef", home="/somewhere")
    assert "hunter2" not in repr(found)
    assert "0123456789" not in repr(found)
    assert found.home == Path("/somewhere")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("url", "amqp://host", "RUNNER_URL.*redis://"),
        ("cache_url", "host:6379", "RUNNER_CACHE_URL"),
        ("secret", "short", "RUNNER_SECRET.*16"),
        ("secret", "0123456789abcdef,short", "RUNNER_SECRET.*5 characters.*of each"),
        ("secret", "0123456789abcdef,", "RUNNER_SECRET.*0 characters"),
    ],
)
def test_a_bad_variable_is_named_with_what_was_expected(
    settings_of: Callable[..., Settings], name: str, value: str, words: str
) -> None:
    with pytest.raises(SettingsError, match=words) as caught:
        settings_of(**{name: value})
    assert "short" not in str(caught.value)
    assert "0123456789abcdef" not in str(caught.value)


def test_a_secret_may_be_two_while_it_is_being_replaced(settings_of: Callable[..., Settings]) -> None:
    both = settings_of(secret="0123456789abcdef,fedcba9876543210").secret
    assert both is not None
    assert both.get_secret_value() == "0123456789abcdef,fedcba9876543210"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://user:pw@h:1/0", "redis://user:***@h:1/0"),
        ("redis://h:1/0", "redis://h:1/0"),
        ("redis://:p:w@x@h:1/0", "redis://:***@h:1/0"),
        ("unix://:pw@/run/redis.sock?db=1", "unix://:***@/run/redis.sock?db=1"),
        ("redis://h/0?password=pw&db=1", "redis://h/0?password=***&db=1"),
        ("rediss://h/0?ssl_password=pw", "rediss://h/0?ssl_password=***"),
    ],
)
def test_the_passwords_in_a_url_are_starred_and_nothing_else(url: str, shown: str) -> None:
    assert settings.starred(url) == shown

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
    ],
)
def test_a_bad_variable_is_named_with_what_was_expected(
    settings_of: Callable[..., Settings], name: str, value: str, words: str
) -> None:
    with pytest.raises(SettingsError, match=words) as caught:
        settings_of(**{name: value})
    assert "short" not in str(caught.value)


def test_the_password_in_a_url_is_starred_and_nothing_else() -> None:
    assert settings.starred("redis://user:pw@h:1/0") == "redis://user:***@h:1/0"
    assert settings.starred("redis://h:1/0") == "redis://h:1/0"

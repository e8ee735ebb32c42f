"""Keys and plans of the providers that want one: from the worker's environment, and in no message."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager

from runner.errors import FetchError, SettingsError, SourceRefused


def key(variable: str, label: str) -> str:
    """The key in that variable of the worker's environment.

    Raises:
        SourceRefused: there is none, or what is there cannot be one; the message does not show it.
    """
    value = os.environ.get(variable, "").strip()
    if not value:
        raise SourceRefused(
            f"{label}: needs a key of yours. Set {variable} in the environment of the fetch workers and restart them."
        )
    if not (value.isascii() and value.isprintable()) or " " in value:
        raise SourceRefused(f"{label}: {variable} holds characters that no key has. Set it to the key alone.")
    return value


def refused(variable: str, status: int, label: str) -> SourceRefused:
    """The error for a key that the provider does not accept."""
    return SourceRefused(
        f"{label}: the provider refuses the key in {variable} (HTTP {status}): expired, mistyped, or not for these "
        "data. Set a valid one in the environment of the fetch workers and restart them."
    )


def tag(secret: str) -> str:
    """Eight hex digits that tell accounts apart without naming their key."""
    return hashlib.sha256(secret.encode()).hexdigest()[:8]


def allowance(variable: str, default: int) -> int:
    """Requests a period that the account's plan allows, when the worker's environment says so; else the free plan's.

    Raises:
        SettingsError: the variable holds no positive whole number.
    """
    text = os.environ.get(variable, "").strip() or str(default)
    if not (text.isascii() and text.isdecimal() and int(text) > 0):
        raise SettingsError(f"{variable}={text!r}: expected a positive whole number, such as {default}.")
    return int(text)


@contextmanager
def hidden(*secrets: str) -> Iterator[None]:
    """Errors from inside never show these keys, not even when a provider's answer that they quote does."""
    try:
        yield
    except FetchError as error:
        message = str(error)
        if not any(secret in message for secret in secrets):
            raise
        for secret in secrets:
            message = message.replace(secret, "***")
        raise type(error)(message) from None

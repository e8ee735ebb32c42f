"""Where the server is and the secret shared with it: RUNNER_* variables of the environment."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from runner import signing
from runner.errors import SettingsError


def default_home() -> Path:
    """The platform's folder for a user's state, below which a local stack keeps its files."""
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    else:
        base = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return base / "backtest-runner"


class Settings(BaseSettings):
    """RUNNER_URL, RUNNER_SECRET, RUNNER_CACHE_URL, RUNNER_HOME, RUNNER_CONTACT, validated; secrets show as stars.

    Attributes:
        url: the server that holds queue and ledger, ``redis://:password@host:port/db`` (also rediss://, unix://).
        secret: signs every message and all code; the same on clients and workers. While it is being replaced,
            two with a comma between them: the first signs, both are accepted (docs/security.md).
        cache_url: a server of its own for the cache; None shares ``url``.
        home: where a local stack keeps its state.
        contact: an address or page at which providers of data can reach you; part of the User-Agent.
    """

    model_config = SettingsConfigDict(env_prefix="RUNNER_", extra="ignore", frozen=True)

    url: SecretStr | None = None
    secret: SecretStr | None = None
    cache_url: SecretStr | None = None
    home: Path = Field(default_factory=default_home)
    contact: str = ""

    @field_validator("url", "cache_url")
    @classmethod
    def _known_scheme(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            check_url(value.get_secret_value())
        return value

    @field_validator("secret")
    @classmethod
    def _long_enough(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            check_secret(value.get_secret_value())
        return value


def load() -> Settings:
    """The settings of this process's environment; SettingsError names the variable that is wrong."""
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        name = "RUNNER_" + "_".join(str(part) for part in first["loc"]).upper()
        raise SettingsError(f"{name}: {first['msg'].removeprefix('Value error, ')}") from None


def check_url(url: str) -> str:
    """The URL itself, or SettingsError when it is of no kind that redis-py understands."""
    scheme = urlsplit(url).scheme
    if scheme not in ("redis", "rediss", "unix"):
        raise SettingsError(
            f"the server's URL starts with {scheme or 'no scheme'!r}: "
            "expected redis://:PASSWORD@HOST:PORT/0, rediss:// or unix://."
        )
    return url


# 16 characters of base64 are 96 bits: out of reach of guessing, short enough to type into an env file.
MIN_SECRET_CHARS = 16


def check_secret(secret: str) -> str:
    """The secret itself, or SettingsError when it, or one of several with commas between them, keeps nobody out."""
    for key in signing.keys(secret):
        if len(key) < MIN_SECRET_CHARS:
            raise SettingsError(
                f"the secret has {len(key)} characters: expected at least {MIN_SECRET_CHARS}, also of each when there "
                "are several with commas between them; "
                'make one with: python -c "import secrets; print(secrets.token_urlsafe(32))"'
            )
    return secret


def starred(url: str) -> str:
    """The URL with its passwords replaced by stars, for messages and reprs."""
    parts = urlsplit(url)
    name, at, host = parts.netloc.rpartition("@")
    user, colon, _ = name.partition(":")
    # redis-py also takes ?password=...&ssl_password=...
    query = re.sub(r"(password=)[^&]*", r"\1***", parts.query, flags=re.IGNORECASE)
    return parts._replace(netloc=f"{user}{colon}***{at}{host}" if colon else parts.netloc, query=query).geturl()

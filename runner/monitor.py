"""Flower, the page that shows workers and tasks: how it is started, and whether it and the metrics truly answer."""

from __future__ import annotations

import http.client
import os
import sys
from base64 import b64encode
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from runner import signing

USER = "runner"
FLOWER_PORT = 5555  # Flower's own default
METRICS_PORT = 9464  # what Prometheus' list of exporters' ports gives to instrumented programs
# Flower's own default of 100,000 is what its issues about memory are about.
MAX_TASKS = 10_000


def command() -> list[str]:
    """What starts it, given `environment`."""
    return [sys.executable, "-m", "runner.monitor"]


def password(secret: str) -> str:
    """The password of the page, derived from the deployment's secret."""
    return signing.derive(secret, "flower")


def environment(
    base: Mapping[str, str], *, url: str, secret: str, address: str, port: int, folder: Path
) -> dict[str, str]:
    """``base`` with Flower's options: a password that no process list shows, no control of workers, bounded history.

    FLOWER_BASIC_AUTH (USER:PASSWORD) of ``base`` is respected; every other FLOWER_* variable of it is not.
    """
    ours = {name: value for name, value in base.items() if not name.startswith("FLOWER_")}
    return ours | {
        "RUNNER_URL": url,
        "RUNNER_SECRET": secret,
        "FLOWER_BASIC_AUTH": base.get("FLOWER_BASIC_AUTH") or f"{USER}:{password(secret)}",
        "FLOWER_ADDRESS": address,
        "FLOWER_PORT": str(port),
        "FLOWER_READ_ONLY": "true",
        "FLOWER_MAX_TASKS": str(MAX_TASKS),
        "FLOWER_PERSISTENT": "true",
        "FLOWER_DB": str(folder / "flower.db"),
        "FLOWER_LOGGING": "warning",
        # Its default is to run a flowerconfig.py of the current folder.
        "FLOWER_CONF": os.devnull,
    }


def answers(port: int, user_and_password: str, *, host: str = "127.0.0.1") -> bool:
    """True when the page is refused without the password (HTTP 401) and shown with it (HTTP 200)."""
    login = {"Authorization": "Basic " + b64encode(user_and_password.encode()).decode()}
    return _status(host, port, {}) == http.HTTPStatus.UNAUTHORIZED and _status(host, port, login) == http.HTTPStatus.OK


def serves_metrics(port: int, *, host: str = "127.0.0.1") -> bool:
    """True when the deployment's metrics are shown there."""
    return _status(host, port, {}, "/metrics") == http.HTTPStatus.OK


def main() -> None:
    """Flower, in this process, with /metrics and /healthcheck behind its login too: they name tasks and workers."""
    from celery.__main__ import main as celery
    from flower.views import monitor as pages  # type: ignore[import-untyped]  # Flower has no types
    from tornado.web import authenticated

    for page in (pages.Metrics, pages.Healthcheck):
        page.get = authenticated(page.get)
    sys.argv[1:] = ["-q", "-A", "runner.app:app", "flower"]
    celery()


def _status(host: str, port: int, headers: Mapping[str, str], path: str = "/workers") -> int | None:
    with closing(http.client.HTTPConnection(host, port, timeout=5)) as page:
        try:
            page.request("GET", path, headers=dict(headers))
            return page.getresponse().status
        except (OSError, http.client.HTTPException):
            return None


if __name__ == "__main__":
    main()

"""The exchanges of the stand-in, one server a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.workers.sources.exchanges import Exchanges, exchanges


@pytest.fixture(scope="module")
def served() -> Iterator[Exchanges]:
    with exchanges() as server:
        yield server


@pytest.fixture
def server(served: Exchanges) -> Exchanges:
    served.forget()
    return served

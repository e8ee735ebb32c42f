from __future__ import annotations

import functools
import hashlib
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from runner import strategies
from runner.errors import StrategyError, VersionMismatch
from runner.strategy import StrategyRef, check_parameters, load, resolve, ship, strategy_name

FACTOR = 2


def here(bars: Any, fast: int = 1, *, slow: int) -> Any:
    return bars * FACTOR * helper(fast, slow)


def helper(fast: int, slow: int) -> int:
    return fast + slow


def round_trip(strategy: Any) -> Any:
    ref, payload = ship(strategy)
    return resolve(StrategyRef.from_wire(ref.to_wire()), payload)


def test_a_packages_function_travels_by_path() -> None:
    ref, payload = ship(strategies.sma_cross)
    assert (ref.path, payload) == ("runner.strategies:sma_cross", None)
    assert round_trip(strategies.sma_cross) is strategies.sma_cross


def test_a_packages_function_of_other_source_is_refused() -> None:
    ref, _ = ship(strategies.sma_cross)
    with pytest.raises(StrategyError, match="other code on this worker"):
        resolve(StrategyRef(ref.name, ref.path, "0" * 64, ref.python), None)


def test_everything_else_travels_by_value_with_what_it_uses() -> None:
    ref, payload = ship(here)
    assert ref.path is None
    assert payload is not None
    assert ref.digest == hashlib.sha256(payload).hexdigest()
    script = "import sys, cloudpickle; f = cloudpickle.loads(sys.stdin.buffer.read()); print(f(10, 3, slow=4))"
    done = subprocess.run(
        [sys.executable, "-c", script], input=payload, capture_output=True, cwd="/", timeout=60, check=True
    )
    assert done.stdout.split() == [b"140"]


@pytest.mark.parametrize("strategy", [lambda bars, n=1: bars + n, functools.partial(here, slow=5)])
def test_lambdas_and_partials_travel(strategy: Any) -> None:
    assert round_trip(strategy)(10) == strategy(10)


def test_code_changed_on_its_way_is_refused() -> None:
    ref, payload = ship(here)
    with pytest.raises(StrategyError, match="not the code that was sent"):
        resolve(ref, (payload or b"") + b".")


def test_another_python_is_named_on_both_sides() -> None:
    ref, payload = ship(here)
    with pytest.raises(
        VersionMismatch, match=rf"Python 3\.9.*Python {sys.version_info.major}\.{sys.version_info.minor}"
    ):
        resolve(StrategyRef(ref.name, None, ref.digest, "3.9"), payload)


def test_what_cannot_be_pickled_is_refused_with_the_cure() -> None:
    lock = threading.Lock()
    with pytest.raises(StrategyError, match="inside the function"):
        ship(lambda bars: lock)
    with pytest.raises(StrategyError, match="expected a function"):
        ship(3)  # type: ignore[arg-type]  # the point of the test


def test_an_edited_function_is_never_the_old_one() -> None:
    first, _ = ship(eval("lambda bars: 1"))  # noqa: S307 - typed into a notebook, so to say
    second, _ = ship(eval("lambda bars: 2"))  # noqa: S307 - and edited
    assert first.digest != second.digest


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["fsat", "slow"], "did you mean 'fast'"),
        (["fast"], "needs a value for 'slow'"),
        (["fast", "slow", "x"], "no parameter 'x'"),
    ],
)
def test_wrong_parameters_are_known_before_anything_runs(names: list[str], words: str) -> None:
    with pytest.raises(StrategyError, match=words):
        check_parameters(here, names)


def test_right_parameters_pass() -> None:
    check_parameters(here, ["fast", "slow"])
    check_parameters(lambda bars, **anything: bars, ["fast"])
    check_parameters(functools.partial(here, slow=3), ["fast"])
    with pytest.raises(StrategyError, match="takes no bars"):
        check_parameters(lambda: 1, ["fast"])


def test_a_path_is_loaded_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_strategy_of_the_test.py").write_text("def cross(bars):\n    return bars\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert strategy_name(load("my_strategy_of_the_test:cross")) == "cross"
    with pytest.raises(StrategyError, match="did you mean 'cross'"):
        load("my_strategy_of_the_test:corss")


@pytest.mark.parametrize(
    ("path", "words"),
    [("nowhere", "MODULE:FUNCTION"), ("nowhere:f", "no module 'nowhere'"), ("math:pi", "a float, not")],
)
def test_a_path_that_leads_nowhere_is_named(path: str, words: str) -> None:
    with pytest.raises(StrategyError, match=words):
        load(path)

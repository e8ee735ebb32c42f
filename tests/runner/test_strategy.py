from __future__ import annotations

import functools
import hashlib
import importlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runner import strategies, strategy
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


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An installed package of somebody's, with strategies and other things."""
    folder = tmp_path / "site-packages" / "somebodys"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("import os\nfrom os import system\nfrom somebodys.inner import cross\n")
    (folder / "inner.py").write_text(
        "import functools, os\n"
        "def cross(bars, n=1):\n    return bars * n\n"
        "def other(data, n=1):\n    return data * n\n"
        "@functools.lru_cache\ndef cached(bars):\n    return bars\n"
        "def rebound(bars):\n    return bars\nrebound = os.system\n"
        "def replaced(bars):\n    return bars\nfrom shutil import rmtree as replaced\n"
        "class Family:\n    @staticmethod\n    def member(bars):\n        return bars\n"
    )
    (folder / "harmful.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')\ndef run(command):\n    pass\n")
    monkeypatch.syspath_prepend(str(folder.parent))
    yield "somebodys"
    for name in [name for name in sys.modules if name.startswith("somebodys")]:
        del sys.modules[name]
    strategy._named.cache_clear()


def inner(package: str, name: str) -> Any:
    return getattr(importlib.import_module(f"{package}.inner"), name)


def test_a_strategy_of_an_installed_package_travels_by_path_from_where_it_is_written(package: str) -> None:
    exported = importlib.import_module(package).cross
    ref, payload = ship(exported)
    assert (ref.path, payload) == ("somebodys.inner:cross", None)
    assert round_trip(exported) is exported


def test_one_whose_first_parameter_has_another_name_travels_signed_and_arrives(package: str) -> None:
    ref, payload = ship(inner(package, "other"))
    assert ref.path is None
    assert payload is not None
    assert round_trip(inner(package, "other"))(10, 2) == 20


def test_a_static_method_of_an_installed_package_travels_signed_and_arrives(package: str) -> None:
    member = inner(package, "Family").member
    assert ship(member)[0].path is None
    assert round_trip(member)(7) == 7


# What a worker refuses, whatever a client says

HARMFUL = [
    "os:system", "posix:system", "builtins:eval", "builtins:exec", "subprocess:run", "subprocess:Popen",
    "shutil:rmtree", "runner.cli:main", "runner.stack:stop", "runner.strategy:load", "workers.__main__:main",
    "cloudpickle:loads", "pickle:loads", "pandas:read_pickle", "pandas.io.pickle:to_pickle", "numpy:save",
    "numpy.f2py:compile", "importlib:import_module", "code:interact", "pip:main", "antigravity:geohash",
    "runner.strategies:np.save", "runner.strategies:np", "runner.strategies:check_window", "runner.strategies:Bars",
    "runner.strategies:sma_cross.__globals__", "runner.strategies:_held", "tests.support:running_valkey",
    "somebodys:os.system", "somebodys:system", "somebodys:os", "somebodys:cross", "somebodys.inner:os.system",
    "somebodys.inner:other", "somebodys.inner:cached", "somebodys.inner:rebound", "somebodys.inner:replaced",
    "somebodys.inner:Family.member", "somebodys.inner:cross.__call__", "somebodys.harmful:run",
    "", ":", "os", "os:", ":system", "..:system", "os..path:join", "somebodys.inner:", "somebodys/inner:cross",
    "/x:f", "http://host/x:f", "somebodys.inner\0:cross", "nowhere:f",
]  # fmt: skip


@pytest.mark.parametrize("path", HARMFUL)
def test_a_path_to_anything_but_a_strategy_is_refused_on_the_worker(path: str, package: str, tmp_path: Path) -> None:
    for digest in ("0" * 64, hashlib.sha256(b"").hexdigest()):
        with pytest.raises(StrategyError):
            resolve(StrategyRef("x", path, digest, strategy.PYTHON), None)
    assert not (tmp_path / "imported").exists()  # refused before anything of it ran


def test_the_folder_a_worker_is_started_in_holds_no_strategies_by_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "planted_by_the_test.py").write_text("def f(bars):\n    return bars\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    with pytest.raises(StrategyError, match="installed package"):
        resolve(StrategyRef("x", "planted_by_the_test:f", "0" * 64, strategy.PYTHON), None)


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

"""How a strategy travels: by import path when a package holds it, else by value as bytes that its digest names."""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Self

from runner.errors import StrategyError, VersionMismatch

Strategy = Callable[..., Any]

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
# Ours are on every worker, also where they are installed in editable mode.
OWN_PACKAGES = frozenset({"runner", "workers", "tasks"})
# cloudpickle's registry of modules taken by value belongs to the whole process.
_registry = threading.Lock()


@dataclass(frozen=True, slots=True)
class StrategyRef:
    """A strategy on the wire.

    Attributes:
        name: what people call it.
        path: ``module:function`` for code that an installed package holds, None for code that travels by value.
        digest: SHA-256 of the bytes that travel, or of the source file behind ``path``: code is never stale.
        python: minor version that pickled the bytes; another one cannot load them.
    """

    name: str
    path: str | None
    digest: str
    python: str

    def to_wire(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> Self:
        """The inverse of `to_wire`."""
        return cls(**wire)


def ship(strategy: Strategy) -> tuple[StrategyRef, bytes | None]:
    """The reference to send, and the bytes to store under its digest (None when it travels by path).

    Raises:
        StrategyError: not callable, or it holds something that cannot be pickled (a socket, a lock, a generator).
    """
    if not callable(strategy):
        raise StrategyError(
            f"strategy={strategy!r}: expected a function (bars, **parameters) that returns target positions."
        )
    name = strategy_name(strategy)
    path = _installed_path(strategy)
    if path is not None:
        return StrategyRef(name, path, _source_digest(path), PYTHON), None
    payload = dump_by_value(strategy)
    return StrategyRef(name, None, hashlib.sha256(payload).hexdigest(), PYTHON), payload


def resolve(ref: StrategyRef, payload: bytes | None) -> Strategy:
    """The function itself, in the process that runs it. ``payload`` has been verified by its signature.

    Raises:
        VersionMismatch: the bytes were pickled by another Python minor version.
        StrategyError: the package is missing here, or holds other code than the client's.
    """
    if ref.path is not None:
        return _resolve_path(ref, ref.path)
    if ref.python != PYTHON:
        raise VersionMismatch(
            f"strategy {ref.name!r} was sent by Python {ref.python}; this worker runs Python {PYTHON}. "
            "Code typed into a notebook needs the same minor version on both sides: "
            f"start a worker with Python {ref.python}, or put the strategy into an installed package."
        )
    if payload is None or hashlib.sha256(payload).hexdigest() != ref.digest:
        raise StrategyError(f"the code of strategy {ref.name!r} is not the code that was sent: submit the sweep again.")
    import cloudpickle

    try:
        strategy: Strategy = cloudpickle.loads(payload)
    except ModuleNotFoundError as error:
        raise StrategyError(
            f"strategy {ref.name!r} needs the package {error.name!r}, which this worker lacks: install it there."
        ) from error
    return strategy


def load(path: str) -> Strategy:
    """The function that ``module:function`` names, with the current folder importable as in ``python -m``."""
    module_name, colon, qualified = path.partition(":")
    if not colon or not module_name or not qualified:
        raise StrategyError(f"strategy {path!r}: expected MODULE:FUNCTION, such as my_strategy:sma_cross.")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        strategy = functools.reduce(getattr, qualified.split("."), importlib.import_module(module_name))
    except ModuleNotFoundError as error:
        if error.name != module_name.split(".")[0] and error.name != module_name:
            raise
        raise StrategyError(
            f"no module {module_name!r} here: run from the folder that holds {module_name.split('.')[0]}.py, "
            "or install it."
        ) from error
    except AttributeError as error:
        raise StrategyError(
            f"module {module_name!r} has no {qualified!r}{_did_you_mean(qualified, _functions_of(module_name))}."
        ) from error
    if not callable(strategy):
        raise StrategyError(f"{path} is a {type(strategy).__name__}, not a function.")
    found: Strategy = strategy
    return found


def check_parameters(strategy: Strategy, names: Iterable[str]) -> None:
    """Raise StrategyError when the strategy cannot be called as ``strategy(bars, **{name: ...})``."""
    given = list(names)
    try:
        signature = inspect.signature(strategy)
    except (TypeError, ValueError):
        return  # a builtin tells nothing about its parameters; the run will
    title = strategy_name(strategy)
    parameters = list(signature.parameters.values())
    positional = (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.VAR_POSITIONAL,
    )
    if not parameters or parameters[0].kind not in positional:
        raise StrategyError(f"{title} takes no bars: expected {title}(bars, {', '.join(given) or '...'}).")
    rest = parameters if parameters[0].kind is inspect.Parameter.VAR_POSITIONAL else parameters[1:]
    by_keyword = [
        p for p in rest if p.kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    ]
    known = [p.name for p in by_keyword]
    if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        for name in given:
            if name not in known:
                raise StrategyError(f"{title} has no parameter {name!r}{_did_you_mean(name, known)}.")
    missing = [p.name for p in by_keyword if p.default is p.empty and p.name not in given]
    if missing:
        raise StrategyError(f"{title} needs a value for {', '.join(map(repr, missing))}: add it to the grid.")


def strategy_name(strategy: Strategy) -> str:
    """The function's own name; ``strategy`` for a lambda or an object without one."""
    while isinstance(strategy, functools.partial):
        strategy = strategy.func
    name = getattr(strategy, "__name__", type(strategy).__name__)
    return "strategy" if name == "<lambda>" else str(name)


def dump_by_value(thing: Any) -> bytes:
    """``thing`` as bytes that carry all code of it that no installed package holds.

    Raises:
        StrategyError: it holds something that cannot be pickled.
    """
    import cloudpickle

    try:
        with _registry, _local_modules_by_value():
            payload: bytes = cloudpickle.dumps(thing, protocol=5)
    except Exception as error:
        raise StrategyError(
            f"{strategy_name(thing) if callable(thing) else thing!r} cannot be sent to another process: {error}. "
            "Create what cannot be pickled (a file, lock, connection) inside the function, or pass plain data."
        ) from error
    return payload


@contextmanager
def _local_modules_by_value() -> Iterator[None]:
    """While open, cloudpickle takes functions of a user's own folders by value, as it does those of a notebook."""
    import cloudpickle

    already = cloudpickle.list_registry_pickle_by_value()
    local = [m for name, m in list(sys.modules.items()) if name not in already and _is_local(name, m)]
    for module in local:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in local:
            cloudpickle.unregister_pickle_by_value(module)


def _is_local(name: str, module: ModuleType | None) -> bool:
    """Whether no worker can be expected to have this module: it lies outside the installed packages."""
    if module is None or name in ("__main__", "__mp_main__") or name.partition(".")[0] in OWN_PACKAGES:
        return False
    if getattr(module, "__name__", None) != name:
        return False  # an alias, such as os.path: cloudpickle knows it by its own name
    file = getattr(module, "__file__", None)
    return isinstance(file, str) and not _is_installed(file)


@functools.cache  # 70 ms for the 1,700 modules of a notebook, each time
def _is_installed(file: str) -> bool:
    path = Path(file).resolve()
    if {"site-packages", "dist-packages"} & set(path.parts):
        return True
    return any(path.is_relative_to(Path(sysconfig.get_path(kind)).resolve()) for kind in ("stdlib", "platstdlib"))


def _installed_path(strategy: Strategy) -> str | None:
    module_name = getattr(strategy, "__module__", None)
    qualified = getattr(strategy, "__qualname__", None)
    if not inspect.isfunction(strategy) or not module_name or not qualified or "<" in qualified:
        return None
    module = sys.modules.get(module_name)
    if module is None or module_name == "__main__" or _is_local(module_name, module):
        return None
    try:
        found: Any = functools.reduce(getattr, qualified.split("."), module)
    except AttributeError:
        return None
    return f"{module_name}:{qualified}" if found is strategy and getattr(module, "__file__", None) else None


@functools.cache  # of the first use: a package upgraded on disk later is not what this process runs
def _source_digest(path: str) -> str:
    module = importlib.import_module(path.partition(":")[0])
    return hashlib.sha256(Path(str(module.__file__)).read_bytes()).hexdigest()


def _resolve_path(ref: StrategyRef, path: str) -> Strategy:
    try:
        strategy = load(path)
    except ModuleNotFoundError as error:
        raise StrategyError(
            f"{path} needs the package {error.name!r}, which this worker lacks: install it there."
        ) from error
    if _source_digest(path) != ref.digest:
        raise StrategyError(
            f"{path} is other code on this worker than on the client: install the same version of "
            f"{path.partition('.')[0].partition(':')[0]!r} on both and restart the worker."
        )
    return strategy


def _functions_of(module_name: str) -> list[str]:
    module = sys.modules[module_name]
    return [name for name, value in vars(module).items() if callable(value)]


def _did_you_mean(given: str, known: Iterable[str]) -> str:
    names = list(known)
    close = difflib.get_close_matches(given, names, n=1)
    if close:
        return f": did you mean {close[0]!r}?"
    return f"; it has {', '.join(names)}" if names else ""

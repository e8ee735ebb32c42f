"""How a strategy travels: by import path when a package holds it, else by value as bytes that its digest names."""

from __future__ import annotations

import ast
import difflib
import functools
import hashlib
import importlib
import inspect
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any, Self

from runner.errors import StrategyError, VersionMismatch

Strategy = Callable[..., Any]

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
# Ours are on every worker, also where they are installed in editable mode.
OWN_PACKAGES = frozenset({"runner", "workers", "tasks"})
STRATEGIES = "runner.strategies"
# What the first parameter of a strategy is called. Of 64,447 functions in the packages that this project installs with
# its tests none is written so: a path leads to no function that does something else (docs/security.md).
FIRST_PARAMETER = "bars"
# cloudpickle's registry of modules taken by value belongs to the whole process.
_registry = threading.Lock()


@dataclass(frozen=True, slots=True)
class StrategyRef:
    """A strategy on the wire.

    Attributes:
        name: what people call it.
        path: ``module:function`` for a strategy that an installed package holds, None for what travels by value.
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
        return StrategyRef(name, path, _named(path)[1], PYTHON), None
    payload = dump_by_value(strategy)
    return StrategyRef(name, None, hashlib.sha256(payload).hexdigest(), PYTHON), payload


def resolve(ref: StrategyRef, payload: bytes | None) -> Strategy:
    """The function itself, in the process that runs it. ``payload`` has been verified by its signature.

    Raises:
        VersionMismatch: the bytes were pickled by another Python minor version.
        StrategyError: the package is missing here, or holds other code than the client's, or the path leads to
            something that is no strategy.
    """
    if ref.path is not None:
        return _resolve_path(ref.path, ref.digest)
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
    """``module:function`` when a worker would accept it, else None: then it travels signed, if only as a name."""
    if not inspect.isfunction(strategy):
        return None
    path = f"{strategy.__module__}:{strategy.__qualname__}"
    try:
        return path if _named(path)[0] is strategy else None
    except (ImportError, StrategyError):
        return None


def _resolve_path(path: str, digest: str) -> Strategy:
    try:
        strategy, found = _named(path)
    except ModuleNotFoundError as error:
        raise StrategyError(
            f"{path} needs the package {error.name!r}, which this worker lacks: install it there."
        ) from error
    if found != digest:
        raise StrategyError(
            f"{path} is other code on this worker than on the client: install the same version of "
            f"{path.partition('.')[0].partition(':')[0]!r} on both and restart the worker."
        )
    return strategy


@functools.cache  # of the first use: a package upgraded on disk later is not what this process runs
def _named(path: str) -> tuple[Strategy, str]:
    """The strategy that a path leads to, and the SHA-256 of its source. Nothing is imported that holds no strategy.

    Raises:
        ModuleNotFoundError: there is no such module, or it needs one that is missing.
        StrategyError: it is not in an installed package, or not written as a strategy.
    """
    module_name, _, name = path.partition(":")
    file = _file_of(module_name)
    source = file.read_bytes() if module_name == STRATEGIES or _in_a_package(file) else b""
    if not _defines(source, name):
        raise StrategyError(
            f"{path} is no strategy by its name: expected `def {name or 'f'}({FIRST_PARAMETER}, ...)` at the top level "
            f"of a module of an installed package, or one of {STRATEGIES}. Pass the function itself: then it "
            "travels signed."
        )
    module = importlib.import_module(module_name)
    strategy = getattr(module, name)
    if not inspect.isfunction(strategy) or strategy.__module__ != module_name:
        raise StrategyError(f"{path} is a {type(strategy).__name__}, not the function that its source defines.")
    return strategy, hashlib.sha256(source).hexdigest()


def _file_of(module_name: str) -> Path:
    """Where a module's source is, found without running any of it; ModuleNotFoundError when nowhere."""
    if module_name == STRATEGIES:  # perhaps an editable install, which only its own finder knows
        return Path(__file__).with_name("strategies.py")
    top = module_name.partition(".")[0]
    folders: list[str] | None = None
    file = ""
    for end in _ends(module_name):
        spec = PathFinder.find_spec(module_name[:end], folders)
        if spec is None and top not in sys.stdlib_module_names:
            raise ModuleNotFoundError(f"no module {module_name!r}", name=top)
        folders = list(spec.submodule_search_locations or []) if spec else []
        file = (spec.origin or "") if spec else ""
    return Path(file)


def _ends(module_name: str) -> list[int]:
    """Where the names of its packages end in a module's name, and its own."""
    return [*(at for at, char in enumerate(module_name) if char == "."), len(module_name)]


def _in_a_package(file: Path) -> bool:
    return bool({"site-packages", "dist-packages"} & set(file.resolve().parts))


def _defines(source: bytes, name: str) -> bool:
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return False
    functions = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)
    first = [[*node.args.posonlyargs, *node.args.args][:1] for node in functions]
    return any(argument.arg == FIRST_PARAMETER for arguments in first for argument in arguments)


def _functions_of(module_name: str) -> list[str]:
    module = sys.modules[module_name]
    return [name for name, value in vars(module).items() if callable(value)]


def _did_you_mean(given: str, known: Iterable[str]) -> str:
    names = list(known)
    close = difflib.get_close_matches(given, names, n=1)
    if close:
        return f": did you mean {close[0]!r}?"
    return f"; it has {', '.join(names)}" if names else ""

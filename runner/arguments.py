"""What the command line writes as text: axes (``fast=5:60``), conditions (``fast < slow``), prices, strategies."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from runner.errors import BarsError, InputError, SpaceError

if TYPE_CHECKING:
    from runner.bars import Bars

Scalar = int | float | str | bool | None
Condition = Callable[[Any], Any]

WORDS: dict[str, Scalar] = {"true": True, "false": False, "none": None}
# A typed range beyond this is a slip of the finger; runner.grid in Python takes longer ones.
MAX_STEPS = 1_000_000

# and, or, not act on whole columns of a grid as well as on one point.
_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.And: np.logical_and,
    ast.Or: np.logical_or,
    ast.Not: np.logical_not,
    ast.USub: operator.neg,
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}


def axes(texts: Sequence[str]) -> dict[str, Sequence[Scalar]]:
    """``fast=5:60``, ``slow=20:240:2``, ``k=0.5:2:0.25``, ``mode=long,short`` as axes of a grid.

    A range ends before its stop, as in Python. Fractions are counted in decimals, so that 0.1:0.4:0.1 is 0.1, 0.2, 0.3.

    Raises:
        SpaceError: no axis, a text that is none, or one name twice.
    """
    found: dict[str, Sequence[Scalar]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        if not equals or not name.isidentifier() or not values:
            raise SpaceError(f"{text!r}: expected NAME=START:STOP[:STEP] or NAME=A,B,C, such as fast=5:60.")
        if name in found:
            raise SpaceError(f"{name} is given twice: put all its values into one axis, such as {name}=5,10,20.")
        found[name] = (
            _range(text, values.split(":")) if ":" in values else [_scalar(part) for part in values.split(",")]
        )
    return found


def condition(text: str, names: Sequence[str]) -> Condition:
    """``fast < slow`` as the ``where=`` of a grid. Comparisons, arithmetic, and, or, not; never run as Python.

    Raises:
        SpaceError: another kind of expression, or a name that is no axis.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError):
        raise SpaceError(
            f"{text!r} is no condition: expected something like 'fast < slow and slow % 5 == 0'."
        ) from None
    return _build(tree.body, text, names)


def _build(node: ast.expr, text: str, names: Sequence[str]) -> Condition:
    match node:
        case ast.Name(id=name) if name in names:
            return lambda point: point[name]
        case ast.Name(id=name):
            raise SpaceError(f"{text!r}: {name} is no axis; expected {', '.join(names)}.")
        case ast.Constant(value=value) if isinstance(value, int | float | str | None):
            return lambda _: value
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _OPERATORS:
            return _apply(_OPERATORS[type(op)], _build(operand, text, names))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _apply(_OPERATORS[type(op)], _build(left, text, names), _build(right, text, names))
        case ast.BoolOp(op=op, values=values):
            return _chain(_OPERATORS[type(op)], [_build(value, text, names) for value in values])
        case ast.Compare(left=left, ops=ops, comparators=others) if all(type(op) in _OPERATORS for op in ops):
            sides = [_build(side, text, names) for side in (left, *others)]
            pairs = zip(ops, sides, sides[1:], strict=False)
            return _chain(np.logical_and, [_apply(_OPERATORS[type(op)], one, other) for op, one, other in pairs])
    raise SpaceError(f"{text!r}: {ast.unparse(node)} is not allowed; expected comparisons of axes and numbers.")


def _apply(function: Callable[..., Any], *parts: Condition) -> Condition:
    return lambda point: function(*(part(point) for part in parts))


def _chain(function: Callable[..., Any], parts: Sequence[Condition]) -> Condition:
    first, *rest = parts
    return _apply(function, first, _chain(function, rest)) if rest else first


def _range(text: str, parts: Sequence[str]) -> Sequence[Scalar]:
    try:
        start, stop, step = (Decimal(part) for part in [*parts, "1"][:3])
        count = math.ceil((stop - start) / step)
    except (ValueError, InvalidOperation, ZeroDivisionError, OverflowError):
        raise SpaceError(
            f"{text!r}: expected NAME=START:STOP or NAME=START:STOP:STEP in numbers, STEP not 0."
        ) from None
    if len(parts) > 3 or not 0 < count <= MAX_STEPS:
        raise SpaceError(
            f"{text!r} is {max(count, 0):,} values: expected 1 to {MAX_STEPS:,} from START to before STOP."
        )
    if all(number == int(number) for number in (start, step)):
        return range(int(start), int(start) + count * int(step), int(step))
    return [float(start + i * step) for i in range(count)]


def _scalar(text: str) -> Scalar:
    if text.lower() in WORDS:
        return WORDS[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def options(texts: Sequence[str]) -> dict[str, Any]:
    """``feed=iex`` as options of a source.

    Raises:
        InputError: a text that is none, or one name twice.
    """
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier() or name in found:
            raise InputError(f"{text!r}: expected NAME=VALUE, each name once, such as feed=iex.")
        found[name] = _scalar(value)
    return found


def strategy_path(text: str) -> str:
    """MODULE:FUNCTION as it is; a bare name is one of the strategies that come with the package."""
    return text if ":" in text else f"runner.strategies:{text}"


def prices(text: str) -> Bars | dict[str, Bars]:
    """Prices from a .parquet or .csv file (many symbols in a ``symbol`` column), or a sample's name.

    Raises:
        BarsError: the file is missing, of another kind or cannot be backtested; or no sample has this name.
    """
    import pandas as pd

    from runner.bars import Bars, sample_data

    path = Path(text)
    kind = "".join(suffix for suffix in path.suffixes if suffix in (".parquet", ".csv", ".gz"))
    if not kind and not path.exists():
        return sample_data(text)
    try:
        if kind == ".parquet":
            frame = pd.read_parquet(path)
        elif kind in (".csv", ".csv.gz"):
            frame = pd.read_csv(path, index_col=0, parse_dates=[0])
        else:
            raise BarsError(f"{text}: expected a .parquet, .csv or .csv.gz file, or a sample's name.")
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise BarsError(f"{text} cannot be read: {error}") from None
    many = Bars.split_frame(frame)
    return many if len(many) > 1 else next(iter(many.values())).with_symbol(_symbol(many, path))


def _symbol(many: dict[str, Bars], path: Path) -> str:
    """The only symbol's own name, else the file's."""
    return next(iter(many)) or path.name.partition(".")[0]


def write(fetched: Mapping[str, Any], file: Path) -> None:
    """Fetched bars or series as one table with a ``symbol`` column, which `prices` reads again."""
    import pandas as pd

    from runner.bars import Bars

    parts = []
    for symbol, value in fetched.items():
        frame = value.to_frame() if isinstance(value, Bars) else value.to_frame("value")
        frame.insert(0, "symbol", symbol)
        parts.append(frame)
    table = pd.concat(parts)
    table.to_parquet(file) if file.suffix == ".parquet" else table.to_csv(file)


def output(text: str) -> Path:
    """Where a table is to be written, checked before anything runs.

    Raises:
        InputError: neither .parquet nor .csv, or the folder is missing.
    """
    path = Path(text)
    if path.suffix not in (".parquet", ".csv"):
        raise InputError(f"{text}: expected a file that ends in .parquet or .csv.")
    if not path.absolute().parent.is_dir():
        raise InputError(f"{text}: the folder {path.absolute().parent} does not exist.")
    return path

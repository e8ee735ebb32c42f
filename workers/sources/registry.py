"""Which sources there are: entry points of ``backtest_runner.sources``, so that any installed package can add one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from functools import cache
from importlib.metadata import EntryPoint, entry_points

from runner.errors import SettingsError
from workers.sources.protocol import Source

GROUP = "backtest_runner.sources"
# Every source takes it: another address that speaks the same language, such as a mirror or a stand-in.
BASE_URL = "base_url"


def sources() -> tuple[str, ...]:
    """The names of all sources that are installed here, sorted. Nothing is imported."""
    return tuple(sorted({entry.name for entry in entry_points(group=GROUP)}))


@cache
def source(name: str) -> Source:
    """The source of that name, made on first use, the same one in the whole process.

    Raises:
        SettingsError: unknown, given by two packages, or it cannot be imported; it says what to do.
    """
    found = {entry.value: entry for entry in entry_points(group=GROUP, name=name)}
    if not found:
        raise SettingsError(f"source {name!r} is not installed here.{_near(name, sources())}")
    if len(found) > 1:
        packages = ", ".join(sorted(_package(entry) for entry in found.values()))
        raise SettingsError(f"source {name!r} is given by several packages ({packages}): remove all but one.")
    [entry] = found.values()
    try:
        made = entry.load()()
    except Exception as error:  # another package's module may raise anything
        raise SettingsError(
            f"source {name!r} ({entry.value} of {_package(entry)}) cannot be used: "
            f"{type(error).__name__}: {error}. {_cure(entry)}"
        ) from error
    missing = [attribute for attribute in (*Source.__annotations__, "unit", "load") if not hasattr(made, attribute)]
    if missing:
        raise SettingsError(
            f"source {name!r} ({entry.value} of {_package(entry)}) has no {', '.join(missing)}: "
            "workers/sources/protocol.py says what a source is."
        )
    return made  # type: ignore[no-any-return]  # an entry point may be anything; checked above


def check(source: Source, interval: str, options: Mapping[str, object]) -> None:
    """Whether the source has that interval and takes these options.

    Raises:
        SettingsError: it does not; it names what there is.
    """
    if interval not in source.intervals:
        raise SettingsError(
            f"{source.name}: interval {interval!r} is not one of its own: {', '.join(source.intervals)}."
        )
    known = (*source.options, BASE_URL)
    for option in options:
        if option not in known:
            raise SettingsError(f"{source.name}: it has no option {option!r}.{_near(option, known)}")


def _near(given: str, known: Iterable[str]) -> str:
    names = sorted(known)
    close = get_close_matches(given.lower(), names, n=2)
    hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    return f"{hint} There is {', '.join(names) or 'none'}."


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else "an unnamed package"


def _cure(entry: EntryPoint) -> str:
    extras = entry.dist.metadata.get_all("Provides-Extra") if entry.dist else None
    if extras and entry.name in extras:
        return f"Install what it needs with: pip install '{_package(entry)}[{entry.name}]'."
    return "Install what it needs, or remove that package."

"""A price file on the worker's own disk."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from runner.errors import BadAnswer, SourceRefused, SymbolUnknown
from workers.session import HttpClient
from workers.sources import tables
from workers.sources.parse import table, where
from workers.sources.protocol import Ask, Kind, Table, Unchanged, Unit, Usual

FOLDER = "RUNNER_DATA_DIR"
# What else there is on a disk (keys, /proc) is nobody's prices.
SUFFIXES = (".csv", ".csv.gz", ".parquet")


class File(Usual):
    """One symbol's prices; the symbol is a path on the worker's machine: CSV or Parquet, gzipped or not.

    `tables.columns_of` says which columns. With RUNNER_DATA_DIR in the worker's environment, paths are relative to that
    folder, and nothing outside it is read. ``time_unit`` says what numeric times count.
    """

    name = "file"
    kind: Kind = "bars"
    intervals: tuple[str, ...] = tables.INTERVALS
    options: tuple[str, ...] = ("time_unit",)
    ttl_s: float | None = 0.0  # a look at the file's time of change
    local: bool = True

    def unit(self, interval: str) -> Unit:  # noqa: ARG002 - the protocol's
        """A file is read whole."""
        return "all"

    async def load(self, ask: Ask, http: HttpClient) -> Table:  # noqa: ARG002 - nothing is fetched
        """See `Source`. Raises Unchanged while time of change and size are those of the cache's copy."""
        return await asyncio.to_thread(_read, ask)


def _read(ask: Ask) -> Table:
    label = where(File.name, ask)
    path = _path(ask, label)
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            version = f"{status.st_mtime_ns:x}-{status.st_size:x}"
            if ask.etag == version:
                raise Unchanged
            body = file.read(tables.MOST_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise SymbolUnknown(
            f"{label}: there is no such file on the worker's machine. Give a path that exists there, not on the "
            "notebook's."
        ) from None
    except IsADirectoryError:
        raise SymbolUnknown(f"{label}: that is a folder: expected a CSV or Parquet file.") from None
    except OSError as error:
        raise SourceRefused(f"{label}: cannot be read ({error.strerror}). Check the worker's rights.") from None
    time, columns = tables.columns_of(body, ask.interval, ask.options, label)
    return table(ask, time, columns, label, etag=version)


def _path(ask: Ask, label: str) -> Path:
    """The file with all symbolic links followed.

    Raises:
        SourceRefused: outside the folder that the worker allows, or named as no price file is.
        BadAnswer: a pipe or device, whose reading might never end.
    """
    folder = os.environ.get(FOLDER, "")
    root = Path(folder).resolve() if folder else Path.cwd()
    try:
        path = (root / ask.symbol).resolve()
    except (OSError, ValueError, RuntimeError):  # a loop of links, a NUL in the name
        raise SymbolUnknown(f"{label}: that is no path.") from None
    if folder and not path.is_relative_to(root):
        raise SourceRefused(
            f"{label}: outside the folder of {FOLDER}, which is all that this worker reads. Put the file there."
        )
    if not path.name.lower().endswith(SUFFIXES) and not path.is_dir():
        raise SourceRefused(f"{label}: expected a file named {', '.join(SUFFIXES)}. Rename it, if it is one.")
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise BadAnswer(f"{label}: that is no regular file.")
    return path

"""Columns as bytes: one Arrow IPC stream, uncompressed, with notes in its schema."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from runner.columns import Floats, Times
from runner.errors import BarsError


def dump(time: Times, named: Mapping[str, Floats], notes: Mapping[str, str]) -> bytes:
    """Bytes of the column "time" and the named ones; every bit survives."""
    import pyarrow as pa

    arrays = [pa.array(time), *(pa.array(column) for column in named.values())]
    batch = pa.record_batch(arrays, names=["time", *named]).replace_schema_metadata(dict(notes))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    payload: bytes = sink.getvalue().to_pybytes()
    return payload


def load(payload: bytes) -> tuple[Any, dict[str, Any], dict[str, str]]:
    """Time, the other columns by name, and the notes; raises BarsError for bytes that `dump` did not make."""
    import pyarrow as pa

    try:
        table = pa.ipc.open_stream(payload).read_all()
        named = {
            name: table.column(name).combine_chunks().to_numpy(zero_copy_only=False) for name in table.column_names
        }
        notes = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError) as error:
        raise BarsError(f"these bytes are not bars ({error}): expected what Bars.to_bytes() returned.") from error
    return named.pop("time", np.empty(0)), named, notes

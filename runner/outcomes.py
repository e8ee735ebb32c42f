"""A chunk's outcome on the wire: Arrow, a column a metric, so that reading it loads no code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from runner.engine.batch import RunError
from runner.engine.metrics import METRICS
from runner.errors import SweepError


@dataclass(frozen=True, slots=True)
class Outcome:
    """Runs start..stop-1 of a sweep.

    Attributes:
        start: first run.
        columns: one float64 array a metric, in the order of METRICS; NaN for failed runs.
        errors: run (counted within the sweep) → what went wrong.
    """

    start: int
    columns: Sequence[np.ndarray] | np.ndarray
    errors: dict[int, RunError]

    @property
    def stop(self) -> int:
        """Last run + 1."""
        return self.start + len(self.columns[0])


def encode(outcome: Outcome) -> bytes:
    """Two Arrow IPC streams, metrics and errors, with the length of the first in front (8 bytes, big-endian)."""
    metrics = _write(dict(zip(METRICS, outcome.columns, strict=True)), {"start": str(outcome.start)})
    failed = sorted(outcome.errors)
    rows = [outcome.errors[run] for run in failed]
    texts = {name: [getattr(row, name) for row in rows] for name in ("kind", "message", "traceback")}
    errors = _write({"run": np.array(failed, np.int64), **texts}, {})
    return b"".join([len(metrics).to_bytes(8, "big"), metrics, errors])


def decode(blob: bytes) -> Outcome:
    """The inverse of `encode`; the columns are views of what was read. Raises SweepError on anything else."""
    try:
        return _decoded(blob)
    except Exception as error:  # whatever Arrow, or a look into what it made of the bytes, finds wrong
        raise SweepError(
            f"an outcome on the server is damaged ({type(error).__name__}): run the sweep again."
        ) from error


def _decoded(blob: bytes) -> Outcome:
    split = 8 + int.from_bytes(blob[:8], "big")
    metrics = _read(blob[8:split])
    columns = [column.to_numpy() for column in metrics.columns]
    errors = {row.pop("run"): RunError(**row) for row in _read(blob[split:]).to_pylist()}
    return Outcome(int(metrics.schema.metadata[b"start"]), columns, errors)


def _write(columns: Mapping[str, Any], metadata: dict[str, str]) -> memoryview:
    import pyarrow as pa

    types = {"kind": pa.string(), "message": pa.string(), "traceback": pa.string()}
    arrays = [pa.array(values, types.get(name)) for name, values in columns.items()]
    batch = pa.record_batch(arrays, names=list(columns)).replace_schema_metadata(metadata)
    sink = pa.BufferOutputStream()
    # lz4: metrics of neighbouring runs hardly compress, and it finds that out at a tenth of zstd's cost.
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with pa.ipc.new_stream(sink, batch.schema, options=options) as writer:
        writer.write_batch(batch)
    return memoryview(sink.getvalue())


def _read(stream: bytes) -> Any:
    import pyarrow as pa

    with pa.ipc.open_stream(pa.BufferReader(stream)) as reader:
        batch = reader.read_next_batch()
    batch.validate(full=True)  # without it a damaged length ends this process (segmentation fault, measured)
    return batch

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from runner import ipc
from runner.errors import BarsError


def test_columns_and_notes_come_back_bit_for_bit() -> None:
    odd = np.array([-0.0, 5e-324, np.inf])
    time, named, notes = ipc.load(ipc.dump(np.arange(3), {"a": odd}, {"symbol": "Ä"}))
    assert time.tolist() == [0, 1, 2]
    assert named["a"].tobytes() == odd.tobytes()
    assert notes == {"symbol": "Ä"}


def test_the_same_columns_are_the_same_bytes() -> None:
    assert ipc.dump(np.arange(3), {"a": np.ones(3)}, {}) == ipc.dump(np.arange(3), {"a": np.ones(3)}, {})


@pytest.mark.parametrize("payload", [b"", b"not arrow"])
def test_other_bytes_are_refused(payload: bytes) -> None:
    with pytest.raises(BarsError, match=r"expected what Bars.to_bytes\(\) returned"):
        ipc.load(payload)


def test_a_stream_of_several_batches_is_joined() -> None:
    sink = pa.BufferOutputStream()
    batch = pa.record_batch([pa.array([1, 2])], names=["time"])
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
        writer.write_batch(batch)
    assert ipc.load(sink.getvalue().to_pybytes())[0].tolist() == [1, 2, 1, 2]

"""Columns as bytes: exact, and small where the numbers are decimals, as prices are.

A price like 101.25 fills all its eight bytes as a float; as 10125 hundredths it is two, and its distance from the bar
before is one. So a column becomes integers wherever that loses no bit (tried on every value when it is written), the
integers become what is left after a guess, the leftovers are laid out byte by byte, and zstd does the rest.
Other columns keep their eight bytes. Layout: magic, length of the header, header (JSON), each column's zstd frame.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from runner.columns import Floats, Times
from runner.errors import BarsError

Bytes = npt.NDArray[np.uint8]

# The last byte is the version of the format.
MAGIC = b"cols\x01"
PREFIX = struct.Struct("<5sI")
# Decimal places that are tried: 8 are those of crypto exchanges.
MOST_DIGITS = 8
# Up to here every whole number is a float of its own.
EXACT = 2.0**53
# Rows by which the places and the guess are chosen; the places are then tried on every row.
SAMPLE_ROWS = 1024
# On a year of minute bars levels 3 and 6 took 1.6 and 2 times as long, and came out 3 % larger.
LEVEL = 1
# A zstd block holds at most 128 KiB and takes at least 4 bytes (RFC 8878, 3.1.1.2): what promises more is a lie.
MOST_PER_BYTE = 128 * 1024 // 4
# Of all columns unpacked: a year of one-second bars takes 1.5.
MOST_BYTES = 4 * 2**30
# Guessed from columns that come before them: open from the close before, high and low from open and close.
GUESSED = ("open", "high", "low")


def pack(time: Times, named: Mapping[str, Floats], notes: Mapping[str, str]) -> bytes:
    """The columns as bytes that `unpack` turns back into the same bits.

    Args:
        time: int64[n].
        named: float64[n] by name.
        notes: kept beside the columns.

    Raises:
        BarsError: columns of another type, or not all of one length.
    """
    for name, column in [("time", time), *named.items()]:
        wanted = np.int64 if column is time else np.float64
        if column.dtype != wanted or column.shape != (len(time),):
            raise BarsError(
                f"column {name!r} is {column.dtype} of shape {column.shape}: expected {np.dtype(wanted)}[{len(time)}]."
            )
    scaled = _scaled(named)
    packed = [_squeezed(time), *(_packed(name, column, scaled) for name, column in named.items())]
    specs = [{**spec, "size": len(frame)} for spec, frame in packed]
    header = json.dumps({"rows": len(time), "names": list(named), "columns": specs, "notes": dict(notes)}).encode()
    return b"".join([PREFIX.pack(MAGIC, len(header)), header, *(frame for _, frame in packed)])


def unpack(payload: bytes) -> tuple[Times, dict[str, Floats], dict[str, str]]:
    """Time, the other columns by name (read-only all of them), and the notes.

    Raises:
        BarsError: bytes that `pack` did not make.
    """
    import pyarrow as pa

    try:
        header, frames = _opened(memoryview(payload))
        specs = header["columns"]
        parts = [_inflated(spec, frame, header["rows"]) for spec, frame in zip(specs, frames, strict=True)]
        time = _summed(specs[0], parts[0])
        named = _restored(dict(zip(header["names"], zip(specs[1:], parts[1:], strict=True), strict=True)))
        notes = {str(key): str(value) for key, value in header["notes"].items()}
    except (pa.ArrowException, OSError, ValueError, TypeError, LookupError, OverflowError, RecursionError,
            AttributeError, struct.error) as error:  # fmt: skip
        raise BarsError(f"these bytes are not bars ({error}): expected what Bars.to_bytes() returned.") from error
    for column in (time, *named.values()):
        column.flags.writeable = False
    return time, named, notes


# Writing


def _scaled(named: Mapping[str, Floats]) -> dict[str, tuple[int, Times]]:
    """Decimal places and whole numbers of the columns that have them; prices share their places, if they can."""
    digits = {name: places for name, column in named.items() if (places := _places(column)) is not None}
    prices = [name for name in (*GUESSED, "close") if name in digits]
    shared = max((digits[name] for name in prices), default=0)
    scaled = {}
    for name, places in digits.items():
        for tried in range(shared if name in prices else places, MOST_DIGITS + 1):
            whole = _whole(named[name], tried)
            if whole is not None:
                scaled[name] = (tried, whole)
                break
    return scaled


def _places(column: Floats) -> int | None:
    """The fewest decimal places that the first rows have, None when they are no decimals."""
    first = column[:SAMPLE_ROWS]
    return next((places for places in range(MOST_DIGITS + 1) if _whole(first, places) is not None), None)


def _whole(column: Floats, places: int) -> Times | None:
    """The column times 10**places as integers, None unless dividing them gives back every bit."""
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = np.rint(column * 10.0**places)
        if not (np.abs(scaled) <= EXACT).all():  # NaN is not
            return None
    whole = scaled.astype(np.int64)  # -0.0 becomes 0 here, so that is what is compared
    same = np.array_equal((whole / 10.0**places).view(np.int64), column.view(np.int64))
    return whole if same else None


def _packed(name: str, column: Floats, scaled: Mapping[str, tuple[int, Times]]) -> tuple[dict[str, Any], bytes]:
    if name not in scaled:
        return {}, _compressed(column.astype("<f8", copy=False).view(np.uint8))
    places, whole = scaled[name]
    if name in GUESSED and all(scaled.get(other, (None,))[0] == places for other in ("open", "close")):
        guess = _guess(name, {other: scaled[other][1] for other in ("open", "close")})
        spec, frame = _squeezed(whole - guess, order=0)
        return {**spec, "places": places, "guessed": True}, frame
    spec, frame = _squeezed(whole)
    return {**spec, "places": places}, frame


def _squeezed(whole: Times, order: int | None = None) -> tuple[dict[str, Any], bytes]:
    """Differences of the best order, as few bytes wide as they need, compressed."""
    if order is None:
        costs = [_cost(_differences(whole[:SAMPLE_ROWS], tried)) for tried in (0, 1, 2)]
        order = costs.index(min(costs))
    first = int(whole[0]) if len(whole) else 0
    left = _differences(whole, order)
    unsigned = ((left << 1) ^ (left >> 63)).view(np.uint64)  # 0, -1, 1, -2 become 0, 1, 2, 3: no sign to smear
    width = max(1, (int(unsigned.max(initial=0)).bit_length() + 7) // 8)
    planes = unsigned.astype("<u8", copy=False).view(np.uint8).reshape(-1, 8)[:, :width].T
    return {"first": first, "order": order, "width": width}, _compressed(np.ascontiguousarray(planes))


def _differences(whole: Times, order: int) -> Times:
    """What `_summed` adds up again; integers wrap around, so nothing is lost at their ends."""
    left = whole - whole[:1]
    for _ in range(order):
        left = np.diff(left, prepend=left[:1])
    return left


def _cost(left: Times) -> float:
    """Bits that these integers need, roughly."""
    return float(np.log2(1.0 + np.abs(left.astype(np.float64))).sum())


def _compressed(raw: Bytes) -> bytes:
    import pyarrow as pa

    if not raw.size:
        return b""
    frame: bytes = pa.Codec("zstd", compression_level=LEVEL).compress(pa.py_buffer(raw), asbytes=True)
    return frame


# Reading


def _opened(payload: memoryview) -> tuple[dict[str, Any], list[memoryview]]:
    """The header and each column's frame; everything that is promised is checked against what is there."""
    magic, length = PREFIX.unpack_from(payload)
    if magic != MAGIC:
        raise ValueError("they do not begin as columns do")
    body = PREFIX.size + length
    header = json.loads(bytes(payload[PREFIX.size : body]))
    rows, sizes = header["rows"], [spec["size"] for spec in header["columns"]]
    if min(rows, *sizes) < 0 or 8 * rows * len(sizes) > MOST_BYTES:
        raise ValueError(f"{len(sizes)} columns of {rows} rows are more than {MOST_BYTES:,} bytes")
    if body + sum(sizes) != len(payload):
        raise ValueError(f"{len(payload):,} bytes instead of {body + sum(sizes):,}")
    frames = []
    for size in sizes:
        frames.append(payload[body : body + size])
        body += size
    return header, frames


def _inflated(spec: Mapping[str, Any], frame: memoryview, rows: int) -> npt.NDArray[Any]:
    """The column's floats, or the differences of its integers."""
    import pyarrow as pa

    width = spec.get("width", 8)
    size = rows * width
    if not 1 <= width <= 8 or size > len(frame) * MOST_PER_BYTE:
        raise ValueError(f"a column of {rows} rows, {width} bytes each, in {len(frame)} bytes")
    raw = pa.Codec("zstd").decompress(pa.py_buffer(frame), size) if size else b""
    if "width" not in spec:
        return np.frombuffer(raw, "<f8").astype(np.float64)
    wide = next(bits for bits in (1, 2, 4, 8) if bits >= width)
    rowwise = np.zeros((rows, wide), np.uint8)
    rowwise[:, :width] = np.frombuffer(raw, np.uint8).reshape(width, rows).T
    unsigned = rowwise.view(f"<u{wide}").reshape(rows).astype(np.uint64)
    return (unsigned >> np.uint64(1)).view(np.int64) ^ -(unsigned & np.uint64(1)).view(np.int64)


def _summed(spec: Mapping[str, Any], left: Times) -> Times:
    """The inverse of `_differences`."""
    for _ in range(spec["order"] if spec["order"] in (0, 1, 2) else 0):
        np.cumsum(left, out=left)
    left += np.int64(spec["first"])
    return left


def _restored(parts: Mapping[str, tuple[Mapping[str, Any], npt.NDArray[Any]]]) -> dict[str, Floats]:
    named = {name: left for name, (spec, left) in parts.items() if "width" not in spec}
    whole = {name: _summed(spec, left) for name, (spec, left) in parts.items() if "width" in spec}
    for name in GUESSED:
        if name in parts and parts[name][0].get("guessed"):
            whole[name] += _guess(name, whole)
    for name, numbers in whole.items():
        named[name] = numbers / 10.0 ** parts[name][0]["places"]
    return {name: named[name] for name in parts}


def _guess(name: str, whole: Mapping[str, Times]) -> Times:
    """What a price is expected to be, from those that are read before it."""
    if name == "open":
        return np.concatenate((whole["close"][:1], whole["close"][:-1]))
    extreme = np.maximum if name == "high" else np.minimum
    return extreme(whole["open"], whole["close"])

"""What somebody could write who has the server's password and not the secret: pickle bombs, mutations, nonsense."""

from __future__ import annotations

import base64
import gzip
import json
import os
import pickle
import random
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

PICKLES = ("application/x-python-serialize", "application/x-yaml", "application/x-msgpack", "application/data")


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self._canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"echo executed >> {self._canary}",)


def bombs(canary: Path) -> list[bytes]:
    """The bomb in every protocol of pickle, and as cloudpickle and the classics of text write it."""
    made = [pickle.dumps(Bomb(canary), protocol) for protocol in range(6)]
    return [*made, pickle.dumps([[Bomb(canary)], {}, {}]), f"cos\nsystem\n(S'touch {canary}'\ntR.".encode()]


def explodes(bomb: bytes, canary: Path) -> bool:
    """Whether it works at all; without this the tests that nothing happens would prove nothing."""
    pickle.loads(bomb)
    worked = canary.exists()
    canary.unlink(missing_ok=True)
    return worked


def mutated(real: bytes, seed_: int, count: int, canary: Path) -> Iterator[bytes]:
    """Variants of a real message: bits flipped, pieces cut and doubled, fields of nonsense, bombs planted."""
    draw = random.Random(seed_)  # noqa: S311 -- no secret depends on it
    steps = (_flipped, _cut, _spliced, _field, _envelope, _planted)
    for _ in range(count):
        yield draw.choice(steps)(real, draw, canary)


NONSENSE: tuple[Any, ...] = (
    None, True, 0, -1, 10**30, 1e308, "", "os.system", "\ud800", "x" * 3000, [], [1], {}, {"a": 1}, [[[]]],
    {"__type__": "decimal", "__value__": "x"}, {"__type__": "x", "__value__": 1}, "9999-12-31T23:59:59", "../../etc",
)  # fmt: skip


def _flipped(real: bytes, draw: random.Random, _: Path) -> bytes:
    made = bytearray(real)
    for _n in range(draw.choice((1, 2, 8, 64))):
        made[draw.randrange(len(made))] ^= 1 << draw.randrange(8)
    return bytes(made)


def _cut(real: bytes, draw: random.Random, _: Path) -> bytes:
    start, stop = sorted(draw.randrange(len(real)) for _n in range(2))
    return real[:start] + real[stop:]


def _spliced(real: bytes, draw: random.Random, _: Path) -> bytes:
    start, stop = sorted(draw.randrange(len(real)) for _n in range(2))
    return real[:start] + real[start:stop] * draw.choice((2, 3, 100)) + real[stop:]


def _field(real: bytes, draw: random.Random, _: Path) -> bytes:
    """One or some of the fields that Celery and kombu look at, anywhere in the message."""
    message = json.loads(real)
    for _n in range(draw.choice((1, 1, 2, 5))):
        holder = draw.choice([message, message["headers"], message["properties"]])
        if not isinstance(holder, dict) or not holder:
            continue
        names = [*holder, "compression", "eta", "expires", "timelimit", "chord", "group", "task", "id", "stamps"]
        name = draw.choice(names)
        if draw.random() < 0.2:
            holder.pop(name, None)
        else:
            holder[name] = deepcopy(draw.choice(NONSENSE))
        if not all(isinstance(message.get(part), dict) for part in ("headers", "properties")):
            break
    return json.dumps(message).encode()


def _envelope(real: bytes, draw: random.Random, _: Path) -> bytes:
    """The signed part: what it says, or who says so, is another."""
    message = json.loads(real)
    (envelope,), kwargs, embedded = json.loads(base64.b64decode(message["body"]))
    name = draw.choice([*envelope, "more"])
    if draw.random() < 0.2:
        envelope.pop(name, None)
    elif name == "body":
        envelope["body"] = {"batch": draw.choice(("a", "../x", "")), "start": draw.randrange(100)}
    else:
        envelope[name] = draw.choice(NONSENSE)
    message["body"] = base64.b64encode(json.dumps([[envelope], kwargs, embedded]).encode()).decode()
    return json.dumps(message).encode()


def _planted(real: bytes, draw: random.Random, canary: Path) -> bytes:
    """A bomb, raw, or as the body of a message that says of what type it is."""
    bomb = draw.choice(bombs(canary))
    if draw.random() < 0.2:
        return bomb
    message = json.loads(real)
    message["content-type"] = draw.choice((*PICKLES, "pickle", "application/json"))
    message["content-encoding"] = draw.choice(("binary", "utf-8", "zlib_codec", "base64"))
    if draw.random() < 0.3:
        bomb, message["headers"]["compression"] = gzip.compress(bomb), "application/x-gzip"
    message["body"] = base64.b64encode(bomb).decode()
    return json.dumps(message).encode()


def generated(count: int, seed_: int) -> list[bytes]:
    """Messages by hypothesis: bytes, text, JSON of any shape, and things shaped like a message."""
    anything = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
        max_leaves=8,
    )
    body = st.one_of(anything, st.binary(max_size=60).map(lambda raw: base64.b64encode(raw).decode()))
    task = st.sampled_from(("tasks.backtest.run_chunk", "os.system", "celery.backend_cleanup")) | anything
    shaped = st.fixed_dictionaries(
        {"body": body, "headers": st.fixed_dictionaries({"task": task, "id": anything}) | anything},
        optional={"properties": anything, "content-type": anything, "content-encoding": anything},
    )
    made: list[bytes] = []

    @seed(seed_)
    @settings(
        max_examples=count, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=[*HealthCheck]
    )
    @given(st.binary(max_size=200) | st.one_of(anything, shaped).map(lambda value: json.dumps(value).encode()))
    def collect(raw: bytes) -> None:
        made.append(raw)

    collect()
    return made


def variants(blob: bytes, seed_: int, count: int, canary: Path) -> Iterator[bytes]:
    """Variants of bytes that are no message: an entry of the cache, signed code, an outcome. Never the same bytes."""
    draw = random.Random(seed_)  # noqa: S311 -- no secret depends on it
    for number in range(count):
        made = blob
        while made == blob:
            made = _variant(blob, draw, canary, planted=number % 3 == 0)
        yield made


def _variant(blob: bytes, draw: random.Random, canary: Path, *, planted: bool) -> bytes:
    if not planted:
        return draw.choice((_flipped, _cut, _spliced))(blob, draw, canary)
    bomb = draw.choice(bombs(canary))
    return draw.choice((bomb, blob[: draw.randrange(100)] + bomb, b"", blob + bomb, draw.randbytes(200)))

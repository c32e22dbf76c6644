"""Reading k of 13 taps: bytes and time against reading all, which a layout by example cannot do.

Bytes are what the system calls of an epoch asked for. Time is that of epochs after the first, from the disk (every file
out of the page cache before each) and from the page cache, medians of 5 (quick: 3) in alternation.
"""

from __future__ import annotations

import random
from statistics import median
from typing import TYPE_CHECKING

from . import data, disk
from .reading import Pass, drain, open_stream
from .row import Row, Scale

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KS = (1, 3, 6, data.TAPS)
GOAL = 1.10
_REPEATS = 5


def rows(scale: Scale, folder: Path) -> Iterator[Row]:
    """Two rows for each k: bytes, time."""
    store = data.build(folder / "store", scale.of(2 << 30, 160 << 20), seed=scale.seed)
    paths = data.shard_files(store)
    size = sum(path.stat().st_size for path in paths)
    streams = {k: open_stream(store, _spread(k), seed=scale.seed) for k in KS}
    passes: dict[str, dict[int, list[Pass]]] = {kind: {k: [] for k in KS} for kind in ("cold", "warm")}
    for stream in streams.values():
        drain(stream, 0)
    draw = random.Random(scale.seed)
    for epoch in range(1, 1 + scale.of(_REPEATS, 3)):
        # Below the page cache there may be another one, which holds what was read last.
        for k in draw.sample(KS, len(KS)):
            disk.forget(paths)
            passes["cold"][k].append(drain(streams[k], epoch))
        for k in KS:
            drain(streams[k], epoch)  # back into the page cache
            passes["warm"][k].append(drain(streams[k], epoch))
    for k in KS[:-1]:
        yield _row(k, "bytes", {n: [p.read for p in found] for n, found in passes["warm"].items()}, size)
        for kind in ("cold", "warm"):
            yield _row(k, f"time, {kind}", {n: [p.seconds for p in found] for n, found in passes[kind].items()})


def _row(k: int, what: str, found: dict[int, list[float]], size: int = 0) -> Row:
    """`found` of k taps against that of all. Raises RuntimeError where fewer bytes were read than the taps have."""
    share = k / data.TAPS
    mine, all_taps = median(found[k]), median(found[data.TAPS])
    if mine < 0.9 * share * size:
        raise RuntimeError(f"{k} taps: an epoch read {mine:,.0f} bytes only: it came from memory")
    ratio = mine / all_taps / share
    return Row(
        f"{k} of {data.TAPS} taps, {what}, over {k}/{data.TAPS} of all",
        f"<= {GOAL:.2f}",
        f"{ratio:.3f}",
        ratio <= GOAL,
        {"all": all_taps, "k": mine, "every": found[k]},
    )


def _spread(k: int) -> list[int]:
    """k taps at even distances."""
    return [i * data.TAPS // k for i in range(k)]

"""Reading k of 13 taps: bytes and time against reading all, which a layout by example cannot do.

Bytes are what the system calls of an epoch asked for. Time is that of warm epochs after the first, medians of 5 in
alternation.
"""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

from . import data
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
    streams = {k: open_stream(store, _spread(k), seed=scale.seed) for k in KS}
    passes: dict[int, list[Pass]] = {k: [] for k in KS}
    for stream in streams.values():
        drain(stream, 0)
    for epoch in range(1, 1 + _REPEATS):
        for k in KS:
            passes[k].append(drain(streams[k], epoch))
    size = {k: median(found.read for found in passes[k]) for k in KS}
    seconds = {k: median(found.seconds for found in passes[k]) for k in KS}
    for k in KS[:-1]:
        share = k / data.TAPS
        if size[k] < 0.9 * share * sum(path.stat().st_size for path in data.shard_files(store)):
            raise RuntimeError(f"{k} taps: an epoch read {size[k]:,.0f} bytes only: it came from memory")
        for what, found in (("bytes", size), ("time", seconds)):
            ratio = found[k] / found[data.TAPS] / share
            yield Row(
                f"{k} of {data.TAPS} taps, {what} over {k}/{data.TAPS} of all",
                f"<= {GOAL:.2f}",
                f"{ratio:.3f}",
                ratio <= GOAL,
                {
                    "all": found[data.TAPS],
                    "k": found[k],
                    "every": [p.read if what == "bytes" else p.seconds for p in passes[k]],
                },
            )


def _spread(k: int) -> list[int]:
    """k taps at even distances."""
    return [i * data.TAPS // k for i in range(k)]

"""A store shaped like SST-2, made by the public names of storage: 13 taps of width 768 in bfloat16, phrases of some 13 tokens.

Values are normal numbers drawn once and laid down from another start for each tap, so that no two chunks are
the same; `value_rows` says which ones a token has.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sherl_cache.storage import (
    ENCODINGS,
    Plan,
    Ragged,
    Store,
    StoreWriter,
    plan_split,
)

from .examples import table_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

TAPS = 13
WIDTH = 768
SPLIT = "train"
STREAM = "encoder"

# Phrases of SST-2's train.tsv (67,349) by their tokens: index n holds how many have n. Counted with the WordPiece
# vocabulary of all-MiniLM-L6-v2 (BERT's, uncased), the two special tokens included. Mean 13.3, median 10, longest 66.
SST2_LENGTHS = (
    *(0, 0, 0, 1978, 5322, 6065, 5345, 4749, 4155, 3713, 3267, 2947, 2650, 2413, 2138, 1950, 1777, 1661, 1515, 1373),
    *(1285, 1132, 1106, 1046, 909, 820, 806, 733, 692, 628, 538, 491, 442, 448, 400, 337, 304, 286, 242, 195, 203, 192),
    *(155, 148, 130, 89, 82, 85, 73, 55, 42, 50, 40, 36, 19, 21, 22, 15, 8, 6, 3, 2, 5, 5, 1, 2, 2),
)

_BASE_ROWS = 8191  # a prime: no tap's start falls on another's
_TAP_STEP = 613


def draw_lengths(data_bytes: int, *, row_bytes: int, seed: int = 0) -> NDArray[np.int32]:
    """Lengths of as many examples as fill `data_bytes`, drawn from SST-2's: [examples]. row_bytes: of a token in all taps."""
    counts = np.asarray(SST2_LENGTHS, dtype=np.float64)
    mean = float((counts * np.arange(len(counts))).sum() / counts.sum())
    examples = max(round(data_bytes / row_bytes / mean), 1)
    drawn = np.random.default_rng(seed).choice(len(counts), size=examples, p=counts / counts.sum())
    return drawn.astype(np.int32)


def build(
    root: Path,
    data_bytes: int,
    *,
    seed: int = 0,
    taps: int = TAPS,
    width: int = WIDTH,
    encoding: str = "bfloat16",
    unit_memory: int = 256 << 20,
    lengths: NDArray[np.int32] | None = None,
) -> Store:
    """A finished store of about `data_bytes` bytes of values. lengths: tokens of each example, instead of drawn ones."""
    itemsize = ENCODINGS[encoding].itemsize
    if lengths is None:
        lengths = draw_lengths(data_bytes, row_bytes=taps * width * itemsize, seed=seed)
    packed = plan_split(
        {STREAM: Ragged(lengths, np.ones(len(lengths), np.int32))},
        widths={STREAM: width},
        itemsize=itemsize,
        taps={STREAM: range(taps)},
        seed=seed,
        split=SPLIT,
        unit_memory=unit_memory,
    )
    plan = Plan(
        encoding=encoding,
        identity={"data.made_by": "benchmarks.storage", "data.seed": seed},
        producer={},
        environment={"numpy": np.__version__},
        splits={SPLIT: packed.split_plan({STREAM: f"normal numbers, seed {seed}"})},
    )

    writer = StoreWriter.create(root, plan, {}, {SPLIT: table_of(packed)})
    base = np.random.default_rng(seed).standard_normal((_BASE_ROWS, width), dtype=np.float32)
    stream = packed.streams[STREAM]
    counts = stream.lengths.values.astype(np.int64)
    # Physical row of every token: the first one of its example, and how far it is into it.
    rows = np.repeat(stream.offsets - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())
    for unit in writer.missing():
        buffer = writer.buffer(unit)
        first, stop = np.searchsorted(
            rows, np.array([unit.first_group, unit.first_group + unit.groups]) * stream.chunk_rows
        )
        tokens = np.arange(first, stop)
        for tap in stream.taps:
            buffer.put(STREAM, tap, rows[first:stop], base[value_rows(tap, tokens)])
        writer.write(unit, buffer)
    writer.finalize()
    return Store.open(root)


def value_rows(tap: int, tokens: NDArray[np.int64]) -> NDArray[np.int64]:
    """Which row of the normal numbers each token has at a tap; tokens counted in written order."""
    return (tokens + tap * _TAP_STEP) % _BASE_ROWS


def shard_files(store: Store) -> list[Path]:
    """Every file of values of a store, tap after tap."""
    paths = [record.path for receipt in store.receipts.values() for record in receipt.arrays.values()]
    return [Path(str(store.root)) / path for path in sorted(paths)]

"""One order: the hash of the global batches over ranks, threads, epochs and seeds."""

from __future__ import annotations

import hashlib
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from sherl_cache.storage import Stream

from . import data
from .row import Row, Scale

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sherl_cache.storage import Store

RANKS = (1, 2, 3, 4, 8)
THREADS = (0, 1, 2, 4)
SIZES: dict[str, dict[str, int]] = {
    "batches of 32": {"batch_examples": 32},
    "batches of 512 tokens": {"batch_tokens": 512},
}


def rows(scale: Scale, folder: Path) -> Iterator[Row]:
    """Every rank is a stream of its own; its slices are put together and hashed, ids and values."""
    store = data.build(folder / "store", scale.of(32, 3) << 20, taps=2, width=64, unit_memory=4 << 20)
    epochs, seeds = scale.of(3, 2), scale.of(3, 1)
    for name, size in SIZES.items():
        hashes: dict[tuple[int, int], set[str]] = {}
        for epoch, offset in product(range(epochs), range(seeds)):
            seed = scale.seed + offset
            hashes[epoch, seed] = {
                batch_hash(store, size, seed, epoch, ranks, threads) for ranks, threads in product(RANKS, THREADS)
            }
        equal = sum(len(found) == 1 for found in hashes.values())
        streams = len(hashes) * len(RANKS) * len(THREADS)
        distinct = len(set().union(*hashes.values()))
        yield Row(
            f"global order of {name}: ranks {RANKS} x threads {THREADS} x {epochs} epochs x {seeds} seeds",
            "all equal",
            f"{equal} of {len(hashes)} equal over {streams} global streams; {distinct} orders",
            equal == len(hashes) == distinct,
            {"hashes": {f"epoch {epoch}, seed {seed}": sorted(found) for (epoch, seed), found in hashes.items()}},
        )


def batch_hash(store: Store, size: dict[str, int], seed: int, epoch: int, ranks: int, threads: int) -> str:
    """sha256 over every global batch of an epoch, put together from the slices of all ranks."""
    iterators = [
        stream_of(store, size, seed, rank=rank, ranks=ranks, threads=threads).epoch(epoch) for rank in range(ranks)
    ]
    digest = hashlib.sha256()
    for parts in zip(*iterators, strict=True):
        examples = np.concatenate([part.examples for part in parts])
        digest.update(len(examples).to_bytes(8, "little"))
        digest.update(examples.tobytes())
        for part in parts:
            for row in np.swapaxes(part.streams[data.STREAM].taps, 0, 1):  # row by row: slices follow each other
                digest.update(row.tobytes())
    return digest.hexdigest()


def stream_of(store: Store, size: dict[str, int], seed: int, **options: Any) -> Stream:
    """A stream that reads block by block, whatever would fit."""
    return Stream(
        store,
        data.SPLIT,
        {data.STREAM: (0, 1)},
        window=4,
        budget_bytes=64 << 20,
        seed=seed,
        in_memory=False,
        **size,  # type: ignore[arg-type]
        **options,
    )

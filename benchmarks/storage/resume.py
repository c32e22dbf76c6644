"""Stops: a stream stopped at a random batch goes on with other ranks and threads."""

from __future__ import annotations

import hashlib
import json
import random
from typing import TYPE_CHECKING

import numpy as np

from . import data
from .order import RANKS, SIZES, THREADS, stream_of
from .row import Row, Scale

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sherl_cache.storage import Batch, Store


def rows(scale: Scale, folder: Path) -> Iterator[Row]:
    """The unbroken epoch says what every batch must be: its examples, and a hash of its rows."""
    store = data.build(folder / "store", scale.of(32, 4) << 20, taps=2, width=64, unit_memory=4 << 20)
    draw = random.Random(scale.seed)
    stops = scale.of(200, 12)
    lost = repeated = unequal = largest = 0
    slowest = 0.0
    for number in range(stops):
        size = list(SIZES.values())[number % 2]
        seed, epoch = draw.randrange(1000), draw.randrange(3)
        unbroken = [content([batch]) for batch in stream_of(store, size, seed).epoch(epoch)]
        stop = draw.randrange(len(unbroken))
        before, state = served(store, size, seed, epoch, 0, stop, draw)
        largest = max(largest, len(state))
        begin = json.loads(state)["batch"] if stop else 0
        after, _ = served(store, size, seed, epoch, begin, len(unbroken) - begin, draw)
        found = [example for ids, _ in before + after for example in ids]
        lost += len({example for ids, _ in unbroken for example in ids} - set(found))
        repeated += len(found) - len(set(found))
        unequal += before + after != unbroken
        one = stream_of(store, size, seed, threads=0)
        next(one.epoch(epoch, stop))
        plan = store.split(data.SPLIT)
        block = 2 * 4 * (store.chunk_bytes(plan.streams[data.STREAM]) + 4)
        slowest = max(slowest, one.read_bytes / block)
    yield Row(
        f"{stops} stops at random batches, resumed with other ranks and threads",
        "0 lost, 0 repeated, next batch bit-equal",
        f"{lost} lost, {repeated} repeated, {unequal} resumed streams unequal; state at most {largest} bytes, first batch "
        f"after a stop read at most {slowest:.2f} blocks",
        lost == repeated == unequal == 0 and largest < 1024 and slowest <= 2,
        {"stops": stops, "state_bytes": largest, "blocks": slowest},
    )


def served(
    store: Store, size: dict[str, int], seed: int, epoch: int, start: int, count: int, draw: random.Random
) -> tuple[list[tuple[list[int], str]], str]:
    """`count` global batches from `start` on, by a random number of ranks and threads, and the state behind them."""
    ranks, threads = draw.choice(RANKS), draw.choice(THREADS)
    streams = [stream_of(store, size, seed, rank=rank, ranks=ranks, threads=threads) for rank in range(ranks)]
    iterators = [stream.epoch(epoch, start) for stream in streams]
    found = [content([next(iterator) for iterator in iterators]) for _ in range(count)]
    return found, json.dumps(streams[draw.randrange(ranks)].state_dict())


def content(parts: list[Batch]) -> tuple[list[int], str]:
    """Examples of a global batch, and the sha256 of its rows, from its slices."""
    taps = np.concatenate([part.streams[data.STREAM].taps for part in parts], axis=1)
    return [int(i) for part in parts for i in part.examples], hashlib.sha256(taps.tobytes()).hexdigest()

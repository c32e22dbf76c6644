"""The cost of checking: the crc32c of every chunk at its first touch, as a share of the time of five epochs.

The time of the checksums alone is set against five epochs of two consumers, warm:

* bare reading: adds up one column of the first tap of a batch; nothing reads a store and does less;
* training, at the very least: the mean of the taps goes through the feed-forward part of one block (width to 4 width and
  back, float32, forward only, one thread of BLAS where the environment says so). Every recipe that trains a late block does
  several times as much. This is the consumer of the goal.

Bare reading is also timed with a stream that is told that every chunk was checked already; that difference holds the noise of
the machine and is given in the details.
"""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from sherl_cache.storage import Store, Stream
from sherl_cache.storage.shards import holds

from .row import Row, Scale
from .seam import Unsynced, installed
from .small import STREAM, Small

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    Consumer = Callable[[NDArray[Any]], None]

EPOCHS = 5
LIMIT = 0.03
_WIDTH = 256
_UNCACHED = 256 << 20


def seconds(store: Store, consume: Consumer, *, checked_before: bool = False) -> float:
    """Time of five epochs of a new stream."""
    taps = {STREAM: store.split("train").streams[STREAM].taps}
    stream = Stream(store, "train", taps, batch_examples=32, window=4, budget_bytes=1 << 30)
    if checked_before:
        mark_checked(stream)
    begun = time.perf_counter()
    for epoch in range(EPOCHS):
        for batch in stream.epoch(epoch):
            consume(np.asarray(batch.streams[STREAM].taps))
    return time.perf_counter() - begun


def bare(taps: NDArray[Any]) -> None:
    """Touch a batch [K, N, width]."""
    taps[0, :, 0].sum()


def feed_forward(width: int) -> Consumer:
    """The feed-forward part of one block, on the mean of the taps."""
    rng = np.random.default_rng(0)
    up, down = (rng.standard_normal(shape, dtype=np.float32) for shape in ((width, 4 * width), (4 * width, width)))

    def consume(taps: NDArray[Any]) -> None:
        _ = np.maximum(taps.mean(axis=0) @ up, 0) @ down

    return consume


def mark_checked(stream: Any) -> None:
    """Tell a stream that it has seen every chunk: reaches into it, since users have no reason to."""
    for seen in stream._reading.verified.values():
        seen[:] = True


def checks_alone(store: Store) -> float:
    """Time of the checksums of every chunk, of bytes that lie in memory and, most of them, in no cache."""
    plan = store.split("train").streams[STREAM]
    chunk = store.chunk_bytes(plan) + 4
    memory = np.ones((max(_UNCACHED // chunk, 1), chunk), dtype=np.uint8)
    times = []
    for _ in range(3):
        begun = time.perf_counter()
        for number in range(store.split("train").groups * len(plan.taps)):
            holds(memory[number % len(memory)])
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def rows(scale: Scale, folder: Path) -> Iterator[Row]:
    """One row."""
    small = Small(
        parts={"train": (scale.of(10_000, 1_000),)},
        taps={STREAM: (0, 1, 2, 3)},
        widths={STREAM: _WIDTH},
        chunk_bytes=(1 << 20, 1 << 20),
        unit_memory=16 << 20,
    )
    with installed(Unsynced()):
        store = small.build(folder / "store")
    seconds(store, bare)  # warms the page cache
    pairs = [(seconds(store, bare), seconds(store, bare, checked_before=True)) for _ in range(5)]
    reading, unchecked = (statistics.median(times) for times in zip(*pairs, strict=True))
    training = statistics.median(seconds(store, feed_forward(_WIDTH)) for _ in range(3))
    alone = checks_alone(store)
    share = alone / training
    yield Row(
        "cost of checking",
        f"at most {LIMIT:.0%} of the time of {EPOCHS} epochs",
        f"{share:.2%} beside the feed-forward of one block, {alone / reading:.1%} of bare reading "
        f"({alone:.3f} s of checksums, {store.bytes >> 20} MiB, warm)",
        share <= LIMIT,
        {
            "share": share,
            "share_of_bare_reading": alone / reading,
            "alone_s": alone,
            "training_s": training,
            "pairs_s": pairs,
            "difference": reading / unchecked - 1,
            "bytes": store.bytes,
        },
    )

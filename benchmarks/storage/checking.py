"""The cost of checking: the crc32c of every chunk at its first touch, as a share of the time of five epochs.

Five epochs are read by a stream that checks each chunk once, and by one that is told that every chunk was checked already; a
consumer takes every batch and adds up one column of its first tap, which is the least that a training step could do, so that the
share of a real run is smaller. Pairs are run in turn, warm, and medians compared.
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
    from collections.abc import Iterator
    from pathlib import Path

EPOCHS = 5
LIMIT = 0.03
_UNCACHED = 256 << 20


def seconds(store: Store, *, checked_before: bool) -> float:
    """Time of five epochs of a new stream."""
    taps = {STREAM: store.split("train").streams[STREAM].taps}
    stream = Stream(store, "train", taps, batch_examples=32, window=4, budget_bytes=1 << 30)
    if checked_before:
        mark_checked(stream)
    begun = time.perf_counter()
    total = 0.0
    for epoch in range(EPOCHS):
        for batch in stream.epoch(epoch):
            total += float(batch.streams[STREAM].taps[0, :, 0].sum())
    return time.perf_counter() - begun


def mark_checked(stream: Any) -> None:
    """Tell a stream that it has seen every chunk: reaches into it, since users have no reason to."""
    for seen in stream._verified.values():
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
    # 3.5 tokens an example on average: 26 MB in a quick run, some 700 MB in a full one.
    examples = scale.of(50_000, 2_000)
    small = Small({"train": examples}, (0, 1, 2, 3), 256, (1 << 20, 1 << 20), 16 << 20)
    with installed(Unsynced()):
        store = small.build(folder / "store")
    seconds(store, checked_before=True)  # warms the page cache
    pairs = [(seconds(store, checked_before=False), seconds(store, checked_before=True)) for _ in range(scale.of(5, 5))]
    checked, unchecked = (statistics.median(times) for times in zip(*pairs, strict=True))
    alone = checks_alone(store)
    share = alone / checked
    yield Row(
        "cost of checking",
        f"at most {LIMIT:.0%} of the time of {EPOCHS} epochs",
        f"{share:.1%}: {alone:.3f} s of checksums in {checked:.3f} s ({unchecked:.3f} s without, {store.bytes >> 20} MiB, warm)",
        share <= LIMIT,
        {
            "share": share,
            "difference": checked / unchecked - 1,
            "alone_s": alone,
            "pairs_s": pairs,
            "bytes": store.bytes,
        },
    )

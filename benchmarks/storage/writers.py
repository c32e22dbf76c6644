"""Many writers of one store: every unit submitted twice, and shared by leases.

Writers are processes on this machine's file system; network file systems are not covered.
"""

from __future__ import annotations

import collections
import random
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from sherl_cache.storage import Store

from .killed import processes
from .producer import Producer, noted
from .row import Row, Scale

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

WRITERS = (1, 2, 4, 8)
_FILL = np.uint16(0x7FC0)


def rows(scale: Scale, folder: Path) -> Iterator[Row]:
    """Two rows for each number of writers."""
    producer = Producer(examples=scale.of(20_000, 1_000), units=scale.of(64, 8), seed=scale.seed)
    digest = producer.build(folder / "lone")
    for count in WRITERS:
        yield _twice(producer, digest, folder / f"twice-{count}", count, scale.seed)
    for count in WRITERS[1:]:
        yield _shared(producer, digest, folder / f"shared-{count}", count)


def _twice(producer: Producer, digest: str, root: Path, count: int, seed: int) -> Row:
    units = producer.plan.units() * 2
    random.Random(seed).shuffle(units)
    log = root.with_suffix(".log")
    ended, seconds = _run([(producer.submit, (root, units[number::count], log)) for number in range(count)])
    found = producer.create(root).finalize().digest
    wrong = wrong_rows(producer, Store.open(root))
    submitted = len(noted(log))
    holds = ended == 0 and found == digest and wrong == 0 and submitted == len(units)
    return Row(
        f"{count} writers, every unit submitted twice",
        "0 corrupt or duplicate rows",
        f"{wrong} wrong rows, {submitted:,} submissions of {len(units) // 2:,} units, digest {_told(found == digest)}",
        holds,
        {"writers": count, "submitted": submitted, "wrong_rows": wrong, "failed_writers": ended, "seconds": seconds},
    )


def _shared(producer: Producer, digest: str, root: Path, count: int) -> Row:
    log = root.with_suffix(".log")
    ended, seconds = _run([(producer.work, (root, log, 60.0))] * count)
    store = Store.open(root)
    wrong = wrong_rows(producer, store)
    begun = collections.Counter(noted(log))
    again = sum(begun.values()) - len(begun)
    return Row(
        f"{count} writers that run the same job from its first call on",
        "the lone store; no unit computed twice",
        f"{wrong} wrong rows, {again} of {len(begun):,} units computed again, digest {_told(store.digest == digest)}",
        ended == 0 and store.digest == digest and wrong == 0 and again == 0,
        {"writers": count, "again": again, "wrong_rows": wrong, "failed_writers": ended, "seconds": seconds},
    )


def wrong_rows(producer: Producer, store: Store) -> int:
    """Rows of all taps that are not what the producer says of their place, fill included; and findings of a deep
    verify.
    """
    stream = producer.packed.streams["encoder"]
    held = np.zeros(len(producer.packed.group_examples) * stream.chunk_rows, np.bool_)
    lengths = stream.lengths.values.astype(np.int64)
    for start, length in zip(stream.offsets.tolist(), lengths.tolist(), strict=True):
        held[start : start + length] = True
    wrong = len(store.verify(deep=True))
    for tap in range(producer.taps):
        for group in range(len(producer.packed.group_examples)):
            first = group * stream.chunk_rows
            found = store.chunk("train", "encoder", tap, group)
            places = np.arange(first, first + stream.chunk_rows)
            expected = np.where(held[places, None], _bfloat16(producer.values(tap, places)), _FILL)
            wrong += int((found != expected).any(axis=1).sum())
    return wrong


def _bfloat16(values: Any) -> Any:
    """Bits of the nearest bfloat16, ties to even: written here anew, so that it is no copy of the store's own."""
    bits = values.view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _told(equal: bool) -> str:
    return "equal" if equal else "DIFFERS"


def _run(jobs: list[tuple[Any, tuple[Any, ...]]]) -> tuple[int, float]:
    """Writers that failed, and the seconds that all took together."""
    context = processes()
    begun = time.perf_counter()
    started = [context.Process(target=target, args=arguments) for target, arguments in jobs]
    for process in started:
        process.start()
    for process in started:
        process.join()
    return sum(process.exitcode != 0 for process in started), time.perf_counter() - begun

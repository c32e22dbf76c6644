"""Shuffled batches of 32 with all taps, against the disk itself: raw sequential `preadv` of the same files.

The consumer counts rows and touches nothing else. A cold pass begins with every file out of the page cache and a new
stream, which checks every chunk's crc32c, and whose buffers an earlier one has used (as raw's are), since the system
clears new memory, once in a process; a warm pass is a later epoch of a stream, from the page cache.
Raw and ours alternate; the ratio is that of the medians. Raw reads into 8 MiB that stay in the processor's cache, a
stream fills blocks that do not; so warm passes are measured, too, against raw reading into as much memory as the stream
has.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np

from sherl_cache.storage import ReadBuffers, Store, Stream
from sherl_cache.storage.readers import local

from . import data, disk
from .row import Row, Scale

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

BATCH = 32
GOALS = {"cold": 0.95, "warm": 0.65}
_REPEATS = 5
_BUDGET_SHARE = 0.9
_BLOCKS = 7  # an epoch has at least so many
_WINDOW = 16


@dataclass
class Pass:
    """One epoch: seconds, of them waited for reads, batches that came out, bytes read by system calls and from the device."""

    seconds: float
    waited: float
    batches: int
    read: int
    device: int


@dataclass
class _Timings:
    raw: list[float] = field(default_factory=list)
    ours: list[float] = field(default_factory=list)
    stall: list[float] = field(default_factory=list)
    spread: list[float] = field(default_factory=list)
    """Raw, into as much memory as ours."""
    device: list[float] = field(default_factory=list)
    """Share of the bytes that a device was asked for, raw and ours in turn."""

    def add(self, found: Pass, size: int) -> None:
        """Note a pass of ours over `size` bytes. Raises RuntimeError where they did not come from files."""
        if found.read < size * 0.9:
            raise RuntimeError(f"an epoch read {found.read:,} of {size:,} bytes: it came from memory")
        self.ours.append(found.seconds)
        self.stall.append(found.waited / found.seconds)
        self.device.append(found.device / size)

    @property
    def ratio(self) -> float:
        return median(self.raw) / median(self.ours)


def small_budget(store: Store, taps: Sequence[int]) -> int:
    """Bytes that hold some blocks of these taps, and not all of them: an epoch cannot come from memory."""
    return int(_BUDGET_SHARE * sum(path.stat().st_size for path in data.shard_files(store)) * len(taps) / data.TAPS)


def open_stream(
    store: Store,
    taps: Sequence[int],
    threads: int = 1,
    seed: int = 0,
    *,
    budget_bytes: int = 0,
    buffers: ReadBuffers | None = None,
) -> Stream:
    """A stream of some taps; without a budget or buffers given, with a small budget."""
    return Stream(
        store,
        data.SPLIT,
        {data.STREAM: tuple(taps)},
        batch_examples=BATCH,
        window=max(1, min(_WINDOW, store.split(data.SPLIT).groups // _BLOCKS)),
        budget_bytes=None if buffers else budget_bytes or small_budget(store, taps),
        buffers=buffers,
        seed=seed,
        threads=threads,
        in_memory=False,
    )


def drain(stream: Stream, epoch: int) -> Pass:
    """Take every batch of an epoch. Raises RuntimeError where rows are missing."""
    before = disk.io_counters()
    waited = waited_seconds(stream)
    begun = time.perf_counter()
    rows = batches = 0
    for batch in stream.epoch(epoch):
        rows += len(batch.streams[data.STREAM].taps[0])
        batches += 1
    seconds = time.perf_counter() - begun
    read, device = np.subtract(disk.io_counters(), before).tolist()
    planned = stream.store.split(data.SPLIT).streams[data.STREAM].tokens
    if rows != planned:
        raise RuntimeError(f"an epoch gave {rows} rows, the store holds {planned}")
    return Pass(seconds, waited_seconds(stream) - waited, batches, read, device)


def waited_seconds(stream: Stream) -> float:
    """Seconds that the consumer of a stream has waited for reads so far."""
    found = stream if hasattr(stream, "waited_seconds") else stream.report()
    return float(found.waited_seconds)


def rows(scale: Scale, folder: Path) -> Iterator[Row]:
    """One row for each of cold and warm, 1 and 2 threads; then what a warm pass is made of."""
    store = data.build(folder / "store", scale.of(2 << 30, 160 << 20), seed=scale.seed)
    paths = data.shard_files(store)
    size = _size(paths)
    repeats = scale.of(_REPEATS, 3)
    for threads in (1, 2):
        yield _row("cold", threads, _cold(store, paths, threads, repeats), size)
        yield _row("warm", threads, _warm(store, paths, threads, repeats), size)
    yield _profile(store, paths)


def _size(paths: list[Path]) -> int:
    return sum(path.stat().st_size for path in paths)


def _cold(store: Store, paths: list[Path], threads: int, repeats: int) -> _Timings:
    timings, size = _Timings(), _size(paths)
    buffers = ReadBuffers(small_budget(store, range(data.TAPS)))
    drain(open_stream(store, range(data.TAPS), threads, buffers=buffers), 0)
    for repeat in range(repeats):
        disk.forget(paths)
        before = disk.io_counters()[1]
        timings.raw.append(disk.read_through(paths, threads))
        timings.device.append((disk.io_counters()[1] - before) / size)
        stream = open_stream(store, range(data.TAPS), threads, seed=repeat, buffers=buffers)
        disk.forget(paths)
        timings.add(drain(stream, 0), size)
    return timings


def _warm(store: Store, paths: list[Path], threads: int, repeats: int) -> _Timings:
    timings, size = _Timings(), _size(paths)
    stream = open_stream(store, range(data.TAPS), threads)
    drain(stream, 0)
    for epoch in range(1, 1 + repeats):
        timings.raw.append(disk.read_through(paths, threads))
        timings.add(drain(stream, epoch), size)
        timings.spread.append(disk.read_through(paths, threads, stream.report().buffer_bytes // threads))
    return timings


def _profile(store: Store, paths: list[Path]) -> Row:
    """Where the time of a warm pass goes: the system's copies, or Python between them; one thread, read when needed."""
    stream = open_stream(store, range(data.TAPS), 0)
    drain(stream, 0)
    inside: list[float] = []

    def timed(plain: Callable[..., int]) -> Callable[..., int]:
        def call(*arguments: Any) -> int:
            begun = time.perf_counter()
            count = plain(*arguments)
            inside[-1] += time.perf_counter() - begun
            return count

        return call

    table = local._preadv_table
    by_table = patch.object(local, "_preadv_table", table and timed(table))
    by_buffers = patch.object(local, "_preadv", timed(local._preadv))
    passes, raw = [], []
    for epoch in range(1, 4):
        inside.append(0.0)
        with by_table, by_buffers:
            passes.append(drain(stream, epoch).seconds)
        raw.append(disk.read_through(paths, 1))
    share = median(inside) / median(passes)
    return Row(
        "profile of a warm pass: time inside preadv",
        "-",
        f"{share:.0%} of the pass; alone it would be {median(raw) / median(inside):.2f} of raw preadv",
        None,
        {"seconds_inside": inside, "seconds_ours": passes, "seconds_raw": raw},
    )


def _row(kind: str, threads: int, timings: _Timings, size: int) -> Row:
    goal = GOALS[kind]
    raw, ours = (size / median(seconds) / 1e9 for seconds in (timings.raw, timings.ours))
    note = ""
    holds: bool | None = timings.ratio >= goal
    if kind == "cold" and min(timings.device) < disk.COLD_SHARE:
        # A file system without a device below it, or one that ignores the advice: nothing cold was measured.
        note, holds = f"; NOT COLD: {min(timings.device):.0%} came from the device", None
    if timings.spread:
        note = f"; {median(timings.spread) / median(timings.ours):.2f} of raw into as much memory"
    return Row(
        f"shuffled batches of {BATCH}, {kind}, {threads} thread{'s' if threads > 1 else ''}, against raw preadv",
        f">= {goal:.2f}",
        f"{timings.ratio:.2f} ({ours:.2f} of {raw:.2f} GB/s; waited {median(timings.stall):.0%}{note})",
        holds,
        {"bytes": size, "seconds_raw": timings.raw, "seconds_ours": timings.ours, "from_device": timings.device}
        | {"ratio": timings.ratio, "stall": timings.stall, "seconds_raw_spread": timings.spread},
    )

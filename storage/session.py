"""Part of an epoch being read: the blocks, the threads that read them, and the batches that are cut from them."""

import contextlib
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .blocks import Load, Loaded, Part, Reading
from .destinations import Destination
from .order import EpochOrder
from .placement import Placement
from .ragged import spans
from .rows import Rows, copied, some_rows


@dataclass(frozen=True)
class PackedRows:
    """Rows of one stream of a batch: example after example, segment after segment, without padding.

    taps: [K, N, width] as stored, taps in the order asked for; a tuple of K arrays [N, width of the tap] where they are not
    equally wide. lengths: [S] rows of each segment, they sum to N; counts: [B] segments of each example, they sum to S.
    """

    taps: Rows
    lengths: NDArray[np.int32]
    counts: NDArray[np.int32]


@dataclass(frozen=True)
class Batch:
    """Examples [B], as positions in written order, and their rows by stream.

    The arrays are views of the stream's buffers, valid until the next batch is asked for; `copy` keeps one.
    """

    examples: NDArray[np.int64]
    streams: dict[str, PackedRows]

    def copy(self) -> "Batch":
        """The same batch in memory of its own."""
        return Batch(
            self.examples.copy(),
            {
                stream: PackedRows(copied(rows.taps), rows.lengths.copy(), rows.counts.copy())
                for stream, rows in self.streams.items()
            },
        )


class Session:
    """Batches of an epoch from one batch on; `close` stops its threads."""

    def __init__(
        self, reading: Reading, order: EpochOrder, start_batch: int, destination: Destination, threads: int
    ) -> None:
        self._reading, self._order, self._start_batch = reading, order, start_batch
        self._destination, self._threads = destination, threads
        self._first = order.block_of(start_batch)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="sherl-cache-read") if threads else None
        self._loads: list[Load] = []
        self._scope = contextlib.ExitStack()
        self._scope.enter_context(reading.store.keeping())
        reading.ask_again()
        self.closed = False
        self.batches = self._serve()
        """Number and content of every batch; see Batch for how long it is valid."""

    def close(self) -> None:
        """Stop reading and wait for the threads; batches are no longer valid."""
        if self.closed:
            return
        self.closed = True
        for load in self._loads:
            load.stop()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        self._loads.clear()
        self.batches.close()  # it holds views of the buffers
        self._scope.close()

    def _serve(self) -> Generator[tuple[int, Batch], None, None]:
        ahead = self._destination.slots > 1 and self._pool is not None
        number = self._first
        pending = self._load(number)
        if pending is not None:
            self._begin(pending)
        join = _Join(self._reading, self._destination.joined)
        while pending is not None:
            number += 1
            following = self._load(number)
            if following is not None and ahead:
                following.plan()  # while the one before it is read
            loaded = pending.wait()
            self._destination.arrived(pending)
            self._loads.remove(pending)
            pending = following
            if pending is not None and ahead:
                self._begin(pending)
            for part in loaded.parts:
                whole = part.begins and part.ends
                batch = self._cut(loaded, part) if whole else None
                if batch is None:
                    join.add(loaded, part, self._destination)
                    batch = join.take() if part.ends else None
                if batch is not None:
                    yield part.batch, batch
                    del batch
            del loaded
            if pending is not None and not ahead:
                self._begin(pending)

    def _load(self, number: int) -> Load | None:
        """Block `number`, of which nothing is read yet; None behind the last one."""
        if number >= len(self._order):
            return None
        place = self._destination.place
        return Load(
            self._reading,
            self._order,
            number,
            self._start_batch,
            lambda block, examples: place(number, block, examples),
            self._destination.spaces,
            follows=number > self._first,
        )

    def _begin(self, load: Load) -> None:
        self._loads.append(load)
        if self._pool is not None:
            load.start(self._pool, self._threads)

    def _cut(self, loaded: Loaded, part: Part) -> Batch | None:
        """A batch as views; None where its rows do not lie together."""
        streams = {}
        for stream, placed in loaded.placements.items():
            rows = self._destination.rows(loaded, stream, part.first, part.stop)
            if rows is None:
                return None
            streams[stream] = PackedRows(rows, *_lengths(placed, part))
        return Batch(loaded.examples[part.first : part.stop].copy(), streams)


class _Join:
    """A batch that is put together from parts."""

    def __init__(self, reading: Reading, buffers: dict[str, Rows]) -> None:
        self._reading, self._buffers = reading, buffers
        self._clear()

    def _clear(self) -> None:
        self._filled = dict.fromkeys(self._buffers, 0)
        self._examples: list[NDArray[np.int64]] = []
        self._lengths: dict[str, list[tuple[NDArray[np.int32], NDArray[np.int32]]]] = {s: [] for s in self._buffers}

    def add(self, loaded: Loaded, part: Part, destination: Destination) -> None:
        """Copy a part behind what is there."""
        self._examples.append(loaded.examples[part.first : part.stop])
        for stream, buffer in self._buffers.items():
            placed = loaded.placements[stream]
            count = int(placed.row_starts[part.stop] - placed.row_starts[part.first])
            begin = self._filled[stream]
            targets = some_rows(buffer, begin, begin + count)
            rows = destination.rows(loaded, stream, part.first, part.stop)
            if rows is not None:
                for target, source in zip(targets, rows, strict=True):
                    target[...] = source
            else:
                sizes = np.diff(placed.row_starts[part.first : part.stop + 1])
                places = spans(placed.places[part.first : part.stop], sizes)
                for target, source in zip(targets, loaded.rows[stream], strict=True):
                    # mode: with "raise", take would go through a copy
                    np.take(source, places, axis=0, out=target, mode="clip")
            self._filled[stream] = begin + count
            self._lengths[stream].append(_lengths(placed, part))

    def take(self) -> Batch:
        """The batch; the next one begins."""
        streams = {}
        for stream, buffer in self._buffers.items():
            lengths, counts = zip(*self._lengths[stream], strict=True)
            rows = some_rows(buffer, 0, self._filled[stream])
            streams[stream] = PackedRows(rows, np.concatenate(lengths), np.concatenate(counts))
        batch = Batch(np.concatenate(self._examples), streams)
        self._clear()
        return batch


def _lengths(placed: Placement, part: Part) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    segments = slice(placed.segment_starts[part.first], placed.segment_starts[part.stop])
    return placed.lengths[segments], placed.counts[part.first : part.stop]

"""Where the segments of some examples lie in their chunks, and where they go in a block."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from .errors import StoreCorrupt
from .ragged import Ragged, cumulative, spans


@dataclass(frozen=True)
class Moves:
    """Copies out of one chunk: rows source[i] to source[i] + count[i] of it go to target[i] of the block."""

    source: NDArray[np.int64]
    target: NDArray[np.int64]
    count: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.source)

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        return iter(zip(self.source.tolist(), self.target.tolist(), self.count.tolist(), strict=True))


@dataclass(frozen=True)
class Placement:
    """One stream of a block in training order.

    moves: one entry a row group of the block; counts, lengths: as in PackedRows; segment_starts, row_starts:
    [examples + 1], running sums over examples.
    """

    moves: list[Moves]
    counts: NDArray[np.int32]
    lengths: NDArray[np.int32]
    segment_starts: NDArray[np.int64]
    row_starts: NDArray[np.int64]

    @property
    def rows(self) -> int:
        """Rows of the block."""
        return int(self.row_starts[-1])


class SegmentChoice:
    """The segments of a stream that are read: all of them, or the gold one of each example (none where there
    is none).
    """

    def __init__(self, lengths: Ragged, first_examples: NDArray[np.int64], gold: NDArray[np.int32] | None) -> None:
        self._lengths = lengths
        self._first_examples = first_examples
        self._first_segments = lengths.starts()[first_examples]
        self._gold = gold
        if gold is not None and bool((gold >= lengths.counts).any()):
            example = int(np.flatnonzero(gold >= lengths.counts)[0])
            raise StoreCorrupt(
                f"example {example} of the written order: gold is segment {gold[example]}, "
                f"it has {lengths.counts[example]}"
            )

    def rows_per_example(self) -> NDArray[np.int64]:
        """Rows that are read of each example of the split: [examples]."""
        if self._gold is None:
            return self._lengths.totals()
        has = self._gold >= 0
        rows = np.zeros(len(has), dtype=np.int64)
        rows[has] = self._lengths.values[self._lengths.starts()[:-1][has] + self._gold[has]]
        return rows

    def place(self, groups: NDArray[np.int64], examples: NDArray[np.int64]) -> Placement:
        """Places for a block that holds `examples`, in training order, of those row groups."""
        written = spans(self._first_examples[groups], np.diff(self._first_examples)[groups])
        held_segments = spans(self._first_segments[groups], np.diff(self._first_segments)[groups])
        counts = self._lengths.counts[written].astype(np.int64)
        lengths = self._lengths.values[held_segments].astype(np.int64)
        first_of_group = cumulative(np.diff(self._first_examples)[groups])
        within = cumulative(lengths)
        starts = cumulative(counts)
        chunk_starts = within[starts[first_of_group]]  # rows of the block before each group
        if self._gold is not None:
            gold = self._gold[written].astype(np.int64)
            has = gold >= 0
            starts = starts[:-1] + np.maximum(gold, 0)
            counts = has.astype(np.int64)
        else:
            starts = starts[:-1]
        rows = within[starts * (counts > 0) + counts] - within[starts * (counts > 0)]
        source = within[starts] - np.repeat(chunk_starts[:-1], np.diff(first_of_group))

        order = np.argsort(written)
        training = order[np.searchsorted(written, examples, sorter=order)]
        row_starts = cumulative(rows[training])
        target = np.empty(len(written), dtype=np.int64)
        target[training] = row_starts[:-1]
        chosen = spans(starts[training], counts[training])
        return Placement(
            moves=[
                _merged(source[first:stop], target[first:stop], rows[first:stop])
                for first, stop in pairwise(first_of_group)
            ],
            counts=counts[training].astype(np.int32),
            lengths=lengths[chosen].astype(np.int32),
            segment_starts=cumulative(counts[training]),
            row_starts=row_starts,
        )


def _merged(source: NDArray[np.int64], target: NDArray[np.int64], count: NDArray[np.int64]) -> Moves:
    """The same copies, neighbours made one, empty ones left out."""
    some = count > 0
    source, target, count = source[some], target[some], count[some]
    if not len(source):
        return Moves(source, target, count)
    stops = source + count
    new = np.append(True, (source[1:] != stops[:-1]) | (target[1:] != (target + count)[:-1]))
    firsts = np.flatnonzero(new)
    return Moves(source[firsts], target[firsts], np.add.reduceat(count, firsts))

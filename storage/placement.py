"""Where the segments of some examples lie in their chunks, and where they go in memory."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .errors import StoreCorrupt
from .ragged import Ragged, cumulative, spans

_EXAMPLES_AT_ONCE: Final = 1 << 15


@dataclass(frozen=True)
class Moves:
    """Copies out of the chunks of some row groups: rows source[i] to source[i] + count[i] of a chunk go to target[i] of
    the block. Those of group g are starts[g] to starts[g + 1].

    In each group ascending in `source`, none empty, neighbours merged.
    """

    source: NDArray[np.int64]
    target: NDArray[np.int64]
    count: NDArray[np.int64]
    starts: NDArray[np.int64]


@dataclass(frozen=True)
class Placement:
    """One stream of some examples, in training order.

    moves: out of the row groups of the block; counts, lengths: as in PackedRows; segment_starts, row_starts:
    [examples + 1], running sums over examples; places: [examples], the row of memory where each begins.
    """

    moves: Moves
    counts: NDArray[np.int32]
    lengths: NDArray[np.int32]
    segment_starts: NDArray[np.int64]
    row_starts: NDArray[np.int64]
    places: NDArray[np.int64]

    @property
    def rows(self) -> int:
        """Rows of the examples."""
        return int(self.row_starts[-1])


@dataclass(frozen=True)
class _Held:
    """What some row groups hold, in written order: the examples; of each its first segment (in `lengths`), segments
    and rows that are read, and the row of its chunk where they begin.
    """

    examples: NDArray[np.int64]
    group_starts: NDArray[np.int64]
    segments: NDArray[np.int64]
    counts: NDArray[np.int64]
    lengths: NDArray[Any]
    source: NDArray[np.int64]
    rows: NDArray[np.int64]


class SegmentChoice:
    """The segments of a stream that are read: all of them, or the gold one of each example (none where there
    is none).
    """

    def __init__(self, lengths: Ragged, first_examples: NDArray[np.int64], gold: NDArray[Any] | None) -> None:
        self._lengths = lengths
        self._first_examples = first_examples
        self._first_segments = cumulative(_sums(lengths.counts, first_examples))
        self._gold = gold
        if gold is not None and bool((gold >= lengths.counts).any()):
            example = int(np.flatnonzero(gold >= lengths.counts)[0])
            raise StoreCorrupt(
                f"example {example} of the written order: gold is segment {gold[example]}, "
                f"it has {lengths.counts[example]}"
            )

    def segments(self, groups: NDArray[np.int64]) -> NDArray[np.int64]:
        """Segments that row groups hold, read or not: [groups]."""
        found: NDArray[np.int64] = self._first_segments[groups + 1] - self._first_segments[groups]
        return found

    def rows(self, groups: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows that are read of each example of some row groups, in their order."""
        return self._held(groups).rows

    def place(
        self, groups: NDArray[np.int64], examples: NDArray[np.int64], firsts: NDArray[np.int64] | None = None
    ) -> Placement:
        """Places for `examples`, in training order, of those row groups (ascending).

        They lie one after another in that order, and only they are moved; or, with `firsts` [groups], every example of
        the groups is moved and lies in written order, from row `firsts` of its group on.
        """
        held = self._held(groups)
        chosen = np.searchsorted(held.examples, examples)
        row_starts = cumulative(held.rows[chosen])
        if firsts is None:
            target = np.zeros(len(held.examples), dtype=np.int64)
            target[chosen] = row_starts[:-1]
            moved = np.zeros(len(held.examples), dtype=np.int64)
            moved[chosen] = held.rows[chosen]
        else:
            moved = held.rows
            within = cumulative(moved)
            target = within[:-1] + np.repeat(firsts - within[held.group_starts[:-1]], np.diff(held.group_starts))
        counts = held.counts[chosen]
        return Placement(
            moves=_merged(held.source, target, moved, held.group_starts),
            counts=counts.astype(np.int32),
            lengths=held.lengths[spans(held.segments[chosen], counts)].astype(np.int32),
            segment_starts=cumulative(counts),
            row_starts=row_starts,
            places=target[chosen],
        )

    def _held(self, groups: NDArray[np.int64]) -> _Held:
        first = self._first_examples[groups]
        sizes = self._first_examples[groups + 1] - first
        examples = spans(first, sizes)
        lengths = self._lengths.values[spans(self._first_segments[groups], self.segments(groups))]
        counts = self._lengths.counts[examples].astype(np.int64)
        group_starts = cumulative(sizes)
        within, starts = cumulative(lengths), cumulative(counts)
        chunk_starts = within[starts[group_starts[:-1]]]
        segments = starts[:-1].copy()
        if self._gold is not None:
            gold = self._gold[examples].astype(np.int64)
            counts = (gold >= 0).astype(np.int64)
            segments += np.maximum(gold, 0)
        rows = within[segments + counts] - within[segments]
        source = within[segments] - np.repeat(chunk_starts, sizes)
        return _Held(examples, group_starts, segments, counts, lengths, source, rows)


def some_groups(groups: NDArray[np.int64], first_examples: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Row groups, some at a time, so that what is computed for their examples stays small."""
    before = cumulative(first_examples[groups + 1] - first_examples[groups])
    first = 0
    while first < len(groups):
        fit = int(np.searchsorted(before, before[first] + _EXAMPLES_AT_ONCE, side="right")) - 1
        stop = max(fit, first + 1)
        yield groups[first:stop]
        first = stop


def _sums(numbers: NDArray[Any], starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sum of numbers[starts[i] : starts[i + 1]] for each i."""
    sums = np.zeros(len(starts) - 1, dtype=np.int64)
    for some in some_groups(np.arange(len(sums)), starts):
        begin, end = int(starts[some[0]]), int(starts[some[-1] + 1])
        within = cumulative(numbers[begin:end])
        sums[some] = within[starts[some + 1] - begin] - within[starts[some] - begin]
    return sums


def _merged(
    source: NDArray[np.int64], target: NDArray[np.int64], count: NDArray[np.int64], starts: NDArray[np.int64]
) -> Moves:
    """The copies starts[g] to starts[g + 1] for each g: neighbours made one, empty ones left out."""
    some = np.flatnonzero(count)
    starts = np.searchsorted(some, starts)
    source, target, count = source[some], target[some], count[some]
    new = np.ones(len(some), np.bool_)
    new[1:] = (source[1:] != source[:-1] + count[:-1]) | (target[1:] != target[:-1] + count[:-1])
    new[starts[:-1][starts[:-1] < len(some)]] = True
    firsts = np.flatnonzero(new)
    if len(firsts):
        source, target, count = source[firsts], target[firsts], np.add.reduceat(count, firsts)
    return Moves(source, target, count, np.searchsorted(firsts, starts))

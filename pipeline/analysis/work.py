"""How statistics are taken within a memory limit: how many threads, and how many rows each holds at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from ...storage.errors import BudgetTooSmall, DataError
from ...storage.ragged import cumulative
from .moments import Shape

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ...storage import Store

DEFAULT_ROWS: Final = 8192
"""Rows of the sample that second moments are taken of, where nobody says how many."""
SPLIT_EVERY: Final = 4
"""Partial results that are combined at a time."""
_FIXED: Final = 6 << 20  # the graph of tasks, threads, objects
_MOST_TASKS: Final = 512
_FEWEST_ROWS: Final = 16
_SAMPLE_SEED: Final = 0


@dataclass(frozen=True)
class Sample:
    """Rows drawn at random from a stream: for each task that reads some, its row groups and the row in its chunk of every
    row drawn.
    """

    groups: list[NDArray[np.int64]]
    rows: list[NDArray[np.int64]]
    """One entry a task: [drawn], beside `owners`."""
    owners: list[NDArray[np.int64]]
    """One entry a task: [drawn], the row group of each."""

    @property
    def counts(self) -> tuple[int, ...]:
        """Rows of each task."""
        return tuple(len(rows) for rows in self.rows)


@dataclass(frozen=True)
class Work:
    """What is done for one stream: `threads` tasks at a time, each over some of `spans`, `height` rows of all taps in hand.

    rows: [groups], rows of each row group that hold values; they are the first of its chunk.
    """

    shape: Shape
    threads: int
    height: int
    groups: NDArray[np.int64]
    rows: NDArray[np.int64]
    spans: list[NDArray[np.int64]]
    """Places in `groups`, some consecutive ones a task."""
    sample: Sample


def plan_work(store: Store, split: str, stream: str, memory: int, threads: int, rows: int | None) -> Work:
    """Fit the statistics of a stream into `memory` bytes beside what the process holds already.

    rows: of the sample; None: DEFAULT_ROWS, or as many as half of the memory holds.
    Raises BudgetTooSmall, with the bytes that are needed, and DataError where the taps are not equally wide.
    """
    plan = store.stream_plan(split, stream)
    if plan.widths is not None:
        raise DataError(
            f"{store.root}: the taps of {stream} have widths {', '.join(map(str, plan.widths))}; analyze compares the layers of "
            "one width, as transformers have"
        )
    groups = store.groups(split)
    held = _rows_of_groups(store, split, stream)[groups]
    groups, held = groups[held > 0], held[held > 0]
    costs = _Costs(
        shape=Shape(len(plan.taps), plan.width),
        itemsize=8 if store.encoding.numbers == "float64" else 4,
        reading=store.reading_bytes(plan, plan.taps[0]),
        tallest=int(held.max(initial=1)),
    )
    total = int(held.sum())
    if rows is None:
        rows = min(DEFAULT_ROWS, max((memory // 2 - costs.drawing(0, 0, 1)) // (2 * costs.drawn_row), 0))
    spans = np.array_split(np.arange(len(groups)), min(_MOST_TASKS, max(len(groups), 1)))
    sample = _draw(groups, held, spans, min(rows, total))
    drawn, together = sum(sample.counts), max(sample.counts, default=0)

    count, height = min(threads, max(len(groups), 1)), costs.tallest
    while count > 1 and max(costs.summing(height, count), costs.drawing(drawn, together, count)) > memory:
        count -= 1
    if costs.summing(height, count) > memory:
        height = max((memory - costs.summing(0, count)) // costs.row, 0)
    least = costs.summing(min(_FEWEST_ROWS, costs.tallest), 1)
    needed = max(least, costs.drawing(drawn, together, 1))
    if needed > memory:
        advice = "" if needed == least else f" for a sample of {drawn:,} rows, fewer --rows need less"
        raise BudgetTooSmall(
            f"{store.root}: {split}/{stream}: --memory of {memory:,} bytes is too small, {needed:,} bytes are needed{advice}"
        )
    return Work(costs.shape, count, height, groups, held, spans, sample)


@dataclass(frozen=True)
class _Costs:
    """Bytes in the worst case. reading: of one chunk; tallest: rows of the fullest row group."""

    shape: Shape
    itemsize: int
    reading: int
    tallest: int

    @property
    def row(self) -> int:
        """Of a row in all taps, while it is summed."""
        return self.shape.row_bytes(self.itemsize)

    @property
    def drawn_row(self) -> int:
        """Of a row of the sample."""
        return self.shape.taps * self.shape.width * self.itemsize

    def summing(self, height: int, threads: int) -> int:
        """Of sums over all rows, `height` rows at a time."""
        vector = 8 * (self.shape.sums + self.shape.extremes)
        waiting = SPLIT_EVERY * (math.ceil(math.log(_MOST_TASKS, SPLIT_EVERY)) + 1)
        return _FIXED + waiting * vector + threads * (self.reading + 2 * vector + height * self.row)

    def drawing(self, rows: int, together: int, threads: int) -> int:
        """Of a sample of `rows`, at most `together` of them in one task, and of what is computed of it."""
        width = self.shape.width
        read = threads * (self.reading + together * (self.drawn_row + 4 * width * self.itemsize))
        computed = 8 * (rows * width + 3 * min(rows, width) ** 2 + width**2)
        return _FIXED + rows * self.drawn_row + max(read, computed)


def _rows_of_groups(store: Store, split: str, stream: str) -> NDArray[np.int64]:
    """Rows that hold values, by row group."""
    table = store.examples(split)
    lengths = table.lengths[stream]
    ends = cumulative(lengths.values)
    return np.diff(ends[lengths.starts()[table.first_examples]])


def _draw(groups: NDArray[np.int64], held: NDArray[np.int64], spans: list[NDArray[np.int64]], count: int) -> Sample:
    """`count` rows without replacement, in written order: the same for the same store."""
    ends = cumulative(held)
    drawn = np.sort(np.random.default_rng(_SAMPLE_SEED).choice(int(ends[-1]), count, replace=False, shuffle=False))
    place = np.searchsorted(ends, drawn, side="right") - 1
    found = Sample([], [], [])
    for span in spans:
        first, stop = np.searchsorted(place, [span[0], span[-1] + 1]) if len(span) else (0, 0)
        if stop > first:
            mine = place[first:stop]
            found.groups.append(groups[np.unique(mine)])
            found.owners.append(groups[mine])
            found.rows.append(drawn[first:stop] - ends[mine])
    return found

"""Ragged integers: one list of lengths an example, kept as two flat arrays."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import InvalidInput


@dataclass(frozen=True)
class Ragged:
    """Lengths of segments: example e has counts[e] of them, consecutive in `values`.

    values: [segments], token rows of each segment; counts: [examples]. Any integer type.
    """

    values: NDArray[Any]
    counts: NDArray[Any]

    def __post_init__(self) -> None:
        if self.values.ndim != 1 or self.counts.ndim != 1:
            raise InvalidInput("lengths: values and counts must be one-dimensional")
        segments = int(self.counts.sum(dtype=np.int64))
        if segments != len(self.values):
            raise InvalidInput(f"lengths: counts sum to {segments}, there are {len(self.values)} values")
        if len(self.values) and int(self.values.min()) < 0:
            raise InvalidInput("lengths: a segment cannot be shorter than 0")

    def starts(self) -> NDArray[np.int64]:
        """First segment of each example, then the number of segments: [examples + 1]."""
        return cumulative(self.counts)

    def totals(self) -> NDArray[np.int64]:
        """Rows of each example, over its segments: [examples]."""
        rows = cumulative(self.values)
        starts = self.starts()
        return rows[starts[1:]] - rows[starts[:-1]]

    def take(self, examples: NDArray[np.int64]) -> "Ragged":
        """The same of some examples, in that order."""
        starts = self.starts()[:-1][examples]
        counts = self.counts[examples]
        return Ragged(self.values[spans(starts, counts)], counts)

    def narrow(self) -> "Ragged":
        """The same numbers in the smallest types that hold them."""
        return Ragged(_narrow(self.values), _narrow(self.counts))


def cumulative(counts: NDArray[Any]) -> NDArray[np.int64]:
    """Running sums from 0: [n + 1]."""
    sums = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=sums[1:])
    return sums


def spans(starts: NDArray[Any], counts: NDArray[Any]) -> NDArray[np.int64]:
    """start, start + 1, ... `count` numbers for each pair, one after another."""
    ends = cumulative(counts)
    return np.arange(ends[-1], dtype=np.int64) + np.repeat(np.asarray(starts, np.int64) - ends[:-1], counts)


def _narrow(numbers: NDArray[Any]) -> NDArray[Any]:
    largest = int(numbers.max()) if len(numbers) else 0
    return numbers.astype(np.min_scalar_type(largest))


LengthsByStream = Mapping[str, Ragged]

"""Sums over the rows of a stream, from which norms, cosines and channel statistics follow. NumPy only.

They lie in one flat vector of float64, so that what was summed over some rows can be added to what was summed over others:
`sums` are added, `extremes` combined by their maximum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

_ROWS_OF_A_PRODUCT: Final = 64  # float32 adds up so many rows before float64 takes over
OUTLIER_RATIO: Final = 6.0
"""A channel is an outlier where its root mean square is so many times that of the tap's median channel."""


@dataclass(frozen=True)
class Shape:
    """Taps K and width D of a stream."""

    taps: int
    width: int

    @property
    def sums(self) -> int:
        """Numbers that are added."""
        return 1 + self.taps * (self.taps + 2 + 2 * self.width)

    @property
    def extremes(self) -> int:
        """Numbers of which the largest counts."""
        return self.taps * (2 + self.width)

    def row_bytes(self, itemsize: int) -> int:
        """What `Moments.add` and reading for it hold for each row: all taps, and what is made of one."""
        return self.width * (self.taps * itemsize + 3 * itemsize + 2 * 8)


class Moments:
    """Sums over rows of K taps, all of width D. Views of `vector` [shape.sums + shape.extremes]:

    rows [1]; cosine [K, K], of the K states of a row with one another; norm, norm_square [K]; value, square [K, D];
    and largest_norm, least_norm (negated) [K]; largest [K, D], of absolute values.
    """

    def __init__(self, shape: Shape, vector: NDArray[np.float64] | None = None) -> None:
        if vector is None:
            vector = np.zeros(shape.sums + shape.extremes)
            vector[shape.sums : shape.sums + 2 * shape.taps] = -np.inf
        self.shape, self.vector = shape, vector
        taps, width = shape.taps, shape.width
        sizes = [1, taps * taps, taps, taps, taps * width, taps * width, taps, taps, taps * width]
        parts = np.split(vector, np.cumsum(sizes)[:-1])
        self.rows, self.norm, self.norm_square = parts[0], parts[2], parts[3]
        self.cosine = parts[1].reshape(taps, taps)
        self.value, self.square = parts[4].reshape(taps, width), parts[5].reshape(taps, width)
        self.largest_norm, self.least_norm, self.largest = parts[6], parts[7], parts[8].reshape(taps, width)

    def add(self, read: Iterable[NDArray[Any]], directions: NDArray[Any]) -> None:
        """Add rows: `read` gives those of each tap in turn, [n, D], and need not hold more than one at a time.

        directions: memory to work in, [K, at least n * D]. A row of zeros has no direction: its cosines count as 0.
        """
        count = 0
        for tap, rows in enumerate(read):
            count = len(rows)
            wide = rows.astype(np.float64)
            self.value[tap] += wide.sum(axis=0)
            np.square(wide, out=wide)
            self.square[tap] += wide.sum(axis=0)
            squares = wide.sum(axis=1)
            del wide
            norms = np.sqrt(squares)
            self.norm[tap] += norms.sum()
            self.norm_square[tap] += squares.sum()
            self.largest_norm[tap] = max(self.largest_norm[tap], norms.max(initial=-np.inf))
            self.least_norm[tap] = max(self.least_norm[tap], (-norms).max(initial=-np.inf))
            np.maximum(self.largest[tap], np.maximum(rows.max(axis=0), -rows.min(axis=0)), out=self.largest[tap])
            scale = np.where(norms > 0, norms, 1).astype(rows.dtype)
            np.divide(rows, scale[:, None], out=directions[tap, : rows.size].reshape(rows.shape))
        step = _ROWS_OF_A_PRODUCT * self.shape.width
        for start in range(0, count * self.shape.width, step):
            some = directions[:, start : min(start + step, count * self.shape.width)]
            self.cosine += some @ some.T
        self.rows += count


@dataclass(frozen=True)
class TapNorms:
    """Norms of the rows of each tap: mean, standard deviation, smallest and largest, [K] each."""

    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    smallest: NDArray[np.float64]
    largest: NDArray[np.float64]


@dataclass(frozen=True)
class Channels:
    """Channels of each tap: mean, standard deviation, root mean square, largest absolute value; and the root mean square
    over that of the tap's median channel; [K, D] each.
    """

    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    rms: NDArray[np.float64]
    largest: NDArray[np.float64]
    ratio: NDArray[np.float64]


def norms_of(moments: Moments) -> TapNorms:
    """Norms of rows, over all that were added."""
    count = moments.rows[0]
    mean = moments.norm / count
    spread = np.sqrt(np.maximum(moments.norm_square / count - mean**2, 0))
    return TapNorms(mean, spread, -moments.least_norm, moments.largest_norm.copy())


def channels_of(moments: Moments) -> Channels:
    """Channel statistics, over all rows that were added."""
    count = moments.rows[0]
    mean, square = moments.value / count, moments.square / count
    rms = np.sqrt(square)
    median = np.median(rms, axis=1, keepdims=True)
    ratio = np.divide(rms, median, out=np.zeros_like(rms), where=median > 0)
    return Channels(mean, np.sqrt(np.maximum(square - mean**2, 0)), rms, moments.largest.copy(), ratio)


def cosines_of(moments: Moments) -> NDArray[np.float64]:
    """[K, K]: mean over rows of the cosine between two taps of the same row."""
    return np.asarray(moments.cosine / moments.rows[0])

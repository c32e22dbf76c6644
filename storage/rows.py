"""Rows of several taps in memory: one array where all taps are as wide, one a tap where they are not."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[Any] | tuple[NDArray[Any], ...]
"""[K, rows, width], or K arrays [rows, width of the tap]; either way the k-th of it is a tap."""


def rows_in(memory: NDArray[np.uint8], dtype: np.dtype[Any], row_bytes: Sequence[int], rows: int) -> Rows:
    """Memory as so many rows of taps, whose rows have `row_bytes` bytes each."""
    values = memory.view(dtype)
    widths = [count // values.itemsize for count in row_bytes]
    if len(set(widths)) == 1:
        return values.reshape(len(widths), rows, widths[0])
    ends = np.cumsum([rows * width for width in widths]).tolist()
    return tuple(values[end - rows * width : end].reshape(rows, width) for end, width in zip(ends, widths, strict=True))


def some_rows(taps: Rows, first: int, stop: int) -> Rows:
    """Rows `first` to `stop` of every tap, as views."""
    return tuple(tap[first:stop] for tap in taps) if isinstance(taps, tuple) else taps[:, first:stop]


def some_taps(taps: Rows, chosen: slice | Sequence[int]) -> Rows:
    """Some of the taps, which are one array where those are as wide and can be."""
    if not isinstance(taps, tuple):
        return taps[chosen]
    found = taps[chosen] if isinstance(chosen, slice) else tuple(taps[number] for number in chosen)
    return found if len({tap.shape for tap in found}) > 1 else np.stack(found)


def copied(taps: Rows) -> Rows:
    """The same in memory of its own."""
    return tuple(tap.copy() for tap in taps) if isinstance(taps, tuple) else taps.copy()

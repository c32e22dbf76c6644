"""What is copied out of the chunks of a tap into memory, in bytes: planned once for a block, used for every tap."""

from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from .placement import Moves
from .readers.pieces import Pieces, Read

GAP_BYTES: Final = 1 << 16
"""Up to so many unwanted bytes are read, to nowhere, rather than begin another read."""


@dataclass
class Transfer:
    """What is wanted of a chunk: as reads, and as copies out of the whole of it. bytes: of all reads."""

    reads: list[Read]
    bytes: int
    _source: NDArray[np.int64]
    _target: NDArray[np.int64]
    _size: NDArray[np.int64]

    @cached_property
    def copies(self) -> list[tuple[int, int, int]]:
        """Source, target and size of each."""
        return list(zip(self._source.tolist(), self._target.tolist(), self._size.tolist(), strict=True))


def transfers(moves: Moves, row_bytes: int, room: int) -> list[Transfer | None]:
    """Transfers into the memory of a tap, `room` bytes: one a row group, None where nothing is wanted of it.

    Raises IndexError where something would be written outside of that memory.
    """
    source, target, size = moves.source * row_bytes, moves.target * row_bytes, moves.count * row_bytes
    groups = np.flatnonzero(np.diff(moves.starts))
    gaps = np.zeros_like(size)
    gaps[:-1] = source[1:] - source[:-1] - size[:-1]
    last = gaps > GAP_BYTES
    last[moves.starts[groups + 1] - 1] = True
    gaps[last] = 0
    stops = np.flatnonzero(last) + 1
    firsts = stops - np.diff(stops, prepend=0)
    starts, sizes = target, size
    if gaps.any():
        # Each move, and what is not wanted between it and the next one.
        starts = np.stack([target, np.full_like(target, -1)], axis=1).reshape(-1)
        sizes = np.stack([size, gaps], axis=1).reshape(-1)
        some = np.flatnonzero(sizes)
        starts, sizes, stops = starts[some], sizes[some], np.searchsorted(some, 2 * stops)
    pieces = Pieces(starts, sizes, room).cut([0, *stops.tolist()])
    reads = list(map(Read, source[firsts].tolist(), pieces))
    first_reads = np.searchsorted(firsts, moves.starts).tolist()
    bounds = moves.starts.tolist()
    found: list[Transfer | None] = [None] * (len(moves.starts) - 1)
    for group in groups.tolist():
        some_reads = reads[first_reads[group] : first_reads[group + 1]]
        own = slice(bounds[group], bounds[group + 1])
        total = sum(read.pieces.total for read in some_reads)
        found[group] = Transfer(some_reads, total, source[own], target[own], size[own])
    return found

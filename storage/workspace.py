"""What a reading thread holds: the buffers for what has no place of its own, and where a chunk's rows go."""

import queue
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from .placement import Moves
from .shards import CRC_BYTES

_GAP_BYTES: Final = 1 << 16
"""Up to so many unwanted bytes are read, to nowhere, rather than begin another read."""

Runs = list[tuple[int, list[memoryview]]]
"""Reads of a chunk: the first byte of each, and the buffers that it fills."""


@dataclass(frozen=True)
class Workspace:
    """What one thread needs to read: a buffer for a chunk, and one for what nobody wants."""

    bounce: NDArray[np.uint8]
    scratch: memoryview

    def whole(
        self, moves: Moves, row_bytes: int, out: NDArray[np.uint8], raw: NDArray[np.uint8]
    ) -> tuple[list[memoryview], NDArray[np.uint8]]:
        """Buffers for a whole chunk, what is not wanted of it in `raw` [chunk bytes + 4]; and the checksum's place."""
        end = raw.nbytes - CRC_BYTES
        target, rest = out.data, raw.data
        buffers: list[memoryview] = []
        at = 0
        sources = (moves.source * row_bytes).tolist()
        for source, place in zip(sources, moves.places(row_bytes), strict=True):
            if source > at:
                buffers.append(rest[at:source])
            buffers.append(target[place])
            at = source + place.stop - place.start
        if at < end:
            buffers.append(rest[at:end])
        return buffers, raw[end:]

    def runs(self, moves: Moves, row_bytes: int, out: NDArray[np.uint8]) -> tuple[Runs, int]:
        """The reads of what is wanted of a chunk, and the bytes they read."""
        target = out.data
        places = moves.places(row_bytes)
        if moves.gapless:
            first = int(moves.source[0]) * row_bytes
            count = (int(moves.source[-1]) + int(moves.count[-1])) * row_bytes - first
            return [(first, list(map(target.__getitem__, places)))], count
        found: Runs = []
        buffers: list[memoryview] = []
        at, count = -_GAP_BYTES - 1, 0
        for source, place in zip((moves.source * row_bytes).tolist(), places, strict=True):
            gap = source - at
            if gap > _GAP_BYTES:
                buffers = []
                found.append((source, buffers))
            elif gap:
                buffers.append(self.scratch[:gap])
                count += gap
            buffers.append(target[place])
            size = place.stop - place.start
            count += size
            at = source + size
        return found, count


Workspaces = queue.SimpleQueue[Workspace]

"""What a reading thread holds: the buffers for what has no place of its own."""

import queue
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .readers.pieces import Memory
from .shards import CRC_BYTES
from .transfers import Transfer


@dataclass(frozen=True)
class Workspace:
    """What one thread needs to read: a buffer for a chunk, and one for what nobody wants."""

    bounce: NDArray[np.uint8]
    scratch: Memory

    def whole(
        self, transfer: Transfer, out: NDArray[np.uint8], raw: NDArray[np.uint8]
    ) -> tuple[list[memoryview], NDArray[np.uint8]]:
        """Buffers for a whole chunk, what is not wanted of it in `raw` [chunk bytes + 4]; and the checksum's place."""
        end = raw.nbytes - CRC_BYTES
        target, rest = out.data, raw.data
        buffers: list[memoryview] = []
        at = 0
        for source, place, size in transfer.copies:
            if source > at:
                buffers.append(rest[at:source])
            buffers.append(target[place : place + size])
            at = source + size
        if at < end:
            buffers.append(rest[at:end])
        return buffers, raw[end:]


Workspaces = queue.SimpleQueue[Workspace]

"""One range of a file in pieces, and where in memory each of them goes: as the table that the system's calls take, so
that no object is made for a piece.
"""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

ENTRY_BYTES: Final = 16
"""Bytes of a row of a table: an address and a size, as in struct iovec where addresses have 64 bits."""


class Memory:
    """Memory that is read into, and its address. Who hands out the address keeps this alive while it is used."""

    __slots__ = ("address", "data", "step")

    def __init__(self, array: NDArray[Any]) -> None:
        """array: contiguous and writable, of any type and shape."""
        if not (array.flags.c_contiguous and array.flags.writeable):
            raise ValueError("memory to read into must be contiguous and writable")
        self.data: NDArray[np.uint8] = array.reshape(-1).view(np.uint8)
        self.address: int = self.data.ctypes.data
        self.step = np.array([self.address, 0], np.uint64)
        """What makes a row of a table out of a start in this memory and a size."""


class Pieces:
    """Consecutive pieces of a file: `sizes[i]` bytes go to `starts[i]` of a memory, or nowhere, where that is -1.

    Nothing is ever written outside of a memory of `room` bytes: a piece that would be raises IndexError here.
    """

    __slots__ = ("_nowhere", "_room", "_table", "_widest", "total")

    def __init__(self, starts: NDArray[np.int64], sizes: NDArray[np.int64], room: int) -> None:
        nowhere = starts == -1
        inside = (sizes >= 0) & ((starts >= 0) & (sizes <= room) & (starts <= room - sizes) | nowhere)
        if not inside.all():
            at = int(np.flatnonzero(~inside)[0])
            raise IndexError(f"{sizes[at]} bytes to byte {starts[at]} of a memory of {room}: the plan was made wrong")
        self._table = np.stack([starts, sizes], axis=1).astype(np.uint64)
        self._nowhere = nowhere if nowhere.any() else None
        self._widest = int(sizes[nowhere].max(initial=0))
        self._room = room
        self.total = int(sizes.sum())
        """Bytes of all pieces."""

    def cut(self, bounds: Sequence[int]) -> list["Pieces"]:
        """Pieces bounds[i] to bounds[i + 1], for each i."""
        totals = np.add.reduceat(self._table[:, 1], bounds[:-1]).tolist() if len(bounds) > 1 else []
        found = []
        for begin, stop, total in zip(bounds[:-1], bounds[1:], totals, strict=True):
            part = object.__new__(Pieces)
            part._table, part._room, part._widest, part.total = self._table[begin:stop], self._room, self._widest, total
            part._nowhere = None if self._nowhere is None else self._nowhere[begin:stop]
            found.append(part)
        return found

    def table(self, memory: Memory, scratch: Memory) -> NDArray[np.uint64]:
        """Address and size of each piece: [pieces, 2]. What goes nowhere goes to `scratch`, one over the other."""
        self._require(memory, scratch)
        found: NDArray[np.uint64] = self._table + memory.step
        if self._nowhere is not None:
            found[self._nowhere, 0] = scratch.address
        return found

    def buffers(self, memory: Memory, scratch: Memory) -> list[memoryview]:
        """The same as buffers, for systems that take nothing else."""
        self._require(memory, scratch)
        whole, unwanted = memory.data.data, scratch.data.data
        found = [whole[start : start + size] for start, size in self._table.astype(np.int64).tolist()]
        if self._nowhere is not None:
            for at in np.flatnonzero(self._nowhere).tolist():
                found[at] = unwanted[: int(self._table[at, 1])]
        return found

    def _require(self, memory: Memory, scratch: Memory) -> None:
        if len(memory.data) < self._room or len(scratch.data) < self._widest:
            raise IndexError(
                f"memory of {len(memory.data)} and {len(scratch.data)} bytes: {self._room} and {self._widest} are needed"
            )


class Read(NamedTuple):
    """A read of a chunk: from byte `first` of it on."""

    first: int
    pieces: Pieces

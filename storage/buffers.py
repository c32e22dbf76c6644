"""The memory that reading takes: allocated once, used again for every block, shared by streams that take turns."""

import weakref
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .budget import ALIGNMENT, Needs, aligned
from .errors import InvalidInput

Allocate = Callable[..., NDArray[Any]]
"""As `numpy.empty`: allocate((bytes,), dtype=numpy.uint8)."""


class Reader(Protocol):
    """A stream, as its buffers see it."""

    @property
    def needs(self) -> Needs:
        """What it takes."""
        ...

    @property
    def reads_ahead(self) -> bool:
        """Whether a second block is of use to it."""
        ...

    def settle(self) -> None:
        """Ask once whether all may stay in memory (`reserve`)."""
        ...


class Region:
    """A run of memory, given out from its first aligned address on in aligned parts."""

    def __init__(self, memory: NDArray[np.uint8]) -> None:
        self._memory = memory
        self._used = -memory.ctypes.data % ALIGNMENT

    def take(self, count: int) -> NDArray[np.uint8]:
        """The next `count` bytes."""
        begin, self._used = self._used, self._used + aligned(count)
        if begin + count > len(self._memory):
            raise RuntimeError(
                f"{begin + count} bytes of a buffer of {len(self._memory)}: the needs were computed wrong"
            )
        return self._memory[begin : begin + count]


class Lease:
    """The buffers in the hands of one reader, until another one asks for them."""

    def __init__(self, memory: NDArray[np.uint8], slots: int, on_loss: Callable[[], None]) -> None:
        self.memory, self.slots = memory, slots
        self._on_loss: Callable[[], None] | None = on_loss

    def end(self) -> None:
        """Take the buffers back; the reader is told first, and stops reading into them."""
        on_loss, self._on_loss = self._on_loss, None
        if on_loss is not None:
            on_loss()


class ReadBuffers:
    """Memory for reading, `budget_bytes` at most, for all the streams that are given it.

    Streams take turns: one that is asked for a batch while another was in the middle of an epoch takes the buffers
    over; the other one reads its block again when its turn comes. So a batch is valid until the next one is asked of
    any of them. They must be consumed by one thread.
    """

    def __init__(self, budget_bytes: int, allocate: Allocate = np.empty) -> None:
        if budget_bytes < 1:
            raise InvalidInput(f"a read budget of {budget_bytes:,} bytes: at least 1 is needed")
        self.budget_bytes = budget_bytes
        self._allocate = allocate
        self._readers: weakref.WeakKeyDictionary[Reader, None] = weakref.WeakKeyDictionary()
        self._reserved: dict[int, tuple[int, int]] = {}
        self._memory: NDArray[np.uint8] | None = None
        self._lease: Lease | None = None

    @property
    def held_bytes(self) -> int:
        """Bytes that are allocated now."""
        shared = 0 if self._memory is None else self._memory.nbytes
        return shared + sum(allocated for _, allocated in self._reserved.values())

    @property
    def left_bytes(self) -> int:
        """What streams that do not stay in memory may share."""
        return self.budget_bytes - sum(taken for taken, _ in self._reserved.values())

    def join(self, reader: Reader) -> None:
        """Count on a reader from now on."""
        self._readers[reader] = None

    def slots(self, reader: Reader) -> int:
        """Blocks that fit beside each other for a reader: 2, or 1, which is then read when it is needed."""
        return 2 if reader.reads_ahead and reader.needs.by_blocks(2) <= self.left_bytes else 1

    def settle(self) -> None:
        """Let every reader ask, the first one first, before anything is shared out: what is given stays where it is."""
        for reader in list(self._readers):
            reader.settle()

    def reserve(self, reader: Reader) -> NDArray[np.uint8] | None:
        """Memory for all that a reader reads, for as long as it lives; None where that does not fit beside what the
        others need.
        """
        needs = reader.needs
        others = [
            other.needs.by_blocks(1)
            for other in self._readers
            if other is not reader and id(other) not in self._reserved
        ]
        if needs.in_memory + max(others, default=0) > self.left_bytes:
            return None
        self._drop()
        self._reserved[id(reader)] = needs.in_memory, needs.memory_buffers
        weakref.finalize(reader, self._reserved.pop, id(reader), None)
        return self._allocate((needs.memory_buffers,), dtype=np.uint8)

    def lease(self, reader: Reader, on_loss: Callable[[], None]) -> Lease:
        """The shared buffers, for one reader; whoever had them is told by its `on_loss`."""
        if self._lease is not None:
            self._lease.end()
        slots = self.slots(reader)
        wanted = max(
            other.needs.buffers(self.slots(other))
            for other in {*self._readers, reader}
            if id(other) not in self._reserved
        )
        if self._memory is None or self._memory.nbytes < wanted:
            self._drop()
            self._memory = self._allocate((wanted,), dtype=np.uint8)
        self._lease = Lease(self._memory, slots, on_loss)
        return self._lease

    def _drop(self) -> None:
        if self._lease is not None:
            self._lease.end()
        self._lease = self._memory = None

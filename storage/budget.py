"""What a stream holds in memory, in the worst case, and what to say when a budget is too small for it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from .errors import BudgetTooSmall
from .order import BatchSize
from .placement import SegmentChoice, some_groups

# Bytes of tables and objects beside the rows themselves; tests hold what is really taken against them.
_PER_EXAMPLE: Final = 192
_PER_EXAMPLE_OF_A_STREAM: Final = 320
_PER_SEGMENT: Final = 64
_PER_BUFFER: Final = 320
_PER_BATCH_EXAMPLE: Final = 256
_PER_CHUNK: Final = 512
_PER_THREAD: Final = 1 << 15
_FIXED: Final = 1 << 16
ALIGNMENT: Final = 4096
"""Every part of a buffer begins at an address that is a multiple of so many bytes: the system copies into memory at up
to a third of the speed where it lies a few bytes ahead of the file's, modulo a page.
"""
_SCRATCH: Final = 1 << 16


def aligned(count: int) -> int:
    """`count` bytes, rounded up to a multiple of ALIGNMENT."""
    return -(-count // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class StreamShape:
    """One stream of what is read: bytes of a row in each tap, of the largest chunk with its checksum, and what a thread
    holds beside that chunk while it reads it.
    """

    row_bytes: tuple[int, ...]
    chunk_bytes: int
    beside_bytes: int


@dataclass(frozen=True)
class Needs:
    """Bytes in the worst case. `slot`: rows of a block; `tables`: where they lie; `join`: a batch out of two blocks;
    `batch`: one gathered from memory; `work`: of all threads; `rows`: of the whole split; `batch_rows`: by stream.
    """

    slot: int
    tables: int
    join: int
    batch: int
    bounce: int
    bounces: int
    beside: int
    rows: int
    batch_rows: Mapping[str, int]

    scratch: int = _SCRATCH

    @property
    def work(self) -> int:
        """Buffers of all threads."""
        return self.bounces * aligned(self.bounce) + self.scratch

    def buffers(self, slots: int) -> int:
        """Bytes that are allocated for reading block by block."""
        return ALIGNMENT + slots * self.slot + self.join + self.work

    def by_blocks(self, slots: int) -> int:
        """All that reading block by block takes."""
        return self.buffers(slots) + slots * self.tables + self.beside

    @property
    def memory_buffers(self) -> int:
        """Bytes that are allocated for serving from memory."""
        return ALIGNMENT + self.rows + self.batch + self.work

    @property
    def in_memory(self) -> int:
        """All that serving from memory takes."""
        return self.memory_buffers + 2 * self.tables + self.beside


class Sizes:
    """How large the row groups, examples and batches of what is read are."""

    def __init__(
        self,
        groups: NDArray[np.int64],
        first_examples: NDArray[np.int64],
        choices: Mapping[str, SegmentChoice],
        shapes: Mapping[str, StreamShape],
        batch: BatchSize,
        ranks: int,
    ) -> None:
        self.group_rows = {stream: np.zeros(len(groups), np.int64) for stream in shapes}
        self.group_examples = first_examples[groups + 1] - first_examples[groups]
        most = 0 if batch.examples is None else -(-batch.examples // ranks)
        largest = {stream: np.zeros(0, np.int64) for stream in shapes}
        at = 0
        for some in some_groups(groups, first_examples):
            counts = self.group_examples[at : at + len(some)]
            ends = np.cumsum(counts)
            for stream, choice in choices.items():
                rows = choice.rows(some)
                sums = np.append(0, np.cumsum(rows))
                self.group_rows[stream][at : at + len(some)] = sums[ends] - sums[ends - counts]
                largest[stream] = np.sort(np.append(largest[stream], rows))[::-1][:most]
            at += len(some)
        self.group_segments = sum(choice.segments(groups) for choice in choices.values())
        self.batch_rows = {
            stream: int(largest[stream].sum()) if batch.tokens is None else min(batch.tokens, int(rows.sum()))
            for stream, rows in self.group_rows.items()
        }
        self.batch_examples = most or batch.tokens or 0
        self._shapes = shapes

    def needs(self, window: int, threads: int, *, joins: bool) -> Needs:
        """What reading with a window takes; `joins`: batches run on from block to block."""
        return self._all_needs(threads, joins=joins)(min(window, len(self.group_examples)))

    def largest_window(self, budget_bytes: int, threads: int, *, joins: bool) -> int:
        """The largest window with which one block at a time fits; 0: none."""
        needs = self._all_needs(threads, joins=joins)
        low, high = 0, len(self.group_examples)
        while low < high:
            middle = -(-(low + high) // 2)
            if needs(middle).by_blocks(1) <= budget_bytes:
                low = middle
            else:
                high = middle - 1
        return low

    def _all_needs(self, threads: int, *, joins: bool) -> Callable[[int], Needs]:
        """Needs by window."""
        shapes = self._shapes
        streams = len(shapes)
        bytes_of_groups = sum(self.group_rows[name] * sum(shape.row_bytes) for name, shape in shapes.items())
        planned = sum(len(set(shape.row_bytes)) for shape in shapes.values())  # transfers are planned for each size
        tables = self.group_examples * (_PER_EXAMPLE + _PER_EXAMPLE_OF_A_STREAM * planned)
        tables = tables + self.group_segments * _PER_SEGMENT
        tables = tables + _PER_CHUNK * (sum(len(shape.row_bytes) for shape in shapes.values()) + planned)
        batch = sum(aligned(self.batch_rows[name] * sum(shape.row_bytes)) for name, shape in shapes.items())
        workers = max(threads, 1)
        buffers = 2 * int(self.group_examples.max(initial=0)) + 1
        held = max(shape.beside_bytes for shape in shapes.values())
        beside = (
            _FIXED + workers * (_PER_THREAD + buffers * _PER_BUFFER + held) + self.batch_examples * _PER_BATCH_EXAMPLE
        )
        largest_slots = np.sort(np.asarray(bytes_of_groups))[::-1].cumsum() + ALIGNMENT * streams
        largest_tables = np.sort(tables)[::-1].cumsum()
        rows = int(np.sum(bytes_of_groups)) + ALIGNMENT * streams

        def needs(window: int) -> Needs:
            return Needs(
                slot=aligned(int(largest_slots[window - 1])),
                tables=int(largest_tables[window - 1]),
                join=batch if joins and window < len(largest_slots) else 0,
                batch=batch,
                bounce=max(shape.chunk_bytes for shape in shapes.values()),
                bounces=workers,
                beside=beside,
                rows=aligned(rows),
                batch_rows=self.batch_rows,
            )

        return needs


def too_small(budget_bytes: int, window: int, needs: Needs, fits: int, least: Needs) -> BudgetTooSmall:
    """The error for a budget in which one block does not fit. fits: the largest window that does, 0 for none; least:
    what a window of 1 needs.
    """
    advice = (
        f"a window of {fits} groups fits" if fits else f"even a window of 1 group needs {least.by_blocks(1):,} bytes"
    )
    return BudgetTooSmall(
        f"the read budget of {budget_bytes:,} bytes is too small: a window of {window} row groups needs "
        f"{needs.by_blocks(1):,} bytes ({needs.by_blocks(2):,} to read ahead); {advice}"
    )

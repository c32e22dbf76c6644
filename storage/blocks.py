"""Blocks on their way from disk to memory: chunk by chunk, by as many threads as work on them.

The first time a chunk is seen it goes through a bounce buffer, its crc32c is checked and its rows are copied to
their places; afterwards one scattering read a chunk puts them there.
"""

import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .order import Block, EpochOrder
from .placement import Moves, Placement, SegmentChoice
from .reader import Store

_GAP_BYTES: Final = 1 << 16
"""Up to so many unwanted bytes are read, to nowhere, rather than begin another read."""


@dataclass(frozen=True)
class Part:
    """Examples `first` to `stop` of a block that belong to global batch `batch`, which begins or ends there."""

    batch: int
    first: int
    stop: int
    begins: bool
    ends: bool


@dataclass
class Loaded:
    """A block in memory: the examples of this rank in training order, and where their rows lie.

    rows: by stream [K, rows, width] as stored.
    """

    examples: NDArray[np.int64]
    parts: list[Part]
    rows: Mapping[str, NDArray[Any]]
    placements: Mapping[str, Placement]


@dataclass
class Reading:
    """What a stream reads, and what it has read so far."""

    store: Store
    split: str
    taps: dict[str, tuple[int, ...]]
    choices: dict[str, SegmentChoice]
    row_bytes: dict[str, int]
    chunk_bytes: dict[str, int]
    rank: int
    ranks: int
    verified: dict[tuple[str, int], NDArray[np.bool_]]
    read_bytes: int = 0
    chunks: int = 0
    verified_chunks: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def rows_of(self, stream: str, memory: NDArray[np.uint8], rows: int) -> NDArray[Any]:
        """Memory as rows of a stream: [K, rows, width]."""
        values = memory.view(self.store.encoding.dtype)
        width = self.row_bytes[stream] // values.itemsize
        return values.reshape(len(self.taps[stream]), rows, width)

    def parts(self, block: Block, start_batch: int) -> tuple[NDArray[np.int64], list[Part]]:
        """This rank's examples of a block, from a batch on, and the batches that they belong to."""
        chosen, parts, at = [np.empty(0, np.int64)], [], 0
        for piece in block.pieces:
            if piece.batch < start_batch:
                continue
            low, high = (piece.size * rank // self.ranks - piece.offset for rank in (self.rank, self.rank + 1))
            first, stop = max(low, 0), min(high, piece.count)
            if first < stop:
                chosen.append(block.examples[piece.first + first : piece.first + stop])
            count = max(stop - first, 0)
            ends = piece.offset + piece.count == piece.size
            parts.append(Part(piece.batch, at, at + count, piece.offset == 0, ends))
            at += count
        return np.concatenate(chosen), parts

    def fetch(
        self, stream: str, depth: int, group: int, moves: Moves, out: NDArray[np.uint8], space: "Workspace"
    ) -> None:
        """Read one chunk of a tap; its rows go to their places in `out`, the bytes of that tap."""
        tap, row_bytes = self.taps[stream][depth], self.row_bytes[stream]
        seen = self.verified[stream, tap]
        first_time = not seen[group]
        if self.store.scatters and not first_time:
            runs, count = _runs(moves, row_bytes, out, space.scratch)
            self.store.scatter_chunk(self.split, stream, tap, group, runs)
        else:
            raw = space.bounce[: self.chunk_bytes[stream]]
            chunk = self.store.read_chunk(self.split, stream, tap, group, raw, verify=first_time)
            flat = chunk.reshape(-1).view(np.uint8)
            seen[group] = True
            for source, target, size in moves.of_bytes(row_bytes):
                out[target : target + size] = flat[source : source + size]
            count = raw.nbytes
        with self.lock:
            self.read_bytes += count
            self.chunks += 1
            self.verified_chunks += first_time


@dataclass(frozen=True)
class Workspace:
    """What one thread needs to read: a buffer for a chunk, and one for what nobody wants."""

    bounce: NDArray[np.uint8]
    scratch: memoryview


Place = Callable[[Block, NDArray[np.int64]], tuple[dict[str, NDArray[Any]], dict[str, Placement], NDArray[np.bool_]]]
"""(block, examples) -> where they go: rows by stream, placements, and which groups of the block must be read."""


class Load:
    """One block, planned and read by whichever threads call `work`."""

    def __init__(
        self, reading: Reading, order: EpochOrder, number: int, start_batch: int, place: Place, spaces: "Workspaces"
    ) -> None:
        self._reading, self._order, self._number, self._start_batch = reading, order, number, start_batch
        self._place, self._spaces = place, spaces
        self._lock = threading.Lock()
        self._tasks: Iterator[tuple[str, int, int, Moves]] | None = None
        self._ahead: list[tuple[str, int, int]] = []
        self._at = 0
        self._stopped = False
        self._loaded: Loaded | None = None
        self._futures: list[Future[None]] = []
        self.groups: NDArray[np.int64] = order.groups_of(number)

    def start(self, pool: ThreadPoolExecutor, threads: int) -> None:
        """Let threads read; `wait` then waits for them."""
        self._futures = [pool.submit(self.work) for _ in range(threads)]

    def wait(self) -> Loaded:
        """The block, read by others or here and now. Raises what reading it raised."""
        if not self._futures:
            self.work()
        for future in self._futures:
            future.result()
        assert self._loaded is not None
        return self._loaded

    def stop(self) -> None:
        """Begin no further chunk."""
        self._stopped = True

    def work(self) -> None:
        """Read chunks until none is left."""
        space = self._spaces.get()
        try:
            while not self._stopped and (task := self._next()) is not None:
                stream, depth, group, moves, out, upcoming = task
                if upcoming is not None:
                    ahead_stream, ahead_depth, ahead_group = upcoming
                    reading = self._reading
                    tap = reading.taps[ahead_stream][ahead_depth]
                    reading.store.will_need(reading.split, ahead_stream, tap, ahead_group)
                self._reading.fetch(stream, depth, group, moves, out, space)
        except BaseException:
            self._stopped = True
            raise
        finally:
            self._spaces.put(space)

    def _next(
        self,
    ) -> tuple[str, int, int, Moves, NDArray[np.uint8], tuple[str, int, int] | None] | None:
        with self._lock:
            if self._tasks is None:
                self._tasks = self._plan()
            task = next(self._tasks, None)
            if task is None:
                return None
            stream, depth, group, moves = task
            upcoming = self._ahead[self._at] if self._at < len(self._ahead) else None
            self._at += 1
        assert self._loaded is not None
        return stream, depth, group, moves, self._loaded.rows[stream][depth].reshape(-1).view(np.uint8), upcoming

    def _plan(self) -> Iterator[tuple[str, int, int, Moves]]:
        reading = self._reading
        block = self._order.block(self._number)
        examples, parts = reading.parts(block, self._start_batch)
        rows, placements, wanted = self._place(block, examples)
        self._loaded = Loaded(examples, parts, rows, placements)
        tasks = [
            (stream, depth, group, moves)
            for stream, placement in placements.items()
            for depth in range(len(reading.taps[stream]))
            for group, moves, want in zip(block.groups.tolist(), placement.moves, wanted.tolist(), strict=True)
            if want and len(moves)
        ]
        # The system is told of each chunk one tap before it is read, of the next block's first tap at this one's end.
        later = [task[:3] for task in tasks[len(block.groups) :]]
        if tasks and self._number + 1 < len(self._order):
            stream = tasks[0][0]
            later += [(stream, 0, group) for group in self._order.groups_of(self._number + 1).tolist()]
        self._ahead = later
        return iter(tasks)


Workspaces = queue.SimpleQueue[Workspace]


def _runs(
    moves: Moves, row_bytes: int, out: NDArray[np.uint8], scratch: memoryview
) -> tuple[list[tuple[int, list[memoryview]]], int]:
    """The reads of a chunk, (first byte, buffers) each, and the bytes they read."""
    target = out.data
    if moves.gapless:
        starts, stops = moves.targets(row_bytes)
        first = int(moves.source[0]) * row_bytes
        count = (int(moves.source[-1]) + int(moves.count[-1])) * row_bytes - first
        return [(first, [target[start:stop] for start, stop in zip(starts, stops, strict=True)])], count
    runs: list[tuple[int, list[memoryview]]] = []
    buffers: list[memoryview] = []
    at, count = -_GAP_BYTES - 1, 0
    for source, place, size in moves.of_bytes(row_bytes):
        gap = source - at
        if gap > _GAP_BYTES:
            buffers = []
            runs.append((source, buffers))
        elif gap:
            buffers.append(scratch[:gap])
            count += gap
        buffers.append(target[place : place + size])
        count += size
        at = source + size
    return runs, count

"""Blocks on their way from disk to memory: chunk by chunk, by as many threads as work on them.

One scattering read a chunk puts its rows where they belong. The first time a chunk is seen all of it is read, and its
crc32c checked. What cannot be read that way, compressed or from afar, goes through a bounce buffer.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .buffers import Region
from .order import Block, EpochOrder
from .placement import Placement, SegmentChoice
from .reader import Store
from .readers.pieces import Memory
from .rows import Rows, rows_in
from .transfers import Transfer, transfers
from .workspace import Workspace, Workspaces

_AHEAD_BYTES: Final = 16 << 20
"""Of so much that comes next the system is told, so that the disk has several requests at a time."""
_MOST_UNASKED: Final = 15
"""After so many chunks in the page cache, at most so many more are believed to be there."""


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

    rows: by stream, as stored.
    """

    examples: NDArray[np.int64]
    parts: list[Part]
    rows: Mapping[str, Rows]
    placements: Mapping[str, Placement]


@dataclass
class Reading:
    """What a stream reads, and what it has read so far."""

    store: Store
    split: str
    taps: dict[str, tuple[int, ...]]
    choices: dict[str, SegmentChoice]
    row_bytes: dict[str, tuple[int, ...]]
    """Of every tap that is read."""
    chunk_bytes: dict[str, tuple[int, ...]]
    """Of every tap that is read, checksums included."""
    rank: int
    ranks: int
    verified: dict[tuple[str, int], NDArray[np.bool_]]
    read_bytes: int = 0
    chunks: int = 0
    verified_chunks: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    _cached: int = field(default=0, init=False)
    _unasked: int = field(default=0, init=False)

    def rows_from(self, region: Region, stream: str, rows: int) -> Rows:
        """Memory for so many rows of a stream, out of a region."""
        row_bytes = self.row_bytes[stream]
        return rows_in(region.take(sum(row_bytes) * rows), self.store.encoding.dtype, row_bytes, rows)

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

    @cached_property
    def scatters(self) -> bool:
        """Whether rows are read straight to their places."""
        return self.store.scatters

    @cached_property
    def chunks_ahead(self) -> int:
        """Of so many chunks that come next the system is told."""
        return -(-_AHEAD_BYTES // max(map(max, self.chunk_bytes.values())))

    def first_chunks(self, groups: NDArray[np.int64]) -> list[tuple[str, int, int]]:
        """Stream, depth and group of what is read first of a block."""
        chunks = (
            (stream, depth, group)
            for stream, taps in self.taps.items()
            for depth in range(len(taps))
            for group in groups.tolist()
        )
        return list(islice(chunks, self.chunks_ahead))

    def ask_again(self) -> None:
        """Believe of no chunk that it is in the page cache: since it was, time has passed."""
        self._cached = self._unasked = 0

    def will_need(self, stream: str, depth: int, group: int) -> None:
        """Tell the system that a chunk is read soon; rarely, where such chunks were found in the page cache."""
        if self._unasked > 0:
            self._unasked -= 1
        elif self.store.will_need(self.split, stream, self.taps[stream][depth], group):
            self._cached = min(self._cached + 1, _MOST_UNASKED)
            self._unasked = self._cached
        else:
            self._cached = 0

    def fetch(self, task: "Task", space: Workspace) -> None:
        """Read one chunk of a tap; its rows go to their places."""
        stream, group, transfer, out = task.stream, task.group, task.transfer, task.out
        tap = self.taps[stream][task.depth]
        seen = self.verified[stream, tap]
        first_time = not seen[group]
        if self.scatters and not first_time:
            self.store.scatter_chunk(self.split, stream, tap, group, transfer.reads, out, space.scratch)
            count = transfer.bytes
        else:
            raw = space.bounce[: self.chunk_bytes[stream][task.depth]]
            count = raw.nbytes
            if self.scatters:
                buffers, end = space.whole(transfer, out.data, raw)
                self.store.scatter_checked(self.split, stream, tap, group, buffers, end)
            else:
                chunk = self.store.read_chunk(self.split, stream, tap, group, raw, verify=first_time)
                flat = chunk.reshape(-1).view(np.uint8)
                for source, target, size in transfer.copies:
                    out.data[target : target + size] = flat[source : source + size]
            seen[group] = True
        with self.lock:
            self.read_bytes += count
            self.chunks += 1
            self.verified_chunks += first_time


class Task(NamedTuple):
    """A chunk of a tap that is to be read, and where its rows go."""

    stream: str
    depth: int
    group: int
    transfer: Transfer
    out: Memory


Place = Callable[[Block, NDArray[np.int64]], tuple[dict[str, Rows], dict[str, Placement], NDArray[np.bool_]]]
"""(block, examples) -> where they go: rows by stream, placements, and which groups of the block must be read."""


class Load:
    """One block, planned and read by whichever threads call `work`."""

    def __init__(
        self,
        reading: Reading,
        order: EpochOrder,
        number: int,
        start_batch: int,
        place: Place,
        spaces: Workspaces,
        *,
        follows: bool,
    ) -> None:
        """follows: the block before it told the system of its first chunks."""
        self._reading, self._order, self._number, self._start_batch = reading, order, number, start_batch
        self._place, self._spaces, self._follows = place, spaces, follows
        self._lock = threading.Lock()
        self._tasks: Iterator[Task] | None = None
        self._coming: list[tuple[str, int, int]] = []
        self._at = self._told = 0
        self._stopped = False
        self._loaded: Loaded | None = None
        self._futures: list[Future[None]] = []
        self.groups: NDArray[np.int64] = order.groups_of(number)

    def plan(self) -> None:
        """Plan it before anybody reads; nothing is written to memory."""
        with self._lock:
            if self._tasks is None:
                self._tasks = self._plan()

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
                chunk, coming = task
                for later in coming:
                    self._reading.will_need(*later)
                self._reading.fetch(chunk, space)
        except BaseException:
            self._stopped = True
            raise
        finally:
            self._spaces.put(space)

    def _next(self) -> tuple[Task, list[tuple[str, int, int]]] | None:
        with self._lock:
            if self._tasks is None:
                self._tasks = self._plan()
            task = next(self._tasks, None)
            if task is None:
                return None
            self._at += 1
            coming = self._coming[self._told : self._at + self._reading.chunks_ahead]
            self._told += len(coming)
        return task, coming

    def _plan(self) -> Iterator[Task]:
        reading = self._reading
        block = self._order.block(self._number)
        examples, parts = reading.parts(block, self._start_batch)
        rows, placements, wanted = self._place(block, examples)
        self._loaded = Loaded(examples, parts, rows, placements)
        groups = block.groups.tolist()
        tasks: list[Task] = []
        for stream, placement in placements.items():
            outs = list(map(Memory, rows[stream]))
            row_bytes = reading.row_bytes[stream]
            sizes = {count: len(out.data) for count, out in zip(row_bytes, outs, strict=True)}
            planned = {count: transfers(placement.moves, count, size) for count, size in sizes.items()}
            tasks += [
                Task(stream, depth, group, transfer, out)
                for depth, out in enumerate(outs)
                for group, transfer, want in zip(groups, planned[row_bytes[depth]], wanted.tolist(), strict=True)
                if want and transfer is not None
            ]
        if tasks:
            self._coming = [task[:3] for task in tasks]
            self._told = reading.chunks_ahead if self._follows else 1
            if self._number + 1 < len(self._order):
                self._coming += reading.first_chunks(self._order.groups_of(self._number + 1))
        return iter(tasks)

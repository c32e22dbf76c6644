"""Batches of packed rows, in an order that depends on nothing but its keys, within a stated budget of memory.

A block of `window` row groups is read at a time, by threads beside the consumer, and lies in memory in training
order; so a batch is a view of the block, and only a batch that straddles two blocks is put together by copying. Where
everything that is read fits the budget it stays in memory, and later epochs read nothing.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from . import keys
from .budget import Needs, Sizes, too_small
from .buffers import Allocate, ReadBuffers
from .destinations import BlockSlots, MemoryRows
from .errors import InvalidInput, StoreStale
from .order import BatchSize, EpochOrder
from .reader import Store
from .selection import Choice, Selection
from .session import Batch, Session


@dataclass(frozen=True)
class StreamReport:
    """What reading took so far.

    waited_seconds: the consumer's, in `next`; read_bytes: from shards, checksums included; chunks: how often one was
    read; verified_chunks: how often its crc32c was checked; buffer_bytes: allocated now, for all the streams that
    share them; mode: `ahead` (a block is read while another is consumed), `block` (only when it is needed) or `memory`
    (everything stays in memory, each chunk is read once).
    """

    waited_seconds: float
    read_bytes: int
    chunks: int
    verified_chunks: int
    buffer_bytes: int
    mode: Literal["ahead", "block", "memory"]


class Stream:
    """Reads the examples of a split batch by batch.

    The order of batches is a function of (seed, epoch, window, batch_examples or batch_tokens, order key of the
    split); ranks, threads and budget never change it. Of each of these global batches a rank gets its slice.
    """

    def __init__(
        self,
        store: Store,
        split: str,
        taps: Mapping[str, Sequence[int]],
        *,
        batch_examples: int | None = None,
        batch_tokens: int | None = None,
        window: int = 64,
        budget_bytes: int | None = None,
        buffers: ReadBuffers | None = None,
        seed: int = 0,
        shuffle: bool = True,
        segments: Mapping[str, Choice] | None = None,
        rank: int = 0,
        ranks: int = 1,
        threads: int = 1,
        in_memory: bool = True,
        allocate: Allocate = np.empty,
    ) -> None:
        """taps: by stream, the taps to read. segments: by stream, read `gold` segments only, or `all` (the
        default).

        batch_examples: examples of a global batch; or batch_tokens: its padded tokens, that is its examples times the
        tokens of the longest one (over all streams and segments of the store); examples of like length then share a
        batch. budget_bytes: what reading may hold; or `buffers`, which several streams share. threads: readers beside
        the consumer; 0: it reads itself. in_memory: whether all may stay in memory where it fits. allocate: as
        numpy.empty, called as allocate((bytes,), dtype=numpy.uint8).

        A rank that serves from blocks reads its own rows only, but for the first touch of each chunk, whose checksum
        covers all of it; in memory it keeps the whole split.

        Raises BudgetTooSmall, naming the bytes needed, and DataError for streams or taps that the store
        lacks.
        """
        if (batch_examples is None) == (batch_tokens is None):
            raise InvalidInput("a batch is cut by batch_examples or by batch_tokens: give one of the two")
        if (budget_bytes is None) == (buffers is None):
            raise InvalidInput("give a stream its budget_bytes, or the buffers that it shares")
        if budget_bytes is not None:
            buffers = ReadBuffers(budget_bytes, allocate)
        assert buffers is not None
        self.buffers = buffers
        for name, number in {"batch_examples": batch_examples, "batch_tokens": batch_tokens, "window": window}.items():
            if number is not None and number < 1:
                raise InvalidInput(f"{name} is {number}: at least 1 is needed")
        if threads < 0:
            raise InvalidInput(f"threads is {threads}: 0 reads in the caller, more read beside it")
        if not 0 <= rank < ranks:
            raise InvalidInput(f"rank {rank} of {ranks}: ranks are numbered from 0")
        self.store, self.split = store, split
        self.taps = {stream: tuple(numbers) for stream, numbers in taps.items()}
        self.batch_examples, self.batch_tokens, self.window = batch_examples, batch_tokens, window
        self.seed, self.shuffle, self.rank, self.ranks, self.threads = seed, shuffle, rank, ranks, threads
        self._selection = Selection(store, split, self.taps, segments)
        self._reading = self._selection.reading(rank, ranks)
        self._batch = BatchSize(batch_examples, batch_tokens)
        if batch_tokens is not None:
            self._selection.require_longest(batch_tokens)
        sizes = self._selection.sizes(self._batch, ranks)
        self._group_rows = sizes.group_rows
        self._in_memory = in_memory
        self._memory: MemoryRows | None = None
        self._needs = self._checked_needs(sizes)
        self.buffers.join(self)
        self._waited = 0.0
        self._settled = False
        self._counts: dict[int, int] = {}
        self._position = (0, 0)

    @property
    def needs(self) -> Needs:
        """Bytes that reading takes in the worst case."""
        return self._needs

    @property
    def reads_ahead(self) -> bool:
        """Whether a second block is of use: there are threads to read it, and another block."""
        return self.threads > 0 and self.window < len(self._selection.groups)

    @property
    def waited_seconds(self) -> float:
        """Seconds that the consumer spent in `next`."""
        return self._waited

    @property
    def read_bytes(self) -> int:
        """Bytes read from shards."""
        return self._reading.read_bytes

    @property
    def order_key(self) -> str:
        """What the order depends on beside seed, epoch, window and the size of batches."""
        return self._selection.order_key

    @property
    def batches_per_epoch(self) -> int:
        """Batches of one epoch; the last may be short. Of the first one, where batches are cut by tokens."""
        return self.batches_in(0)

    def batches_in(self, epoch: int) -> int:
        """Batches of an epoch; no data is read to count them."""
        key = 0 if self.batch_tokens is None else epoch
        if key not in self._counts:
            self._counts[key] = self._order(key).batches
        return self._counts[key]

    def report(self) -> StreamReport:
        """What reading took so far, and how it is done."""
        reading = self._reading
        return StreamReport(
            self._waited,
            reading.read_bytes,
            reading.chunks,
            reading.verified_chunks,
            self.buffers.held_bytes,
            "memory" if self._memory is not None else "ahead" if self.buffers.slots(self) == 2 else "block",
        )

    def epoch(self, number: int, start_batch: int = 0) -> Iterator[Batch]:
        """Batches of epoch `number`, from `start_batch` on; starting late costs one block.

        Arrays of a batch are valid until the next one is asked for, of this stream or of one that shares its buffers.
        """
        if number < 0 or not 0 <= start_batch <= self.batches_in(number):
            raise InvalidInput(f"epoch {number}, batch {start_batch}: an epoch has {self.batches_in(number)} batches")
        return self._batches(number, start_batch)

    def examples(self, number: int) -> Iterator[NDArray[np.int64]]:
        """The examples of every global batch of epoch `number`, by their places in written order; no data is read."""
        order = self._order(number)
        parts: list[NDArray[np.int64]] = []
        for block in map(order.block, range(len(order))):
            for piece in block.pieces:
                parts.append(block.examples[piece.first : piece.first + piece.count])
                if piece.offset + piece.count == piece.size:
                    yield np.concatenate(parts)
                    parts = []

    def state_dict(self) -> dict[str, int | str | bool | None]:
        """Where the stream is: the epoch, and the next batch of it. Every rank has the same."""
        epoch, batch = self._position
        return {
            "seed": self.seed,
            "epoch": epoch,
            "batch": batch,
            "batch_examples": self.batch_examples,
            "batch_tokens": self.batch_tokens,
            "window": self.window,
            "shuffle": self.shuffle,
            "order_key": self._selection.order_key,
        }

    def load_state_dict(self, state: Mapping[str, int | str | bool | None]) -> None:
        """Go to where another stream was; `epoch(state["epoch"], state["batch"])` continues there.

        Raises StoreStale where the state belongs to another order, or to another store.
        """
        own = self.state_dict()
        if set(state) != set(own):
            raise StoreStale(f"the stream's state has keys {sorted(state)}, {sorted(own)} are needed")
        changed = [
            f"{name}: {keys.shown(state[name])} in the state, {keys.shown(own[name])} here"
            for name in own
            if name not in ("epoch", "batch") and state[name] != own[name]
        ]
        if changed:
            raise StoreStale(f"the stream's state belongs to another order of batches: {'; '.join(changed)}")
        self._position = int(state["epoch"] or 0), int(state["batch"] or 0)

    def _batches(self, epoch: int, start_batch: int) -> Iterator[Batch]:
        self._position = epoch, start_batch
        begun = time.perf_counter()
        order = self._order(epoch)
        batch, count = start_batch, order.batches
        while batch < count:
            session = self._session(order, batch)
            try:
                for number, found in session.batches:
                    batch = number + 1
                    self._position = epoch, batch
                    self._waited += time.perf_counter() - begun
                    yield found
                    del found
                    begun = time.perf_counter()
                    if session.closed:  # another stream has the buffers: go on with a session of its own
                        break
            finally:
                session.close()
        self._waited += time.perf_counter() - begun

    def _session(self, order: EpochOrder, batch: int) -> Session:
        memory = self._all_rows()
        if memory is not None:
            return Session(self._reading, order, batch, memory, 0 if memory.complete else self.threads)
        sessions: list[Session] = []
        lease = self.buffers.lease(self, lambda: sessions[0].close() if sessions else None)
        destination = BlockSlots(self._reading, self._needs, lease.memory, lease.slots)
        sessions.append(Session(self._reading, order, batch, destination, self.threads))
        return sessions[0]

    def _all_rows(self) -> MemoryRows | None:
        """Where everything stays in memory; None where it does not fit."""
        self.buffers.settle()
        return self._memory

    def settle(self) -> None:
        """Take memory for everything, once, where it fits; for the buffers to call."""
        if not self._settled:
            self._settled = True
            memory = self.buffers.reserve(self) if self._in_memory else None
            if memory is not None:
                self._memory = MemoryRows(self._reading, self._needs, memory, self._group_rows, self._selection.groups)

    def _order(self, epoch: int) -> EpochOrder:
        return EpochOrder(
            self._selection.groups,
            self._selection.first_examples,
            self._selection.tokens,
            batch=self._batch,
            order_key=self._selection.order_key,
            seed=self.seed,
            epoch=epoch,
            window=self.window,
            shuffle=self.shuffle,
        )

    def _checked_needs(self, sizes: Sizes) -> Needs:
        joins = self.batch_tokens is None
        needs = sizes.needs(self.window, self.threads, joins=joins)
        left = self.buffers.left_bytes
        if needs.by_blocks(1) > left:
            fits = sizes.largest_window(left, self.threads, joins=joins)
            raise too_small(left, self.window, needs, fits, sizes.needs(1, self.threads, joins=joins))
        return needs

"""Batches of packed rows, in an order that depends on nothing but its keys, within a stated budget of memory.

A block of `window` row groups is read at a time: each chunk goes through a bounce buffer (its crc32c checked
the first time this stream sees it) and every example's rows are copied to their final place in the block,
which lies in training order; so a batch is a view of the block, and only a batch that straddles two blocks is
put together by copying.
"""

import queue
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from . import keys
from .budget import check_budget
from .errors import InvalidInput, StoreStale
from .order import EpochOrder
from .placement import Moves, Placement, SegmentChoice
from .reader import Store
from .shards import CRC_BYTES

Choice = Literal["gold", "all"]
Allocate = Callable[..., NDArray[Any]]

_CHOICES: Final = ("gold", "all")


@dataclass(frozen=True)
class PackedRows:
    """Rows of one stream of a batch: example after example, segment after segment, without padding.

    taps: [K, N, stored_width] as stored, taps in the order asked for; lengths: [S] rows of each segment, they sum to
    N; counts: [B] segments of each example, they sum to S.
    """

    taps: NDArray[Any]
    lengths: NDArray[np.int32]
    counts: NDArray[np.int32]


@dataclass(frozen=True)
class Batch:
    """Examples [B], as positions in written order, and their rows by stream."""

    examples: NDArray[np.int64]
    streams: dict[str, PackedRows]


@dataclass(frozen=True)
class _Loaded:
    """A block in memory, in training order: rows [K, rows of the block, width] by stream, and where they
    lie.
    """

    examples: NDArray[np.int64]
    rows: dict[str, NDArray[Any]]
    placements: dict[str, Placement]


class Stream:
    """Reads the examples of a split batch by batch.

    The order of batches is a function of (seed, epoch, window, batch_examples, order key of the split);
    threads and budget never change it. `waited_seconds` and `read_bytes` add up what reading took.
    """

    def __init__(
        self,
        store: Store,
        split: str,
        taps: Mapping[str, Sequence[int]],
        *,
        batch_examples: int,
        window: int = 64,
        budget_bytes: int,
        seed: int = 0,
        shuffle: bool = True,
        segments: Mapping[str, Choice] | None = None,
        threads: int = 1,
        allocate: Allocate = np.empty,
    ) -> None:
        """taps: by stream, the taps to read. segments: by stream, read `gold` segments only, or `all` (the
        default).

        Raises BudgetTooSmall, naming the bytes needed, and DataError for streams or taps that the store
        lacks.
        """
        for name, number in {"batch_examples": batch_examples, "window": window, "threads": threads}.items():
            if number < 1:
                raise InvalidInput(f"{name} is {number}: at least 1 is needed")
        choices = dict(segments or {})
        for stream, choice in choices.items():
            if stream not in taps or choice not in _CHOICES:
                raise InvalidInput(f"segments of {stream!r}: {choice!r}: gold or all, of a stream that is read")
        self.store, self.split = store, split
        self.taps = {stream: tuple(numbers) for stream, numbers in taps.items()}
        self.batch_examples, self.window, self.seed, self.shuffle = batch_examples, window, seed, shuffle
        self.waited_seconds = 0.0
        self.read_bytes = 0
        self._plans = {s: store.stream_plan(split, s, numbers) for s, numbers in self.taps.items()}
        if not self.taps or not all(self.taps.values()):
            raise InvalidInput("taps: at least one stream with at least one tap is needed")
        self._table = store.examples(split)
        self._groups = store.groups(split)
        self._order_key = self._served_key()
        self._choices = {
            stream: SegmentChoice(
                self._table.lengths[stream],
                self._table.first_examples,
                self._table.gold if choices.get(stream) == "gold" else None,
            )
            for stream in self.taps
        }
        self._examples = int(np.diff(self._table.first_examples)[self._groups].sum())
        self._threads, self._allocate = threads, allocate
        self._verified = {
            (s, tap): np.zeros(store.split(split).groups, np.bool_) for s, n in self.taps.items() for tap in n
        }
        self._bounce_bytes = max(store.chunk_bytes(plan) for plan in self._plans.values()) + CRC_BYTES
        check_budget(
            budget_bytes,
            window,
            group_bytes=self._group_bytes(),
            example_bytes=self._example_bytes(),
            batch_examples=batch_examples,
            fixed_bytes=threads * max(store.reading_bytes(plan) for plan in self._plans.values()),
        )
        self._position = (0, 0)

    @property
    def batches_per_epoch(self) -> int:
        """Batches of one epoch; the last may be short."""
        return -(-self._examples // self.batch_examples)

    @property
    def order_key(self) -> str:
        """What the order depends on beside seed, epoch, window and batch."""
        return self._order_key

    def epoch(self, number: int, start_batch: int = 0) -> Iterator[Batch]:
        """Batches of epoch `number`, from `start_batch` on; starting late costs one block.

        Arrays of a batch may be views; they stay valid as long as they are held.
        """
        if number < 0 or not 0 <= start_batch <= self.batches_per_epoch:
            raise InvalidInput(f"epoch {number}, batch {start_batch}: an epoch has {self.batches_per_epoch} batches")
        return self._batches(number, start_batch)

    def state_dict(self) -> dict[str, int | str]:
        """Where the stream is: the epoch, and the next batch of it."""
        epoch, batch = self._position
        return {
            "seed": self.seed,
            "epoch": epoch,
            "batch": batch,
            "batch_examples": self.batch_examples,
            "window": self.window,
            "order_key": self._order_key,
        }

    def load_state_dict(self, state: Mapping[str, int | str]) -> None:
        """Go to where another stream was; `epoch(state["epoch"], state["batch"])` continues there.

        Raises StoreStale where the state belongs to another order, or to another store.
        """
        own = self.state_dict()
        if set(state) != set(own):
            raise StoreStale(f"the stream's state has keys {sorted(state)}, {sorted(own)} are needed")
        changed = [
            f"{name}: {keys.shown(state[name])} in the state, {keys.shown(own[name])} here"
            for name in ("seed", "batch_examples", "window", "order_key")
            if state[name] != own[name]
        ]
        if changed:
            raise StoreStale(f"the stream's state belongs to another order of batches: {'; '.join(changed)}")
        self._position = int(state["epoch"]), int(state["batch"])

    def _batches(self, epoch: int, start_batch: int) -> Iterator[Batch]:
        order = EpochOrder(
            self._groups,
            self._table.first_examples,
            order_key=self._order_key,
            seed=self.seed,
            epoch=epoch,
            window=self.window,
            shuffle=self.shuffle,
        )
        self._position = epoch, start_batch
        place = start_batch * self.batch_examples
        number = int(np.searchsorted(order.starts, place, side="right")) - 1
        parts: list[Batch] = []
        with ThreadPoolExecutor(self._threads, thread_name_prefix="sherl-cache-read") as pool:
            bounces = self._bounce_buffers()
            for block in range(number, len(order)):
                loaded = self._load(order, block, pool, bounces)
                at = place - int(order.starts[block])
                while at < len(loaded.examples):
                    wanted = self.batch_examples - sum(len(part.examples) for part in parts)
                    stop = min(at + wanted, len(loaded.examples))
                    # The last piece is copied, so that the block is free once the next one is read.
                    parts.append(_cut(loaded, at, stop, copy=stop == len(loaded.examples)))
                    place, at = place + stop - at, stop
                    if place % self.batch_examples == 0 or place == self._examples:
                        batch, parts = _join(parts), []
                        self._position = epoch, -(-place // self.batch_examples)
                        yield batch
                        del batch
                del loaded

    def _load(
        self, order: EpochOrder, number: int, pool: ThreadPoolExecutor, bounces: "queue.SimpleQueue[Any]"
    ) -> _Loaded:
        begun = time.perf_counter()
        block = order.block(number)
        rows: dict[str, NDArray[Any]] = {}
        placements: dict[str, Placement] = {}
        tasks: list[tuple[str, int, int, Moves]] = []
        for stream, plan in self._plans.items():
            placement = self._choices[stream].place(block.groups, block.examples)
            placements[stream] = placement
            shape = (len(self.taps[stream]), placement.rows, plan.stored_width)
            rows[stream] = self._allocate(shape, dtype=self.store.encoding.dtype)
            tasks += [
                (stream, depth, int(group), moves)
                for depth in range(len(self.taps[stream]))
                for group, moves in zip(block.groups, placement.moves, strict=True)
                if len(moves)
            ]

        def fetch(task: tuple[str, int, int, Moves]) -> int:
            stream, depth, group, moves = task
            bounce = bounces.get()
            try:
                return self._fetch(stream, depth, group, moves, rows[stream][depth], bounce)
            finally:
                bounces.put(bounce)

        self.read_bytes += sum(pool.map(fetch, tasks) if self._threads > 1 else map(fetch, tasks))
        self.waited_seconds += time.perf_counter() - begun
        return _Loaded(block.examples, rows, placements)

    def _fetch(
        self, stream: str, depth: int, group: int, moves: Moves, out: NDArray[Any], bounce: NDArray[np.uint8]
    ) -> int:
        """Read one chunk and copy its examples to their places; the bytes read."""
        tap = self.taps[stream][depth]
        seen = self._verified[stream, tap]
        raw = bounce[: self.store.chunk_bytes(self._plans[stream]) + CRC_BYTES]
        chunk = self.store.read_chunk(self.split, stream, tap, group, raw, verify=not seen[group])
        seen[group] = True
        for source, target, count in moves:
            out[target : target + count] = chunk[source : source + count]
        return raw.nbytes

    def _bounce_buffers(self) -> "queue.SimpleQueue[Any]":
        buffers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(self._threads):
            buffers.put(np.empty(self._bounce_bytes, dtype=np.uint8))
        return buffers

    def _example_bytes(self) -> NDArray[np.int64]:
        """Bytes of each example in all that is read: [examples]."""
        sizes = np.zeros(len(self._table), dtype=np.int64)
        for stream, plan in self._plans.items():
            row = plan.stored_width * self.store.encoding.itemsize * len(self.taps[stream])
            sizes += self._choices[stream].rows_per_example() * row
        return sizes

    def _group_bytes(self) -> NDArray[np.int64]:
        return np.add.reduceat(self._example_bytes(), self._table.first_examples[:-1])[self._groups]

    def _served_key(self) -> str:
        plan = self.store.split(self.split)
        if len(self._groups) == plan.held_groups:
            return plan.order_key
        if not len(self._groups):
            raise InvalidInput(f"{self.store.root}: no unit of {self.split} is committed yet, nothing can be read")
        return keys.digest([plan.order_key, self._groups.tolist()])


def _cut(block: _Loaded, start: int, stop: int, *, copy: bool) -> Batch:
    streams = {}
    for stream, placed in block.placements.items():
        rows = block.rows[stream][:, placed.row_starts[start] : placed.row_starts[stop]]
        segments = slice(placed.segment_starts[start], placed.segment_starts[stop])
        streams[stream] = PackedRows(rows.copy() if copy else rows, placed.lengths[segments], placed.counts[start:stop])
    return Batch(block.examples[start:stop].copy(), streams)


def _join(parts: list[Batch]) -> Batch:
    if len(parts) == 1:
        return parts[0]
    streams = {
        stream: PackedRows(
            np.concatenate([part.streams[stream].taps for part in parts], axis=1),
            np.concatenate([part.streams[stream].lengths for part in parts]),
            np.concatenate([part.streams[stream].counts for part in parts]),
        )
        for stream in parts[0].streams
    }
    return Batch(np.concatenate([part.examples for part in parts]), streams)

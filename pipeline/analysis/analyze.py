"""Statistics of a store's layers with dask.array: every chunk is read once for what is summed over rows, and those that hold a
drawn row once more for the sample. The store is never held in memory; chunks are checked and decoded on their way.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

import dask.array as da
import numpy as np
from dask.base import compute
from dask.callbacks import Callback

from ...storage import decode
from ...storage.shards import CRC_BYTES
from .moments import Moments
from .work import SPLIT_EVERY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from ...storage import Store
    from .work import Work

_KEYS: Final = "moments-of-rows"


class StreamArrays:
    """One stream of a split as dask arrays whose blocks are read when they are computed."""

    def __init__(self, store: Store, split: str, stream: str, work: Work) -> None:
        self.store, self.split, self.stream, self.work = store, split, stream, work
        self.plan = store.stream_plan(split, stream)
        self.dtype = np.dtype(np.float64 if store.encoding.numbers == "float64" else np.float32)
        calibration = store.calibration(split, stream)
        self._channels = [None if calibration is None else calibration.tap(tap) for tap in self.plan.taps]
        self._stopped = threading.Event()

    def moments(self) -> da.Array:
        """[tasks, shape.sums + shape.extremes]: `Moments.vector` of the row groups of each task."""
        size = self.work.shape.sums + self.work.shape.extremes
        found: da.Array = da.map_blocks(
            self._moments_of_a_task,
            chunks=((1,) * len(self.work.spans), (size,)),
            dtype=np.float64,
            meta=np.empty((0, 0)),
            name=_KEYS,
        )
        return found

    def sample(self) -> da.Array:
        """[K, rows drawn, D]."""
        shape = self.work.shape
        found: da.Array = da.map_blocks(
            self._sample_of_a_task,
            chunks=((shape.taps,), self.work.sample.counts, (shape.width,)),
            dtype=self.dtype,
            meta=np.empty((0, 0, 0), self.dtype),
            name="rows-drawn",
        )
        return found

    def compute(self, told: Callable[[int], None]) -> tuple[Moments, NDArray[Any]]:
        """The moments of all rows, and the sample [K, n, D]; `told` hears of the row groups that were summed.

        Raises StoreCorrupt for a damaged chunk. Stopped by an exception, it leaves no thread behind.
        """
        shape, work = self.work.shape, self.work
        partial = self.moments()
        sums = partial[:, : shape.sums].sum(axis=0, split_every=SPLIT_EVERY)
        extremes = partial[:, shape.sums :].max(axis=0, split_every=SPLIT_EVERY)

        def done(key: Any, *_: Any) -> None:
            if isinstance(key, tuple) and key[0] == _KEYS:
                told(len(work.spans[key[1]]))

        drawn = np.empty((shape.taps, sum(work.sample.counts), shape.width), self.dtype)
        pool = ThreadPoolExecutor(work.threads)
        try:
            # the pool itself: asked for threads by name, dask would import its distributed scheduler first
            with self.store.keeping():
                with Callback(posttask=done):
                    vectors = compute(sums, extremes, scheduler=pool, optimize_graph=False)
                if drawn.size:
                    da.store(self.sample(), drawn, lock=False, scheduler=pool)
        finally:
            self._stopped.set()
            pool.shutdown(cancel_futures=True)
        return Moments(shape, np.concatenate(vectors)), drawn

    def _moments_of_a_task(self, block_id: tuple[int, int]) -> NDArray[np.float64]:
        work = self.work
        moments = Moments(work.shape)
        directions = np.empty((work.shape.taps, work.height * work.shape.width), self.dtype)
        memory = self._memory()
        for place in work.spans[block_id[0]].tolist():
            group, held = int(work.groups[place]), int(work.rows[place])
            for first in range(0, held, work.height):
                moments.add(self._decoded(group, memory, slice(first, min(first + work.height, held))), directions)
        return moments.vector[None]

    def _sample_of_a_task(self, block_id: tuple[int, int, int]) -> NDArray[Any]:
        sample, number = self.work.sample, block_id[1]
        rows, owners = sample.rows[number], sample.owners[number]
        out = np.empty((self.work.shape.taps, len(rows), self.work.shape.width), self.dtype)
        memory = self._memory()
        for group in sample.groups[number].tolist():
            mine = np.flatnonzero(owners == group)
            for tap, values in enumerate(self._decoded(group, memory, rows[mine])):
                out[tap, mine] = values
        return out

    def _decoded(
        self, group: int, memory: NDArray[np.uint8], rows: slice | NDArray[np.int64]
    ) -> Iterator[NDArray[Any]]:
        """Some rows of a row group, one tap after another: [n, D]."""
        for tap, channels in zip(self.plan.taps, self._channels, strict=True):
            if self._stopped.is_set():
                raise InterruptedError
            chunk = self.store.read_chunk(self.split, self.stream, tap, group, memory, verify=True)
            yield decode(chunk[rows], self.store.encoding, channels)

    def _memory(self) -> NDArray[np.uint8]:
        return np.empty(self.store.chunk_bytes(self.plan) + CRC_BYTES, np.uint8)

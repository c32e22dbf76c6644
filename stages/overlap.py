"""Writing beside the forward: what a front computes is copied, encoded and committed while it computes on.

Two threads, since both have much to do: one copies taps to the host and puts them into the buffer of their unit, the
other commits the unit before. What waits is bounded: taps of two forwards, buffers of two units.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

import torch

from ..storage.errors import SherlCacheError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import TracebackType

    import numpy as np
    from numpy.typing import NDArray

    from ..storage import StoreWriter, Unit, UnitBuffer
    from .methods.contract import Packed

FORWARDS = 2
"""Forwards whose taps may wait to be encoded, the one at work included."""
UNITS = 2
"""Unit buffers in memory: one is filled, one is committed."""


def put_taps(buffer: UnitBuffer, taps: Mapping[str, Packed], places: Mapping[str, NDArray[np.int64]]) -> None:
    """Put the taps [K, N, width] of each stream into their physical rows [N] of a unit."""
    for name, packed in taps.items():
        for tap, values in zip(packed.depths, packed.taps, strict=True):
            buffer.put(name, tap, places[name], as_numpy(values))


def as_numpy(values: torch.Tensor) -> NDArray[Any]:
    """States on the host as float32 (float64 where they are)."""
    host = values.cpu()
    numbers: NDArray[Any] = (host if host.dtype in (torch.float32, torch.float64) else host.float()).numpy()
    return numbers


class UnitQueue:
    """Takes taps as they are computed, unit after unit, and commits each unit once all of its taps are in.

    An error of either thread is raised by the next call, or at the end of the context, and names its unit, which is not
    committed. When the context is left by an error, what waits is dropped; a commit that has begun is finished first.
    When it is left because an end was asked for, every unit that is whole is committed.
    """

    def __init__(self, writer: StoreWriter) -> None:
        self._writer = writer
        self._encoder = ThreadPoolExecutor(1, "sherl-cache encode")
        self._committer = ThreadPoolExecutor(1, "sherl-cache commit")
        self._puts: deque[Future[None]] = deque()
        self._commits: deque[Future[None]] = deque()
        self._filling: _Filling | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._await(self._puts, 0)
                self._await(self._commits, 0)
        finally:
            for pool in (self._encoder, self._committer):
                pool.shutdown(wait=True, cancel_futures=not isinstance(error, KeyboardInterrupt))

    def begin(self, unit: Unit, taps: Mapping[str, tuple[int, ...]]) -> None:
        """Begin a unit, in these taps of each stream; waits while as many buffers as may be are in memory."""
        self._await(self._commits, UNITS - 1)
        self._filling = _Filling(self._writer, unit, taps)

    def put(self, taps: Mapping[str, Packed], places: Mapping[str, NDArray[np.int64]]) -> None:
        """Hand over taps of one forward, all or some, which must not be written to again; waits while too many wait already."""
        assert self._filling is not None
        self.check()
        self._await(self._puts, FORWARDS - 1)
        put = self._encoder.submit(self._filling.put, taps, places)
        self._filling.puts.append(put)
        self._puts.append(put)

    def commit(self) -> None:
        """Every row of the unit was put: commit it once they are encoded."""
        assert self._filling is not None
        self._commits.append(self._committer.submit(self._filling.commit))
        self._filling = None

    def check(self) -> None:
        """Raise the first error there was."""
        for waiting in (self._commits, self._puts):
            while waiting and waiting[0].done():
                waiting.popleft().result()

    @staticmethod
    def _await(waiting: deque[Future[None]], most: int) -> None:
        while len(waiting) > most:
            waiting.popleft().result()


class _Filling:
    """One unit on its way; its buffer is made by the thread that fills it and freed once it is committed."""

    def __init__(self, writer: StoreWriter, unit: Unit, taps: Mapping[str, tuple[int, ...]]) -> None:
        self.puts: list[Future[None]] = []
        self._writer, self._unit, self._taps = writer, unit, taps
        self._buffer: UnitBuffer | None = None

    def put(self, taps: Mapping[str, Packed], places: Mapping[str, NDArray[np.int64]]) -> None:
        with _naming(self._unit):
            if self._buffer is None:
                self._buffer = self._writer.buffer(self._unit, self._taps)
            put_taps(self._buffer, taps, places)

    def commit(self) -> None:
        for put in self.puts:
            put.result()
        with _naming(self._unit):
            assert self._buffer is not None
            self._writer.write(self._unit, self._buffer)
        self._buffer = None


@contextmanager
def _naming(unit: Unit) -> Iterator[None]:
    """An error says which unit it met: in its message if it is one of ours, else in a note."""
    told = f"unit {unit.name}"
    try:
        yield
    except SherlCacheError as error:
        if told in str(error):
            raise
        raise type(error)(f"{told}: {error}") from error
    except BaseException as error:
        error.add_note(told)
        raise

"""Several runs trained side by side from one read: each batch is fetched and decoded once, then every run takes its step.

A step seeds torch from (seed, step) and runs share nothing that trains, so each computes what it would alone.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch

from ..storage.errors import Interrupted, InvalidInput
from .data import decoders_of, packed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from ..storage import Batch, Stream
    from .data import StoreBatches
    from .evaluate import Evaluation, Evaluator
    from .methods.contract import Packed
    from .steps import TrainBatch
    from .train import Recorder, TrainingLoop


@dataclass(eq=False)
class Side:
    """One run among others. evaluator: makes what scores an epoch, None without validation; keep: what becomes of its
    scores, see TrainingLoop.close_epoch; failure: why it stopped before its end.
    """

    loop: TrainingLoop
    batches: StoreBatches
    recorder: Recorder
    evaluator: Callable[[], Evaluator] | None
    keep: Callable[[Evaluation], tuple[float, dict[str, Any]]]
    failure: str | None = None

    @property
    def ended(self) -> bool:
        return self.loop.ended or self.failure is not None


def train_side_by_side(
    sides: Sequence[Side],
    train: Stream,
    validation: Stream | None,
    device: torch.device,
    asked: Callable[[], bool] = lambda: False,
) -> None:
    """Take every run from where it stands to its end.

    Those that stand behind are taken along first: reading begins at the earliest place, and a run joins when its own
    place is reached. One that stops early, or whose loss stops being finite, leaves the others alone. asked: whether all are
    to end after the batch at hand; then they are saved where they stand, and Interrupted is raised.
    """
    learning = SharedBatches(train, device, asked)
    held_out = None if validation is None else SharedBatches(validation, device, asked)
    while running := [side for side in sides if not side.ended]:
        epoch = min(side.loop.at.epoch for side in running)
        here = [side for side in running if side.loop.at.epoch == epoch]
        try:
            _run_epoch(here, learning, epoch)
            _close_epoch([side for side in here if side.failure is None], held_out)
        except Interrupted:
            for side in running:
                if side.failure is None:
                    side.loop.save(side.recorder)
            raise


class Taker(Protocol):
    """Who takes part in a pass over a split: an Evaluator, or PooledStates."""

    @property
    def batches(self) -> StoreBatches: ...
    @property
    def full(self) -> bool:
        """Whether it wants no more."""
        ...

    def add(self, examples: NDArray[np.int64], batch: TrainBatch) -> None: ...


class SharedBatches:
    """Batches of a stream with all of its taps, decoded once."""

    def __init__(self, stream: Stream, device: torch.device, asked: Callable[[], bool] = lambda: False) -> None:
        """asked: whether reading is to end after the batch at hand."""
        self.stream = stream
        self._device, self._asked = device, asked
        self._decoders = decoders_of(stream, stream.taps, device)

    def decoded(self, batch: Batch) -> dict[str, Packed]:
        """Every tap of every stream of a batch."""
        taps = self.stream.taps
        return {name: packed(rows, taps[name], self._decoders[name]) for name, rows in batch.streams.items()}

    def give(self, takers: Sequence[Taker]) -> None:
        """Every batch of the first epoch to those that take it, for as long as one does."""
        for batch in self.stream.epoch(0):
            taking = [taker for taker in takers if not taker.full]
            if not taking:
                return
            decoded = self.decoded(batch)
            for taker in taking:
                taker.add(batch.examples, taker.batches.convert(batch, decoded))
            self.release()
            self.heed()

    def heed(self) -> None:
        """Raise Interrupted where an end was asked for."""
        if self._asked():
            raise Interrupted("the runs of this sweep were asked to end, and are saved where they stand")

    def release(self) -> None:
        """Wait until a GPU has taken what was copied; the next batch may overwrite it."""
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()


def _run_epoch(sides: Sequence[Side], shared: SharedBatches, epoch: int) -> None:
    number = min(side.loop.at.batch for side in sides)
    source = shared.stream.epoch(epoch, number)
    while True:
        begun, waited = time.perf_counter(), shared.stream.waited_seconds
        batch = next(source, None)
        if batch is None:
            return
        taking = [side for side in sides if side.failure is None and side.loop.at.batch == number]
        whole = any(side.batches.micro_examples is None for side in taking)
        decoded = shared.decoded(batch) if whole else None
        share = max(len(taking), 1)
        read = (time.perf_counter() - begun) / share
        stall = (shared.stream.waited_seconds - waited) / share
        for side in taking:
            try:
                side.loop.take(side.batches.step(batch, decoded), side.recorder, read, stall)
            except InvalidInput as error:
                side.failure = str(error)
        shared.release()
        number += 1
        if all(side.failure is not None for side in sides):
            return
        shared.heed()


def _close_epoch(sides: Sequence[Side], shared: SharedBatches | None) -> None:
    scored = [(side, side.evaluator()) for side in sides if side.evaluator is not None]
    if shared is not None and scored:
        begun = time.perf_counter()
        shared.give([evaluator for _, evaluator in scored])
        for side, _ in scored:
            side.loop.at.seconds += (time.perf_counter() - begun) / len(scored)
    found = {side: side.keep(evaluator.result()) for side, evaluator in scored}
    for side in sides:
        score, record = found.get(side, (None, {}))
        side.loop.close_epoch(side.recorder, score, record)

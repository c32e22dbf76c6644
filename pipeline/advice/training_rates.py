"""How fast a recipe trains on this machine: from a store whose taps are in memory, and with the early layers in every step."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from itertools import count
from typing import TYPE_CHECKING, Final

from pydantic import ByteSize

from ...stages.evaluate import evaluate
from ...storage import ReadBuffers
from ..reading import open_stream
from ..training import Recorder, Silent, Training
from .live import LiveBatches

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ...stages.data import StoreBatches
    from ...stages.preparation import Preparation
    from ...stages.steps import Step
    from ...storage import Store
    from ..recipe import Recipe

_EPOCHS: Final = 1000
"""Of the schedule: it does not end while steps are timed."""
_RATE: Final = 1e-6
"""Learning rate: the sample is seen many times, and no loss may run away."""
_BUDGET: Final = 1 << 30
_WARM_UP: Final = 2
_LEAST_STEPS: Final = 3
_TRIMMED: Final = 0.1
"""Share of the steps left out at each end, the quickest and the slowest."""
_DRAIN_SECONDS: Final = 0.2


@dataclass(frozen=True)
class TrainingRates:
    """Examples a second of each way, infinite for a split that is not there; bytes a second of the reader, from the page
    cache; values that are read of an example; and the taps that the recipe reads.
    """

    cached_step: float
    live_step: float
    cached_validation: float
    live_validation: float
    warm: float
    train_values: float
    validation_values: float
    reads: Mapping[str, tuple[int, ...]]


def measure_training(recipe: Recipe, prepared: Preparation, store: Store, seconds: float) -> TrainingRates:
    """A recipe over a small store, within about `seconds`, but a few steps of each way at least.

    The two ways take their steps in turn, on the same batches, so that a machine that slows down slows both.
    """
    training = Training.of(_for_timing(recipe), store)
    split = {"train": training.batches} | ({} if training.validation is None else {"validation": training.validation})
    live = {name: LiveBatches(batches, prepared.loaded, prepared.batches) for name, batches in split.items()}
    values = {name: _values(batches, prepared.widths) for name, batches in split.items()}  # reads all into memory
    cached_steps, live_steps = _Steps(training, training.batches), _Steps(training, live["train"])
    begun = time.perf_counter()
    for number in count():
        if number >= _LEAST_STEPS and time.perf_counter() - begun > seconds:
            break
        cached_steps.take()
        live_steps.take()
    return TrainingRates(
        cached_step=cached_steps.rate,
        live_step=live_steps.rate,
        cached_validation=_validation(training, split.get("validation")),
        live_validation=_validation(training, live.get("validation")),
        warm=_warm(recipe, training),
        train_values=values["train"],
        validation_values=values.get("validation", 0.0),
        reads=dict(training.model.reads),
    )


def _for_timing(recipe: Recipe) -> Recipe:
    """The same work without checkpoints, from memory, for as long as it takes."""
    train = {"epochs": _EPOCHS, "learning_rate": _RATE, "patience": None, "checkpoint_steps": 1 << 40}
    budget = ByteSize(max(recipe.data.read_budget, _BUDGET))
    return recipe.model_copy(
        update={
            "train": recipe.train.model_copy(update=train),
            "late": recipe.late.model_copy(update={"learning_rate": _RATE}),
            "data": recipe.data.model_copy(update={"read_budget": budget}),
        }
    )


class _Steps:
    """Steps of one way, each timed from asking for its batch to the end of the update."""

    def __init__(self, training: Training, batches: StoreBatches) -> None:
        self._loop, self._recorder = training.loop, Recorder(None, Silent(), training.batches.stream.buffers)
        self._source = self._endless(batches)
        self._waiting = _WARM_UP
        self._taken: list[tuple[float, int, int]] = []
        """Seconds, examples and tokens of each."""

    def take(self) -> None:
        """One step, and those that warm up before the first."""
        while self._waiting:
            self._waiting -= 1
            self._loop.take(next(self._source), self._recorder, 0.0, 0.0)
        begun = time.perf_counter()
        step = next(self._source)
        self._loop.take(step, self._recorder, 0.0, 0.0)
        self._taken.append((time.perf_counter() - begun, step.examples, step.tokens))

    @property
    def rate(self) -> float:
        """Examples a second."""
        taken = sorted(self._taken, key=lambda each: each[0] / max(each[2], 1))
        cut = int(len(taken) * _TRIMMED)
        kept = taken[cut : len(taken) - cut]
        return sum(examples for _, examples, _ in kept) / sum(seconds for seconds, _, _ in kept)

    @staticmethod
    def _endless(batches: StoreBatches) -> Iterator[Step]:
        for epoch in count():
            yield from batches.steps(epoch)


def _values(batches: StoreBatches, widths: Mapping[str, Mapping[int, int]]) -> float:
    """Values that are read of an example, from one pass over all of them."""
    values = examples = 0
    for batch in batches.stream.epoch(0):
        examples += len(batch.examples)
        for name, rows in batch.streams.items():
            values += int(rows.lengths.sum()) * sum(widths[name][tap] for tap in batches.stream.taps[name])
    return values / examples


def _validation(training: Training, batches: StoreBatches | None) -> float:
    """Examples a second of a validation, infinite where there is none."""
    if batches is None:
        return float("inf")
    taken = []
    for _ in range(2):  # the first one warms up
        begun = time.perf_counter()
        found = evaluate(replace(training, validation=batches).evaluator())
        taken.append(time.perf_counter() - begun)
    return len(found.predictions) / taken[-1]


def _warm(recipe: Recipe, training: Training) -> float:
    """Bytes a second of reading the training split without training on it."""
    read, spent = 0, 0.0
    while spent < _DRAIN_SECONDS:
        buffers = ReadBuffers(_BUDGET)
        stream = open_stream(recipe.data, training.store, [training.model], "train", buffers)
        begun = time.perf_counter()
        for _ in stream.epoch(0):
            pass
        spent += time.perf_counter() - begun
        read += stream.read_bytes
    return read / spent

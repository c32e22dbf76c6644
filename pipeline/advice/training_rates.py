"""How fast a recipe trains on this machine: from a store whose taps are in memory, and with the early layers in every step."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Final

from pydantic import ByteSize

from ...stages.evaluate import evaluate
from ...storage import ReadBuffers
from ..reading import open_stream
from ..training import Recorder, Silent, Training
from .live import LiveBatches
from .turns import Timer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

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


class SampleTraining:
    """A recipe over a small store: a timer for steps and validations of each way, by the names of the rates."""

    def __init__(self, recipe: Recipe, prepared: Preparation, store: Store) -> None:
        self.recipe = recipe
        self.training = training = Training.of(_for_timing(recipe), store)
        splits = {"step": training.batches, "validation": training.validation}
        self._values = {name: 0.0 for name in splits}
        self.timers: dict[str, Timer] = {}
        for name, cached in splits.items():
            if cached is None:
                continue
            self._values[name] = _values(cached, prepared.widths)  # reads all of it into memory
            live = LiveBatches(cached, prepared.loaded, prepared.batches)
            for way, batches in (("cached", cached), ("live", live)):
                work = _steps(training, batches) if name == "step" else partial(_validate, training, batches)
                # steps have warmed up what a validation runs
                once = {} if name == "step" else {"warm_up": 0, "least": 1}
                self.timers[f"{way}_{name}"] = Timer(work, **once)

    def rates(self) -> TrainingRates:
        """What the timers found."""
        found = {name: timer.rate for name, timer in self.timers.items()}
        absent = dict.fromkeys(("cached_validation", "live_validation"), float("inf"))
        return TrainingRates(
            **{**absent, **found},
            warm=_warm(self.recipe, self.training),
            train_values=self._values["step"],
            validation_values=self._values["validation"],
            reads=dict(self.training.model.reads),
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


def _steps(training: Training, batches: StoreBatches) -> Callable[[], tuple[int, int]]:
    """What takes one step, from asking for its batch to the end of the update."""
    loop, recorder = training.loop, Recorder(None, Silent(), training.batches.stream.buffers)

    def endless() -> Iterator[Step]:
        for epoch in count():
            yield from batches.steps(epoch)

    source = endless()

    def take() -> tuple[int, int]:
        step = next(source)
        loop.take(step, recorder, 0.0, 0.0)
        return step.examples, step.tokens

    return take


def _validate(training: Training, batches: StoreBatches) -> tuple[int, int]:
    """A whole validation; its examples, twice."""
    found = evaluate(replace(training, validation=batches).evaluator())
    return len(found.predictions), len(found.predictions)


def _values(batches: StoreBatches, widths: Mapping[str, Mapping[int, int]]) -> float:
    """Values that are read of an example, from one pass over all of them."""
    values = examples = 0
    for batch in batches.stream.epoch(0):
        examples += len(batch.examples)
        for name, rows in batch.streams.items():
            values += int(rows.lengths.sum()) * sum(widths[name][tap] for tap in batches.stream.taps[name])
    return values / examples


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

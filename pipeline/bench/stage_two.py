"""Stage two from a store: the product's own batches and steps, without a run's folder."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Any

from ..training import Training
from .way import Way

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ...stages.steps import Step
    from ...stages.train import TrainingLoop
    from ...storage import Store
    from ..recipe import Recipe
    from .way import TrainStep


def stage_two(recipe: Recipe, store: Store) -> Way:
    """Training by a recipe; what its fusion or tuner would set once before the first step is left as it is drawn."""
    training = Training.of(recipe, store)
    stream = training.batches.stream
    return Way(
        modules=(training.model, training.objective),
        trained=list(training.model.trained_parameters().values()),
        steps=_steps(training),
        waited=lambda: stream.waited_seconds,
        store_bytes=lambda: stream.read_bytes,
        facts={"number format of stage two": recipe.train.precision, "read threads": str(recipe.data.threads)},
    )


def _steps(training: Training) -> Iterator[TrainStep]:
    losses = _Losses()

    def take(step: Step) -> float:
        training.loop.take(step, losses, 0.0, 0.0)
        return losses.newest

    for epoch in count():
        for step in training.batches.steps(epoch):
            yield lambda step=step: take(step)  # type: ignore[misc]


class _Losses:
    """A recorder that keeps the newest loss and writes nothing."""

    newest = float("nan")

    def log(self, record: Mapping[str, Any]) -> None:
        self.newest = record["loss"]

    def checkpoint(self, loop: TrainingLoop) -> None:
        pass

    def better(self, loop: TrainingLoop) -> None:
        pass

"""A check beside the linear probe: scikit-learn's logistic regression on the very features that the probe's head reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import numpy as np
import torch

from .methods.contract import pool_segments
from .metrics import score

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .data import StoreBatches
    from .methods.contract import Pooling
    from .model import StageTwo
    from .steps import TrainBatch

MOST_EXAMPLES = 20_000
"""The regression holds its features in memory, so it takes at most so many training examples."""


class PooledStates:
    """Pooled rows and classes of the labelled examples of a split, `most` of them at most, from batch after batch."""

    def __init__(self, model: StageTwo, pooling: Pooling, batches: StoreBatches, most: int | None) -> None:
        self.batches = batches
        self._model, self._pooling, self._most = model, pooling, most
        self._features: list[NDArray[np.float32]] = []
        self._labels: list[NDArray[np.int64]] = []

    @property
    def full(self) -> bool:
        """Whether no more are wanted."""
        return self._most is not None and sum(map(len, self._labels)) >= self._most

    @torch.no_grad()
    def add(self, examples: NDArray[np.int64], batch: TrainBatch) -> None:
        """Take what is wanted of a batch; `examples` are its places in written order."""
        if self.full:
            return
        was_training = self._model.training
        self._model.eval()
        rows, lengths = self._model.final_rows(batch.inputs, batch.segments)
        self._model.train(was_training)
        classes = self.batches.targets.gold[examples].astype(np.int64)
        self._features.append(pool_segments(rows, lengths, self._pooling).cpu().numpy()[classes >= 0])
        self._labels.append(classes[classes >= 0])

    def read(self) -> Self:
        """Take what is wanted of the split."""
        for examples, batch in self.batches.indexed():
            self.add(examples, batch)
            if self.full:
                break
        return self

    def arrays(self) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Features [examples, D] and classes [examples]."""
        return np.concatenate(self._features), np.concatenate(self._labels)


def logistic_regression_score(train: PooledStates, validation: PooledStates, metric: str) -> float:
    """The metric on validation of a logistic regression fitted on standardised pooled states of train."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    held_out, expected = validation.arrays()
    regression = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(*train.arrays())
    return score(metric, regression.predict(held_out).tolist(), expected.tolist())[metric]

"""A check beside the linear probe: scikit-learn's logistic regression on the very features that the probe's head reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from .methods.contract import pool_segments
from .metrics import score

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .data import StoreBatches
    from .methods.contract import Pooling
    from .model import StageTwo

MOST_EXAMPLES = 20_000
"""The regression holds its features in memory, so it takes at most so many training examples."""


def logistic_regression_score(
    model: StageTwo, pooling: Pooling, train: StoreBatches, validation: StoreBatches, metric: str
) -> float:
    """The metric on validation of a logistic regression fitted on standardised pooled states [examples, D] of train."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    features, labels = _pooled(model, pooling, train, MOST_EXAMPLES)
    held_out, expected = _pooled(model, pooling, validation, None)
    regression = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(features, labels)
    return score(metric, regression.predict(held_out).tolist(), expected.tolist())[metric]


@torch.no_grad()
def _pooled(
    model: StageTwo, pooling: Pooling, batches: StoreBatches, most: int | None
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Pooled rows and classes of the labelled examples, `most` of them at most."""
    features, labels, count = [], [], 0
    for examples, batch in batches.indexed():
        rows, lengths = model.final_rows(batch.inputs, batch.segments)
        classes = batches.targets.gold[examples].astype(np.int64)
        features.append(pool_segments(rows, lengths, pooling).cpu().numpy()[classes >= 0])
        labels.append(classes[classes >= 0])
        count += len(labels[-1])
        if most is not None and count >= most:
            break
    return np.concatenate(features), np.concatenate(labels)

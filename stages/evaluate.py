"""Scores of a stage-two model on a split of a store: the metric of the task, or the loss where answers are an open
set.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .metrics import score

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .data import StoreBatches
    from .methods.contract import Objective
    from .model import StageTwo


@dataclass(frozen=True)
class Evaluation:
    """Scores on one split. `higher` is what the best epoch is chosen by: the metric, or minus the loss."""

    metric: str
    value: float
    scores: dict[str, float]
    higher: float
    predictions: NDArray[np.float64] = field(repr=False)
    """The answer of each example in written order: a class or a score; NaN where only a loss is known."""


@torch.no_grad()
def evaluate_store(
    model: StageTwo, objective: Objective, batches: StoreBatches, metric: str, candidates: int | None
) -> Evaluation:
    """Score a model on a split read in written order.

    `candidates`: how many answers a text-to-text example was stored with (label scoring: the candidate whose tokens
    are the likeliest together wins); None for heads that answer themselves, and 0 for an open set, where the loss is
    what is known.
    """
    was_training = model.training
    model.eval()
    answers: list[NDArray[np.float64]] = []
    references: list[NDArray[np.float64]] = []
    loss_sum = loss_weight = 0.0
    table = batches.targets
    for examples, batch in batches.indexed():
        output = model(batch.inputs, batch.select, batch.segments)
        if candidates:
            assert batch.targets.tokens is not None
            likelihood = segment_log_likelihood(output, batch.targets.tokens, batch.inputs[batches.exit_stream].lengths)
            answers.append(likelihood.reshape(len(examples), candidates).argmax(1).double().cpu().numpy())
        else:
            loss = objective(output, batch.targets)
            loss_sum += float(loss.sum)
            loss_weight += float(loss.weight)
            if candidates is None:
                chosen = output.argmax(1) if table.output == "classes" else output
                answers.append(chosen.double().cpu().numpy())
        known = table.score if table.output == "score" else table.gold
        references.append(known[examples].astype(np.float64))
    model.train(was_training)
    scores: dict[str, Any] = {"loss": loss_sum / loss_weight} if loss_weight else {}
    if candidates == 0:
        count = sum(len(part) for part in references)
        return Evaluation("loss", scores["loss"], scores, -scores["loss"], np.full(count, np.nan))
    predictions, expected = np.concatenate(answers), np.concatenate(references)
    labelled = ~np.isnan(expected) & (expected >= 0 if table.output != "score" else True)
    scores |= score(metric, predictions[labelled].tolist(), expected[labelled].tolist())
    return Evaluation(metric, scores[metric], scores, scores[metric], predictions)


def segment_log_likelihood(logits: Tensor, tokens: Tensor, lengths: Tensor) -> Tensor:
    """Sum of log-probabilities of each segment's tokens: logits [N, V], tokens [N], lengths [S] -> [S] in float64."""
    chosen = torch.log_softmax(logits.double(), dim=-1).gather(1, tokens.unsqueeze(1)).squeeze(1)  # [N]
    owner = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)
    return chosen.new_zeros(len(lengths)).index_add(0, owner, chosen)

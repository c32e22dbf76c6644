"""Scores of a stage-two model on a split of a store: the metric of the task, or the loss where answers are an open
set.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..storage.errors import Interrupted
from .layer_weights import LayerWeights
from .metrics import score
from .ranks import ALONE
from .retrieval import PairVectors

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from .coupling import WholeBatch
    from .data import StoreBatches
    from .methods.contract import Outputs, Targets
    from .model import StageTwo
    from .objectives import ObjectiveSum
    from .ranks import Ranks
    from .steps import TrainBatch


@dataclass(frozen=True)
class Evaluation:
    """Scores on one split. `higher` is what the best epoch is chosen by: the metric, or minus the loss."""

    metric: str
    value: float
    scores: dict[str, float]
    higher: float
    predictions: NDArray[np.float64] = field(repr=False)
    """The answer of each example in written order: a class or a score, or of a picture the rank of its nearest caption;
    NaN where only a loss is known."""
    probabilities: NDArray[np.float32] = field(repr=False)
    """How likely each of these classes is, in the same order; NaN where the answer is no class."""
    layer_weights: dict[str, Any] = field(default_factory=dict, repr=False)
    """How the fusion weighs its taps, see LayerWeights.told; empty where it does not weigh row by row."""


class Evaluator:
    """Scores one model batch after batch; the model is in eval mode until `result` is asked for."""

    def __init__(
        self,
        model: StageTwo,
        objective: ObjectiveSum,
        batches: StoreBatches,
        metric: str,
        candidates: int | None,
        ranks: Ranks = ALONE,
        classes: int = 0,
    ) -> None:
        """`candidates`: how many answers a text-to-text example was stored with (label scoring: the candidate whose tokens
        are the likeliest together wins); None for heads that answer themselves, and 0 for an open set, where the loss is
        what is known. ranks: who score the split together, each its slices of the batches; each has all scores. classes: how
        many the examples have, by which the weights of the layers are told.
        """
        self.model, self.objective, self.batches, self.ranks = model, objective, batches, ranks
        self.metric, self.candidates = metric, candidates
        self._number = 0
        self._examples: list[NDArray[np.int64]] = []
        self._answers: list[NDArray[np.float64]] = []
        self._likelihoods: list[NDArray[np.float32]] = []
        self._references: list[NDArray[np.float64]] = []
        self._pairs = PairVectors() if batches.targets.output == "pair" else None
        self._layers = LayerWeights(classes, batches.exit_stream)
        self._sums: dict[str, float] = {}
        self._weights: dict[str, float] = {}
        self._was_training = model.training
        model.eval()

    @property
    def full(self) -> bool:
        """Whether it wants no more: never, it scores the whole split."""
        return False

    @torch.no_grad()
    def add(self, examples: NDArray[np.int64], batch: TrainBatch) -> None:
        """Score one batch of the split; `examples` are its places in written order."""
        table = self.batches.targets
        scoring = bool(self.candidates)
        self._number += 1
        if not len(examples):  # a slice may be empty, and what it has to say to the others is still waited for
            self._gathered(None, batch.targets)
            return
        outputs = self.model.outputs(
            batch.inputs, batch.select, batch.segments, features=self.objective.reads_features and not scoring
        )
        if scoring:
            assert batch.targets.tokens is not None
            lengths = batch.inputs[self.batches.exit_stream].lengths
            lengths = lengths if batch.select is None else chosen_of_each(batch.select, lengths)
            likelihood = segment_log_likelihood(outputs.head, batch.targets.tokens, lengths)
            self._choose(likelihood.reshape(len(examples), -1))
        else:
            whole = self._gathered(outputs, batch.targets)
            for name, loss in self.objective.losses(outputs, batch.targets, whole).items():
                shares = 1 if whole is None or name not in self.objective.coupling else whole.shares
                self._sums[name] = self._sums.get(name, 0.0) + float(loss.sum)
                self._weights[name] = self._weights.get(name, 0.0) + float(loss.weight) / shares
            if self._pairs is not None:
                assert batch.targets.groups is not None
                self._pairs.add(outputs.head, batch.targets.groups, self._number)
            elif self.candidates is None and table.output == "classes":
                self._choose(outputs.head)
            elif self.candidates is None:
                self._answers.append(outputs.head.double().cpu().numpy())
                self._likelihoods.append(np.full(len(examples), np.nan, np.float32))
        known = table.score if table.output == "score" else table.gold
        self._examples.append(examples)
        self._references.append(known[examples].astype(np.float64))
        self._layers.add(self.model.fusion.layer_weights(), batch, table.gold[examples])

    def _choose(self, scores: Tensor) -> None:
        """Answer with the class of the highest score, [examples, classes], and how likely it is."""
        chosen = scores.argmax(1, keepdim=True)
        likelihood = torch.softmax(scores.double(), dim=1).gather(1, chosen)
        self._answers.append(chosen.squeeze(1).double().cpu().numpy())
        self._likelihoods.append(likelihood.squeeze(1).float().cpu().numpy())

    def _gathered(self, outputs: Outputs | None, targets: Targets) -> WholeBatch | None:
        """The whole batch, for objectives that couple it; nothing where labels are scored instead."""
        return None if self.candidates else self.objective.gathered(outputs, targets, self.ranks)

    def result(self) -> Evaluation:
        """The scores of all batches that were added."""
        self.model.train(self._was_training)
        scores, layers = self._losses(), self._layers.told(self.ranks)
        if self._pairs is not None:
            found, ranks = self._pairs.scores(self.ranks)
            unknown = np.full(len(ranks), np.nan, np.float32)
            return Evaluation(
                self.metric, found[self.metric], scores | found, found[self.metric], ranks, unknown, layers
            )
        answered = self.candidates != 0
        lists: list[Sequence[NDArray[Any]]] = [self._references]
        lists += [self._answers, self._likelihoods] if answered else []
        expected, *answers = self.ranks.in_order(lists, self._examples)
        if not answered:
            none, unlikely = np.full(len(expected), np.nan), np.full(len(expected), np.nan, np.float32)
            return Evaluation("loss", scores["loss"], scores, -scores["loss"], none, unlikely, layers)
        predictions, likelihoods = answers
        labelled = ~np.isnan(expected) & (expected >= 0 if self.batches.targets.output != "score" else True)
        scores |= score(self.metric, predictions[labelled].tolist(), expected[labelled].tolist())
        value = scores[self.metric]
        return Evaluation(self.metric, value, scores, value, predictions, likelihoods, layers)

    def _losses(self) -> dict[str, float]:
        """The loss over the split, nothing where no row has a label; of several terms each one's beside it."""
        told = self.ranks.gather_json([self._sums, self._weights])
        sums, weights = (
            {name: sum(part.get(name, 0.0) for part in parts) for name in self.objective.factors}
            for parts in zip(*told, strict=True)
        )
        known = {name: sums[name] / weight for name, weight in weights.items() if weight}
        if not known:
            return {}
        each = {f"loss.{name}": value for name, value in known.items()} if len(sums) > 1 else {}
        return {"loss": sum(self.objective.factors[name] * value for name, value in known.items()), **each}


def evaluate(evaluator: Evaluator, asked: Callable[[], bool] = lambda: False) -> Evaluation:
    """The scores of a model on a split, read in written order. Raises Interrupted where a rank is `asked` for an end."""
    for examples, batch in evaluator.batches.indexed():
        evaluator.add(examples, batch)
        if evaluator.ranks.any(asked()):
            raise Interrupted("validation was asked to end")
    return evaluator.result()


def segment_log_likelihood(logits: Tensor, tokens: Tensor, lengths: Tensor) -> Tensor:
    """Sum of log-probabilities of each segment's tokens: logits [N, V], tokens [N], lengths [S] -> [S] in float64."""
    chosen = torch.log_softmax(logits.double(), dim=-1).gather(1, tokens.unsqueeze(1)).squeeze(1)  # [N]
    owner = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)
    return chosen.new_zeros(len(lengths)).index_add(0, owner, chosen)


def chosen_of_each(select: Tensor, lengths: Tensor) -> Tensor:
    """How many rows of each segment are selected: select bool [N], lengths [S] -> int64 [S]."""
    owner = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)
    return torch.zeros_like(lengths).index_add(0, owner, select.to(lengths.dtype))

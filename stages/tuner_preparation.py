"""What a tuner may look at once before training: the cached examples, and gradients of the frozen ops' weights."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..storage.errors import RecipeError
from .late_ops import HookedOp
from .pretrained import RunPreparation

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from .methods.contract import Op
    from .model import StageTwo
    from .objectives import ObjectiveSum
    from .steps import TrainBatch


@dataclass(frozen=True)
class RunTunerPreparation(RunPreparation):
    """`TunerPreparation` of a run."""

    model: StageTwo
    objective: ObjectiveSum

    def gradients(self, ops: Sequence[Op], examples: int, together: int = 1) -> Iterator[Mapping[str, Tensor]]:
        """See the contract. Weights of late layers ask for gradients while this is open, and the model is in eval mode."""
        weights: dict[str, torch.nn.Parameter] = {}
        hooked: dict[str, HookedOp] = {}
        for op in ops:
            if op.kind not in ("linear", "norm") or not isinstance(op, HookedOp):
                raise RecipeError(
                    f"tuner.ops: {op.name} has no weight of its own to take a gradient by; name linear ops or norms"
                )
            weight = op.exit.weight
            assert isinstance(weight, torch.nn.Parameter)
            weights[op.name], hooked[op.name] = weight, op
        asked, training = [weight.requires_grad for weight in weights.values()], self.model.training
        for weight in weights.values():
            weight.requires_grad_(True)
        self.model.eval()
        try:
            left = examples
            for batch in self._parts(together):
                loss = self._loss(batch)
                if loss is None:
                    continue
                found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
                yield {
                    name: hooked[name].outputs_first(_or_zero(gradient, weight))[hooked[name].own_outputs]
                    for (name, weight), gradient in zip(weights.items(), found, strict=True)
                }
                left -= batch.examples
                if left <= 0:
                    return
        finally:
            for weight, before in zip(weights.values(), asked, strict=True):
                weight.requires_grad_(before)
            self.model.train(training)

    def _parts(self, together: int) -> Iterator[TrainBatch]:
        """One pass over the training split, so many examples at a time."""
        batches = copy.copy(self.cached)
        batches.micro_examples = together
        for step in batches.steps(0):
            yield from step.batches()

    def _loss(self, batch: TrainBatch) -> Tensor | None:
        """The run's loss of some examples with the tuner off; None where none of them is labelled."""
        with torch.enable_grad(), self.model.without_tuner():
            features = self.objective.reads_features
            outputs = self.model.outputs(batch.inputs, batch.select, batch.segments, features=features)
            losses = self.objective.losses(outputs, batch.targets)
            if not any(float(loss.weight) for loss in losses.values()):
                return None
            return self.objective.total(losses, {name: loss.weight for name, loss in losses.items()})


def _or_zero(gradient: Tensor | None, weight: Tensor) -> Tensor:
    return torch.zeros_like(weight) if gradient is None else gradient

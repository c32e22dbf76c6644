"""What the ranks that take a training step together tell each other: weights before it, gradients and counts after it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from .methods.contract import Targets
    from .objectives import ObjectiveSum
    from .ranks import Ranks


@dataclass
class Counted:
    """What came of a global batch, or of one rank's slice of it: counts, and its part of the loss and of the loss's parts."""

    examples: int
    tokens: int
    loss: float
    parts: dict[str, float]


def agree(
    objective: ObjectiveSum, targets: Sequence[Targets], ranks: Ranks, *, asked: bool
) -> tuple[dict[str, Tensor], bool]:
    """What the targets of all ranks weigh, for each term that is a sum over examples; and whether a rank was asked for an
    end.
    """
    own = objective.weigh(targets, but=objective.coupling)
    *weights, ends = ranks.sum([*map(float, own.values()), float(asked)])
    return {
        name: torch.tensor(weight, dtype=torch.float64) for name, weight in zip(own, weights, strict=True)
    }, ends > 0


def add_up(parameters: Sequence[nn.Parameter], counted: Counted, ranks: Ranks) -> Counted:
    """Sum the gradients in place and the counts over all ranks; a parameter that no rank has a gradient of keeps none."""
    held = sum(1 << place for place, parameter in enumerate(parameters) if parameter.grad is not None)
    told = ranks.gather_json([held, counted.examples, counted.tokens, counted.loss, counted.parts])
    anywhere = [parameter for place, parameter in enumerate(parameters) if any(each[0] >> place & 1 for each in told)]
    own = [torch.zeros_like(each) if each.grad is None else each.grad for each in anywhere]
    for parameter, gradient in zip(anywhere, ranks.sums(own), strict=True):
        parameter.grad = gradient
    names: list[str] = next((list(each[4]) for each in told if each[4]), [])  # a rank whose slice is empty has none
    parts = {name: sum(each[4].get(name, 0.0) for each in told) for name in names}
    examples, tokens, loss = (sum(each[place] for each in told) for place in (1, 2, 3))
    return Counted(examples, tokens, loss, parts)

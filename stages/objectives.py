"""A run's objective: a weighted sum of objectives, each divided by its own weight over the whole global batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .coupling import whole_batch
from .methods.contract import Loss, Objective, Outputs

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from .coupling import WholeBatch
    from .methods.contract import Targets
    from .ranks import Ranks


class ObjectiveSum(nn.Module):
    """Terms by name, each with a factor; `sum_i factor_i * loss_i.sum / loss_i.weight`."""

    def __init__(self, terms: Mapping[str, tuple[float, Objective]]) -> None:
        super().__init__()
        self.terms = nn.ModuleDict({name: objective for name, (_, objective) in terms.items()})
        self.factors = {name: factor for name, (factor, _) in terms.items()}

    @classmethod
    def of(cls, objective: Objective) -> ObjectiveSum:
        """The sum of one."""
        return cls({objective.method_name(): (1.0, objective)})

    @property
    def reads_features(self) -> bool:
        """Whether a term reads fused features, so that a forward has to offer them."""
        return any(objective.output == "features" for objective in self._objectives().values())

    def of_the_head(self) -> ObjectiveSum:
        """The terms that read what the head gives."""
        known = self._objectives()
        return ObjectiveSum({name: (self.factors[name], t) for name, t in known.items() if t.output != "features"})

    @property
    def coupling(self) -> tuple[str, ...]:
        """Names of the terms that need the whole batch at once."""
        return tuple(name for name, objective in self._objectives().items() if objective.couples_batch)

    def losses(self, outputs: Outputs, targets: Targets, whole: WholeBatch | None = None) -> dict[str, Loss]:
        """The loss of each term, not yet divided. whole: the batch of which this is one rank's slice; a term that couples
        the batch is then this rank's share of its loss of the whole.
        """
        found = {}
        for name, objective in self._objectives().items():
            shared = whole if objective.couples_batch else None
            seen, asked = (outputs, targets) if shared is None else (shared.outputs, shared.targets)
            loss = objective(seen if objective.output == "features" else seen.head, asked)
            found[name] = loss if shared is None else _share(loss, shared.shares)
        return found

    def weigh(self, targets: Sequence[Targets], *, but: Collection[str] = ()) -> dict[str, Tensor]:
        """What the losses of each term, except those in `but`, weigh together over some parts of a batch. Raises
        RecipeError for a term that couples the batch.
        """
        return {
            name: torch.stack([objective.weigh(part) for part in targets]).sum()
            for name, objective in self._objectives().items()
            if name not in but
        }

    def gathered(self, outputs: Outputs | None, targets: Targets, ranks: Ranks) -> WholeBatch | None:
        """What terms that couple the batch need of the other ranks; None where there are none of either. outputs: None on a
        rank whose slice of the batch is empty.
        """
        coupling = [objective for name, objective in self._objectives().items() if name in self.coupling]
        if ranks.alone or not coupling:
            return None
        reads = {objective.output == "features" for objective in coupling}
        return whole_batch(outputs, targets, ranks, head=False in reads, features=True in reads)

    def total(self, losses: Mapping[str, Loss], weights: Mapping[str, Tensor]) -> Tensor:
        """The scalar to minimise; `weights` are those of the whole global batch."""
        means = [self.factors[name] * divided(loss.sum, weights[name]) for name, loss in losses.items()]
        return torch.stack(means).sum() if len(means) > 1 else means[0]

    def parts(self, losses: Mapping[str, Loss], weights: Mapping[str, Tensor]) -> dict[str, float]:
        """Every named part of every term, divided by the term's weight and without its factor; of several terms each
        part is called `<term>.<part>`.
        """
        return {
            part if len(losses) == 1 else f"{name}.{part}": float(divided(value, weights[name]))
            for name, loss in losses.items()
            for part, value in loss.parts.items()
        }

    def forward(self, outputs: Outputs | Tensor, targets: Targets) -> Loss:
        """The loss of a batch by itself; a lone tensor is the head's output."""
        losses = self.losses(outputs if isinstance(outputs, Outputs) else Outputs(head=outputs), targets)
        if len(losses) == 1 and next(iter(self.factors.values())) == 1.0:
            return next(iter(losses.values()))
        total = self.total(losses, {name: loss.weight for name, loss in losses.items()})
        return Loss(total, torch.ones_like(total.detach()), {name: loss.sum.detach() for name, loss in losses.items()})

    def _objectives(self) -> dict[str, Objective]:
        return {name: module for name, module in self.terms.items() if isinstance(module, Objective)}


def _share(loss: Loss, shares: int) -> Loss:
    return Loss(loss.sum / shares, loss.weight, {name: part / shares for name, part in loss.parts.items()})


def divided(total: Tensor, weight: Tensor) -> Tensor:
    """A sum by its weight; a batch without any label has sum 0 and weight 0, and gives 0."""
    return total / weight if float(weight) else total

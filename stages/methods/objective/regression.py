"""Squared error of a score."""

from torch import Tensor

from ..contract import Loss, Objective, RecipeError, Targets, at_least_float32


class Regression(Objective):
    """Squared error of each labelled example; its weight is one."""

    source = "least squares"
    kinds = ("regression",)
    output = "score"

    def forward(self, output: Tensor, targets: Targets) -> Loss:
        if targets.score is None:
            raise RecipeError("objective.name: regression needs scores, and this task has none")
        labelled = ~targets.score.isnan()
        predicted = at_least_float32(output)
        # filled before the subtraction: NaN times a zero gradient would be NaN
        gold = targets.score.to(predicted.dtype).where(labelled, predicted.detach())
        total = (predicted - gold).square().sum()
        return Loss(total, labelled.sum(), {"squared_error": total.detach()})

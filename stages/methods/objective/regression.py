"""Error of a score."""

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from ..contract import Loss, Objective, ObjectiveSpec, Options, RecipeError, Targets, at_least_float32


class RegressionConfig(Options):
    """Options of the error."""

    loss: Literal["mse", "huber"] = Field("mse", description="Squared error, or Huber's.")
    delta: float = Field(1.0, gt=0, description="Huber's error is linear beyond this difference.")


class Regression(Objective):
    """Squared error, or Huber's, of each labelled example; its weight is one."""

    Config = RegressionConfig
    source = "least squares; Huber 1964, Robust estimation of a location parameter"
    kinds = ("regression",)
    output = "score"

    def __init__(self, config: RegressionConfig, spec: ObjectiveSpec) -> None:
        super().__init__(config, spec)
        self.loss, self.delta = config.loss, config.delta

    def forward(self, output: Tensor, targets: Targets) -> Loss:
        weight = self.weigh(targets)
        assert targets.score is not None
        predicted = at_least_float32(output)
        # filled before the subtraction: NaN times a zero gradient would be NaN
        gold = targets.score.to(predicted.dtype).where(~targets.score.isnan(), predicted.detach())
        if self.loss == "huber":
            total = nn.functional.huber_loss(predicted, gold, reduction="sum", delta=self.delta)
            return Loss(total, weight, {"huber": total.detach()})
        total = (predicted - gold).square().sum()
        return Loss(total, weight, {"squared_error": total.detach()})

    def weigh(self, targets: Targets) -> Tensor:
        if targets.score is None:
            raise RecipeError(
                "objective.name: regression needs scores, and this task has none; leave objective.name out for the one that "
                "fits"
            )
        return (~targets.score.isnan()).sum()

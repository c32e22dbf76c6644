"""Cross entropy over classes."""

from pydantic import Field
from torch import Tensor, nn

from ..contract import UNLABELLED, Loss, Objective, Options, RecipeError, Targets, at_least_float32


class ClassificationConfig(Options):
    """Options of the cross entropy."""

    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Share of each target that is spread over all classes.")


class Classification(Objective):
    """Cross entropy of each labelled example; its weight is one."""

    Config = ClassificationConfig
    source = "label smoothing: Szegedy et al. 2016, arXiv 1512.00567"
    kinds = ("classification",)
    output = "classes"

    def __init__(self, config: ClassificationConfig) -> None:
        super().__init__(config)
        self.label_smoothing = config.label_smoothing

    def forward(self, output: Tensor, targets: Targets) -> Loss:
        if targets.gold is None:
            raise RecipeError("objective.name: classification needs class labels, and this task has none")
        labelled = targets.gold >= 0
        # ignored rather than selected: a selection would wait for the device
        gold = targets.gold.masked_fill(~labelled, UNLABELLED)
        total = nn.functional.cross_entropy(
            at_least_float32(output),
            gold,
            ignore_index=UNLABELLED,
            reduction="sum",
            label_smoothing=self.label_smoothing,
        )
        return Loss(total, labelled.sum(), {"cross_entropy": total.detach()})

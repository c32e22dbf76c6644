"""Cross entropy over the vocabulary, for answers that are text."""

from pydantic import Field
from torch import Tensor, nn

from ..contract import UNLABELLED, Loss, Objective, ObjectiveSpec, Options, RecipeError, Targets, at_least_float32


class TokenCrossEntropyConfig(Options):
    """Options of the cross entropy."""

    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="Share of each target that is spread over the vocabulary."
    )


class TokenCrossEntropy(Objective):
    """Cross entropy of each labelled token; each weighs the same, so a long answer counts for more."""

    Config = TokenCrossEntropyConfig
    source = "T5, Raffel et al. 2020, arXiv 1910.10683; label smoothing: Szegedy et al. 2016, arXiv 1512.00567"
    kinds = ("classification", "regression")
    output = "tokens"

    def __init__(self, config: TokenCrossEntropyConfig, spec: ObjectiveSpec) -> None:
        super().__init__(config, spec)
        self.label_smoothing = config.label_smoothing

    def forward(self, output: Tensor, targets: Targets) -> Loss:
        weight = self.weigh(targets)
        assert targets.tokens is not None
        total = nn.functional.cross_entropy(
            at_least_float32(output),
            targets.tokens,
            ignore_index=UNLABELLED,
            reduction="sum",
            label_smoothing=self.label_smoothing,
        )
        return Loss(total, weight, {"cross_entropy": total.detach()})

    def weigh(self, targets: Targets) -> Tensor:
        if targets.tokens is None:
            raise RecipeError(
                "objective.name: token_cross_entropy needs answers as tokens, and this task has none; leave objective.name "
                "out for the one that fits"
            )
        return (targets.tokens != UNLABELLED).sum()

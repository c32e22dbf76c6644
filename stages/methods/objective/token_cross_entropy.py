"""Cross entropy over the vocabulary, for answers that are text."""

from torch import Tensor, nn

from ..contract import UNLABELLED, Loss, Objective, RecipeError, Targets, at_least_float32


class TokenCrossEntropy(Objective):
    """Cross entropy of each labelled token; each weighs the same, so a long answer counts for more."""

    source = "T5, Raffel et al. 2020, arXiv 1910.10683"
    kinds = ("classification", "regression")
    output = "tokens"

    def forward(self, output: Tensor, targets: Targets) -> Loss:
        if targets.tokens is None:
            raise RecipeError("objective.name: token_cross_entropy needs answers as tokens, and this task has none")
        total = nn.functional.cross_entropy(
            at_least_float32(output), targets.tokens, ignore_index=UNLABELLED, reduction="sum"
        )
        return Loss(total, (targets.tokens != UNLABELLED).sum(), {"cross_entropy": total.detach()})

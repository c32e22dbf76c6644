"""Symmetric InfoNCE between two sets of vectors."""

import torch
from torch import Tensor

from ..contract import Loss, Objective, Pair, RecipeError, Targets, at_least_float32


class Contrastive(Objective):
    """InfoNCE in both directions over a batch of pairs; vectors of one group are never each other's negatives.

    An anchor with several partners takes the mean over them, each against itself and the anchor's negatives. An anchor
    without a partner in the batch adds nothing. The weight is the number of anchors of the first set.
    """

    source = "CLIP, Radford et al. 2021, arXiv 2103.00020, figure 3; several positives: SupCon, arXiv 2004.11362, eq. 2"
    kinds = ("retrieval",)
    output = "pair"
    couples_batch = True

    def forward(self, output: Pair, targets: Targets) -> Loss:
        if targets.groups is None:
            raise RecipeError(
                "objective.name: contrastive needs groups of what belongs together, and this task has none"
            )
        first, second = targets.groups
        known = (first >= 0).unsqueeze(1) & (second >= 0)
        same = known & (first.unsqueeze(1) == second)
        similarity = at_least_float32(output.scale) * (
            at_least_float32(output.first) @ at_least_float32(output.second).T
        )
        forth, anchors = _info_nce(similarity, same, known)
        back, _ = _info_nce(similarity.T, same.T, known.T)
        value = (forth + back) / 2 * anchors
        parts = {"first_to_second": (forth * anchors).detach(), "second_to_first": (back * anchors).detach()}
        return Loss(value, anchors, parts)


def _info_nce(similarity: Tensor, same: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over the anchors (rows) that have a partner, and how many there are; 0 and 0 where there is none."""
    lowest = torch.finfo(similarity.dtype).min
    negatives = similarity.masked_fill(same | ~known, lowest).logsumexp(1, keepdim=True)  # [A, 1]
    each = torch.nn.functional.softplus(negatives - similarity)  # -log(e^s / (e^s + sum of the negatives))
    partners = same.sum(1)
    mean = (each * same).sum(1) / partners.clamp(min=1)
    anchors = (partners > 0).sum()
    return mean.sum() / anchors.clamp(min=1), anchors.to(similarity.dtype)

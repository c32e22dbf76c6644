"""The backbone's own output projection: every answer is text (Raffel et al. 2020, arXiv 1910.10683)."""

from functools import partial
from typing import Any

from torch import Tensor

from ..contract import Head, HeadSpec, RecipeError


class LanguageModel(Head):
    """Rows -> logits over the vocabulary, through the pretrained output projection."""

    source = "T5, Raffel et al. 2020, arXiv 1910.10683"
    trains = "0; the output projection is the pretrained one, frozen"
    kinds = ("classification", "regression")
    output = "tokens"

    def __init__(self, config: Any, spec: HeadSpec) -> None:
        super().__init__(config, spec)
        if spec.lm is None:
            raise RecipeError(
                "head.name: language_model needs a pretrained output projection behind late blocks, which the table of "
                "this backbone does not name, or this recipe does not run; use classifier or regression"
            )
        # behind `partial` the projection is no submodule: it stays the model's, to save, move and freeze
        self.project = partial(spec.lm)

    def forward(self, rows: Tensor, lengths: Tensor) -> Tensor:
        return self.project(rows)

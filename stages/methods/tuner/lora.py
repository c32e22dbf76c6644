"""Low-rank updates of linear ops."""

import math
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from ..contract import Op, OpOptions, OpPart, OpTuner


class Config(OpOptions):
    rank: int = Field(default=8, ge=1, description="Rank r of the update.")
    alpha: float | None = Field(
        default=None, gt=0, description="The update counts alpha / rank times; null: 2 * rank, so twice."
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="On the rows that the update reads, in training.")


class LoraPart(OpPart):
    """y + (alpha / r) drop(x) A B, with A [in, r] and B [r, out]."""

    def __init__(self, config: Any, op: Op) -> None:
        super().__init__(config, op)
        self.down = nn.Parameter(torch.empty(config.rank, op.in_width))
        self.up = nn.Parameter(torch.zeros(op.out_width, config.rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))
        self.scale = 2.0 if config.alpha is None else config.alpha / config.rank
        self.dropout = nn.Dropout(config.dropout)

    def leave(self, x: Tensor, y: Tensor) -> Tensor:
        update: Tensor = self.dropout(x) @ self.down.T @ self.up.T
        return y + self.scale * update

    def fold(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return weight + self.scale * (self.up @ self.down), bias


class Lora(OpTuner):
    """A low-rank update beside the query and value projections, or any linear op; it can be merged.

    The first factor is drawn as a linear layer's weight is, the second is zero. r (in + out) parameters an op.
    """

    source = "Hu et al. 2022, LoRA, arXiv:2106.09685, equation 3"
    trains = "rank (D_in + D_out), an op"
    Config = Config
    part = LoraPart
    default_ops = ("query", "value", "cross_query", "cross_value")
    starts_as_identity = True

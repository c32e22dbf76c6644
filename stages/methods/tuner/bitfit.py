"""Learned shifts of biases."""

from typing import Any

import torch
from torch import Tensor, nn

from ..contract import Op, OpOptions, OpPart, OpTuner


class BiasPart(OpPart):
    """y + b, b [out]."""

    def __init__(self, config: Any, op: Op) -> None:
        super().__init__(config, op)
        self.bias = nn.Parameter(torch.zeros(op.out_width))

    def leave(self, x: Tensor, y: Tensor) -> Tensor:
        return y + self.bias

    def fold(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return weight, self.bias if bias is None else bias + self.bias


class BitFit(OpTuner):
    """The biases of all linear ops and norms train, as shifts of the frozen ones; it can be merged where there are any.

    An op without a bias gets the shift alone. The shift of the keys adds the same to every logit of a query, so it does
    nothing and its gradient is zero. 7 d + f parameters in a layer that has a bias everywhere.
    """

    source = "Ben Zaken et al. 2022, BitFit, arXiv:2106.10199"
    trains = "D_out, an op"
    Config = OpOptions
    part = BiasPart
    default_ops = None
    kinds = ("linear", "norm")
    starts_as_identity = True

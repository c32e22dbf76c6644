"""Learned factors on keys, values and the inside of the FFN."""

from typing import Any

import torch
from torch import Tensor, nn

from ..contract import Op, OpOptions, OpPart, OpTuner, Part


class InputScale(OpPart):
    """The op of x * (1 + s), s [in]."""

    def __init__(self, config: Any, op: Op) -> None:
        super().__init__(config, op)
        self.scale = nn.Parameter(torch.zeros(op.in_width))

    def enter(self, x: Tensor) -> Tensor:
        return x * (1 + self.scale)

    def fold(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return weight * (1 + self.scale), bias


class OutputScale(OpPart):
    """y * (1 + s), s [out]."""

    def __init__(self, config: Any, op: Op) -> None:
        super().__init__(config, op)
        self.scale = nn.Parameter(torch.zeros(op.out_width))

    def leave(self, x: Tensor, y: Tensor) -> Tensor:
        return y * (1 + self.scale)

    def fold(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        factor = 1 + self.scale
        return weight * factor.unsqueeze(1), None if bias is None else bias * factor


class Ia3(OpTuner):
    """Factors on the keys, the values and what enters the FFN's last projection; it can be merged.

    A factor is stored as its distance from one, so that it starts at zero and decays towards the frozen model. Any other
    linear op may be named: its output is scaled. 2 d + f parameters a layer, and 2 d for a cross-attention.
    """

    source = "Liu et al. 2022, T-Few, arXiv:2205.05638, section 3.3"
    trains = "2 D + F, a layer; and 2 D where it attends to another stream"
    Config = OpOptions
    default_ops = ("key", "value", "cross_key", "cross_value", "ffn_out")
    starts_as_identity = True

    def build(self, op: Op) -> Part:
        return (InputScale if op.role == "ffn_out" else OutputScale)(self.config, op)

"""Scaled adapters beside frozen ops."""

from typing import Any

from pydantic import Field
from torch import Tensor

from ..contract import Activation, Bottleneck, Op, OpOptions, OpPart, OpTuner


class Config(OpOptions):
    bottleneck: int = Field(default=16, ge=1, description="Inner width r.")
    scale: float = Field(default=4.0, gt=0, description="Factor s on what is added, its bias included.")
    activation: Activation = Field(default="relu", description="The non-linearity.")


class ParallelAdapterPart(OpPart):
    """y + s A(x)."""

    def __init__(self, config: Any, op: Op) -> None:
        super().__init__(config, op)
        self.bottleneck = Bottleneck(op.in_width, config.bottleneck, config.activation)
        self.scale: float = config.scale

    def leave(self, x: Tensor, y: Tensor) -> Tensor:
        added: Tensor = self.bottleneck(x)
        return y + self.scale * added


class ParallelAdapter(OpTuner):
    """A scaled bottleneck beside the FFN, which reads what the FFN reads.

    The second matrix starts at zero. 2 d r + r + d parameters an op.
    """

    source = "He et al. 2022, Towards a unified view, arXiv:2110.04366, equation 10 and section 4.6"
    trains = "2 D bottleneck + D + bottleneck, an op"
    Config = Config
    part = ParallelAdapterPart
    default_ops = ("ffn",)
    kinds = ("attention", "ffn")
    starts_as_identity = True

"""Bottlenecks added to frozen ops, from their input or their output."""

from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from ..contract import Activation, Bottleneck, Op, OpOptions, OpPart, OpTuner


class Config(OpOptions):
    input: Literal["pre", "post"] = Field(
        default="pre", description="What the bottleneck reads: pre, what enters the op; post, what leaves it."
    )
    bottleneck: int = Field(default=32, ge=1, description="Inner width m.")
    activation: Activation = Field(default="gelu", description="The non-linearity.")


class UAdapterPart(OpPart):
    """y + A(x), or y + A(y)."""

    def __init__(self, config: Any, op: Op) -> None:
        super().__init__(config, op)
        self.bottleneck = Bottleneck(op.out_width, config.bottleneck, config.activation)
        self.post = config.input == "post"

    def leave(self, x: Tensor, y: Tensor) -> Tensor:
        added: Tensor = self.bottleneck(y if self.post else x)
        return y + added


class UAdapter(OpTuner):
    """A bottleneck added to whole blocks, or to attentions or FFNs, from their input or their output.

    The second matrix starts at zero. 2 d m + m + d parameters an op.
    """

    source = "Jiang et al. 2023, U-Tuning, arXiv:2303.00690, U-Adapter"
    trains = "2 D bottleneck + D + bottleneck, an op"
    Config = Config
    part = UAdapterPart
    default_ops = ("block",)
    kinds = ("attention", "ffn", "block")
    starts_as_identity = True

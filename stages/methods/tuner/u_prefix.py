"""Attention over learned keys and values, added to frozen ops."""

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ..contract import Attention, Op, OpOptions, OpPart, OpTuner, Part, RecipeError, attend_to_rows, split_heads


class Config(OpOptions):
    input: Literal["pre", "post"] = Field(
        default="pre", description="What asks: pre, the input of the op; post, its output."
    )
    length: int = Field(default=16, ge=1, description="How many keys and values an op gets.")
    heads: int = Field(default=1, ge=1, description="Heads where the op's rows ask without a frozen query projection.")
    init_std: float = Field(default=0.02, gt=0, description="Standard deviation of new keys; values start at zero.")


def keys_and_values(config: Any, widths: tuple[int, int]) -> tuple[nn.Parameter, nn.Parameter]:
    key = torch.randn(config.length, widths[0]) * config.init_std
    return nn.Parameter(key), nn.Parameter(torch.zeros(config.length, widths[1]))


class ProductPart(OpPart):
    """Attn(q, K, V) + Attn(q, P_k, P_v) before the frozen output projection."""

    def __init__(self, config: Any, op: Op) -> None:
        super().__init__(config, op)
        self.key, self.value = keys_and_values(config, (op.within("key").out_width, op.within("value").out_width))

    def attend(self, attention: Attention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        own = split_heads(self.key, key), split_heads(self.value, value)
        return attention(query, key, value) + attention(query, *own, extra=len(self.key))


class RowsPart(OpPart):
    """y + Attn(x, P_k, P_v), or y + Attn(y, P_k, P_v): the rows themselves ask."""

    def __init__(self, config: Any, op: Op) -> None:
        super().__init__(config, op)
        if op.in_width % config.heads:
            raise RecipeError(
                f"tuner.heads: {config.heads} does not divide the width {op.in_width} of {op.name}; give a number that does"
            )
        self.key, self.value = keys_and_values(config, (op.in_width, op.out_width))
        self.heads, self.post = config.heads, config.input == "post"

    def leave(self, x: Tensor, y: Tensor) -> Tensor:
        return y + attend_to_rows(y if self.post else x, self.key, self.value, self.heads)


class UPrefix(OpTuner):
    """A second attention, over learned keys and values, added to an attention, an FFN or a whole block.

    Beside an attention the frozen query projection asks and the frozen output projection follows, its bias added once;
    elsewhere, and of an op's output, the rows ask as they are. A sum of two attentions is another function than one
    softmax over both (`prefix`). Values start at zero. 2 p d parameters an op.
    """

    source = "Jiang et al. 2023, U-Tuning, arXiv:2303.00690, U-Prefix"
    trains = "2 length D, an op"
    Config = Config
    default_ops = ("attention",)
    kinds = ("attention", "ffn", "block")
    starts_as_identity = True

    def build(self, op: Op) -> Part:
        beside = op.kind == "attention" and self.config.input == "pre"
        return (ProductPart if beside else RowsPart)(self.config, op)

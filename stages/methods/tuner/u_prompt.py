"""Attention over learned rows, added to frozen ops."""

import math
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ..contract import Attention, Op, OpOptions, OpPart, OpTuner, Part, RecipeError, attend_to_rows, split_heads


class Config(OpOptions):
    input: Literal["pre", "post"] = Field(
        default="pre", description="What asks: pre, the input of the op; post, its output."
    )
    length: int = Field(default=16, ge=1, description="How many rows an op gets.")
    joint: bool = Field(
        default=False,
        description="Prompts and tokens share one softmax, as if the rows stood among the tokens (VPT-deep).",
    )
    heads: int = Field(default=1, ge=1, description="Heads where the op's rows ask without a frozen query projection.")


def new_rows(length: int, width: int) -> nn.Parameter:
    bound = math.sqrt(3.0 / width)
    return nn.Parameter(torch.empty(length, width).uniform_(-bound, bound))


class ProductPart(OpPart):
    """Attn(q, K, V) + Attn(q, P W_k + b_k, P W_v + b_v), with the frozen projections; or one attention over both.

    In pre-norm models P passes the frozen norm before the projections, as the tokens do.
    """

    def __init__(self, config: Any, op: Op) -> None:
        super().__init__(config, op)
        self.rows = new_rows(config.length, op.within("key").in_width)
        self.joint = config.joint
        self.op = op

    def keys_and_values(self) -> tuple[Tensor, Tensor]:
        rows: Tensor = self.rows
        if (
            self.op.norm_before is not None and self.op.role == "attention"
        ):  # a cross-attention's keys have passed another
            rows = self.op.norm_before(rows)
        key, value = (self.op.within(role).frozen for role in ("key", "value"))
        assert key is not None
        assert value is not None
        return key(rows), value(rows)

    def attend(self, attention: Attention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        own_key, own_value = self.keys_and_values()
        own = split_heads(own_key, key), split_heads(own_value, value)
        if not self.joint:
            return attention(query, key, value) + attention(query, *own, extra=len(own_key))
        keys, values = (torch.cat(pair, dim=2) for pair in zip(own, (key, value), strict=True))
        return attention(query, keys, values, extra=len(own_key))


class RowsPart(OpPart):
    """y + Attn(x, P, P), or y + Attn(y, P, P): the rows themselves ask."""

    def __init__(self, config: Any, op: Op) -> None:
        super().__init__(config, op)
        if config.joint:
            raise RecipeError(
                f"tuner.joint: {op.name} has no tokens to share a softmax with; joint is for attention and input: pre, "
                "set it to false for others"
            )
        if op.in_width % config.heads:
            raise RecipeError(
                f"tuner.heads: {config.heads} does not divide the width {op.in_width} of {op.name}; give a number that does"
            )
        self.rows = new_rows(config.length, op.in_width)
        self.heads, self.post = config.heads, config.input == "post"

    def leave(self, x: Tensor, y: Tensor) -> Tensor:
        return y + attend_to_rows(y if self.post else x, self.rows, self.rows, self.heads)


class UPrompt(OpTuner):
    """A second attention, over learned rows that are both key and value, added to an attention, an FFN or a block.

    Beside an attention the rows pass the frozen key and value projections; with `joint` they share the softmax of the
    tokens, which is VPT-deep on the late layers. Elsewhere, and of an op's output, rows ask as they are. p d
    parameters an op.
    """

    source = "Jiang et al. 2023, U-Tuning, arXiv:2303.00690, U-Prompt; joint: Jia et al. 2022, VPT, arXiv:2203.12119"
    trains = "length D, an op"
    Config = Config
    default_ops = ("attention",)
    kinds = ("attention", "ffn", "block")
    starts_as_identity = False

    def build(self, op: Op) -> Part:
        beside = op.kind == "attention" and self.config.input == "pre"
        return (ProductPart if beside else RowsPart)(self.config, op)

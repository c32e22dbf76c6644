"""Bricks that several tuners are made of."""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import at_least_float32

Activation = Literal["relu", "gelu", "gelu_tanh", "silu", "tanh"]


class Bottleneck(nn.Module):
    """act(u D + b) U + c, with D [width, bottleneck] and U [bottleneck, width]; biases start at zero."""

    def __init__(self, width: int, bottleneck: int, activation: Activation, init_std: float | None = None) -> None:
        """init_std: standard deviation of both matrices; None: D as a linear layer's weight, U zero."""
        super().__init__()
        self.activation = activation
        self.down = nn.Parameter(torch.empty(bottleneck, width))
        self.down_bias = nn.Parameter(torch.zeros(bottleneck))
        self.up = nn.Parameter(torch.zeros(width, bottleneck))
        self.up_bias = nn.Parameter(torch.zeros(width))
        if init_std is None:
            nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))
        else:
            nn.init.normal_(self.down, std=init_std)
            nn.init.normal_(self.up, std=init_std)

    def forward(self, rows: Tensor) -> Tensor:
        """[..., width] -> [..., width]."""
        inner = activate(F.linear(rows, self.down, self.down_bias), self.activation)
        return F.linear(inner, self.up, self.up_bias)


def activate(values: Tensor, activation: Activation) -> Tensor:
    """The non-linearity of that name, value by value."""
    match activation:
        case "relu":
            return F.relu(values)
        case "gelu":
            return F.gelu(values)
        case "gelu_tanh":
            return F.gelu(values, approximate="tanh")
        case "silu":
            return F.silu(values)
        case "tanh":
            return torch.tanh(values)


def split_heads(rows: Tensor, like: Tensor) -> Tensor:
    """Rows [p, G d] of a tuner as keys or values of an attention whose own are `like` [B, G, M, d]: [B, G, p, d]."""
    batch, groups, _, width = like.shape
    return rows.view(len(rows), groups, width).transpose(0, 1).expand(batch, -1, -1, -1)


def group_lasso(weight: Tensor) -> Tensor:
    """Sum over the columns of a weight [out, in] of their Euclidean norms, in at least float32: one group is all weights of one
    input (Yuan & Lin 2006; Head2Toe, arXiv 2201.03529).
    """
    # the floor keeps the gradient of the root finite where a column is zero
    return (at_least_float32(weight).square().sum(0) + 1e-12).sqrt().sum()


def attend_to_rows(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Attention of each row of `query` [B, T, D] over p rows `key` and `value` [p, D] -> [B, T, D]; no row of the
    result depends on another row of the query.

    The scale is that of a head, 1 / sqrt(D / heads).
    """
    batch, length, width = query.shape
    split = (width // heads,)
    queries = query.view(batch, length, heads, *split).transpose(1, 2)
    keys, values = (
        rows.view(len(rows), heads, *split).transpose(0, 1).expand(batch, -1, -1, -1) for rows in (key, value)
    )
    return F.scaled_dot_product_attention(queries, keys, values).transpose(1, 2).reshape(batch, length, width)

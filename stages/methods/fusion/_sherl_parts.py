"""The four parts of SHERL's fusion and the published forms as a table of them.

A part puts its parameters on the block that it belongs to and computes with them; `K` taps of width `D` (each of its own
width, where the block's `widths` differ) become features of width `d`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..contract import Taps, each_tap

ProjectionName = Literal["gated", "relu_first", "layer_norm", "batch_norm"]
RedundancyName = Literal["cosine", "none"]
GuideName = Literal["deepest", "deepest_mlp", "pooled"]
OutName = Literal["linear", "layer_norm", "batch_norm"]
PresetName = Literal["t5_glue", "clip4clip", "vse_text", "vse_image", "mdetr", "lxmert"]


@dataclass(frozen=True, kw_only=True)
class Form:
    """One published form: its four parts and their numbers."""

    projection: ProjectionName = "gated"
    redundancy: RedundancyName = "cosine"
    guide: GuideName = "deepest"
    out: OutName = "linear"
    gate: bool = True
    """Whether the deepest tap is scaled by tanh(g / 0.1), or added as it is."""
    eps: float = 1e-6
    """Added to the norms of features and of weights."""
    reduction: int | None = None
    """D / d; None where `bottleneck` says d."""
    bottleneck: int | None = None
    dropout: float = 0.0
    """Of the out part."""
    init: Literal["default", "xavier"] | float = "default"
    """Standard deviation of normal weights with biases of zero; else as torch does, or with Xavier-uniform weights."""


PRESETS: dict[str, Form] = {
    "t5_glue": Form(reduction=8, init=0.01),
    "clip4clip": Form(projection="relu_first", guide="pooled", gate=False, bottleneck=512),
    "vse_text": Form(projection="layer_norm", out="layer_norm", eps=1e-8, bottleneck=512, dropout=0.1),
    "vse_image": Form(projection="batch_norm", out="batch_norm", eps=1e-8, bottleneck=512),
    "mdetr": Form(projection="layer_norm", guide="deepest_mlp", out="layer_norm", reduction=2, init="xavier"),
    "lxmert": Form(reduction=2, init=0.02),
}


@dataclass(frozen=True)
class Part:
    """build(block, K, D, d) makes the parameters; run(block, ...) computes."""

    build: Callable[[Any, int, int, int], None]
    run: Callable[..., Any]


def _build_reduce(block: Any, count: int, width: int, d: int) -> None:
    if len(set(block.widths)) > 1:
        block.entries = nn.ModuleList(nn.Linear(own, d) for own in block.widths)
        return
    # [in, out] and contiguous: the layout in which one batched product for all taps is fastest
    block.reduce_weight = nn.Parameter(torch.empty(count, width, d))
    block.reduce_bias = nn.Parameter(torch.zeros(count, 1, d))


def _reduce(block: Any, taps: Taps) -> Tensor:
    if not isinstance(taps, Tensor):
        return torch.stack([entry(tap) for entry, tap in zip(block.entries, taps, strict=True)])
    reduced: Tensor = torch.baddbmm(block.reduce_bias, taps, block.reduce_weight)
    return reduced


# ---- projection: taps [K, N, D] -> features [K, N, d]


def _build_gated(block: Any, count: int, width: int, d: int) -> None:
    _build_reduce(block, count, width, d)
    block.refine_weight = nn.Parameter(torch.empty(count, d, 2 * d))
    block.refine_bias = nn.Parameter(torch.zeros(count, 1, 2 * d))


def _gated(block: Any, taps: Taps) -> Tensor:
    reduced = torch.relu(_reduce(block, taps))
    value, gate = torch.baddbmm(block.refine_bias, reduced, block.refine_weight).chunk(2, dim=-1)
    return (value + reduced) * torch.sigmoid(gate)


def _build_layer_norm(block: Any, count: int, width: int, d: int) -> None:
    _build_reduce(block, count, width, d)
    block.reduce_norm_weight = nn.Parameter(torch.ones(count, 1, d))
    block.reduce_norm_bias = nn.Parameter(torch.zeros(count, 1, d))


def _layer_norm(block: Any, taps: Taps) -> Tensor:
    reduced = _reduce(block, taps)
    normed: Tensor = nn.functional.layer_norm(reduced, reduced.shape[-1:])
    scaled: Tensor = normed * block.reduce_norm_weight + block.reduce_norm_bias
    return scaled


def _build_batch_norm(block: Any, count: int, width: int, d: int) -> None:
    _build_reduce(block, count, width, d)
    block.reduce_norm = nn.BatchNorm1d(count * d)


def _batch_norm(block: Any, taps: Taps) -> Tensor:
    reduced = _reduce(block, taps)
    count, rows, d = reduced.shape
    normed: Tensor = block.reduce_norm(reduced.transpose(0, 1).reshape(rows, count * d))
    return normed.view(rows, count, d).transpose(0, 1)


PROJECTIONS: dict[str, Part] = {
    "gated": Part(_build_gated, _gated),
    "relu_first": Part(_build_reduce, lambda block, taps: _reduce(block, each_tap(taps, torch.relu))),
    "layer_norm": Part(_build_layer_norm, _layer_norm),
    "batch_norm": Part(_build_batch_norm, _batch_norm),
}


# ---- guide: how the sum of weighted features [N, d] meets the guide [N, d]


def _build_nothing(block: Any, count: int, width: int, d: int) -> None:
    pass


def _build_mlp(block: Any, count: int, width: int, d: int) -> None:
    block.mix = nn.Sequential(nn.Linear(d, width), nn.ReLU(), nn.Linear(width, d), nn.LayerNorm(d))


def _build_pooled(block: Any, count: int, width: int, d: int) -> None:
    block.guide = nn.Linear(width, d)
    block.spatial_weight = nn.Parameter(torch.empty(count, 1, d))
    block.spatial_bias = nn.Parameter(torch.zeros(count, 1))


def _pool(block: Any, taps: Taps, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of each segment: pooled features [K, S, d], the guide [S, d] and the row it was made from [S, D].

    A feature's rows are weighed by their agreement with the guide, and its own first (on causal streams: last) row
    is added.
    """
    ends = lengths.cumsum(0)
    anchor = ends - 1 if block.causal_stream else ends - lengths
    row = taps[-1][anchor]
    if block.final_norm is not None:
        row = block.final_norm(row)
    guide = block.guide(torch.relu(row))
    segments = torch.arange(len(lengths), device=lengths.device)
    owner = torch.repeat_interleave(segments, lengths, output_size=features.shape[1])
    scores = (block.spatial_weight * guide[owner] * features).sum(-1) + block.spatial_bias  # [K, N]
    scores = torch.relu(scores)
    totals = scores.new_zeros(len(scores), len(lengths)).index_add(1, owner, scores)
    shares = scores / (totals[:, owner] + block.eps)
    weighed = shares.unsqueeze(-1) * features
    pooled = weighed.new_zeros(len(features), len(lengths), features.shape[-1]).index_add(1, owner, weighed)
    return pooled + features[:, anchor], guide, row


GUIDES: dict[str, Part] = {
    "deepest": Part(_build_nothing, lambda block, summed, guide: summed + guide),
    "deepest_mlp": Part(_build_mlp, lambda block, summed, guide: block.mix(summed) + guide),
    "pooled": Part(_build_pooled, lambda block, summed, guide: summed + guide),
}
pool = _pool


# ---- out: fused features [N, d] -> rows [N, D], before the residual


def _build_expand(block: Any, count: int, width: int, d: int) -> None:
    block.expand = nn.Linear(d, width)


def _build_expand_norm(block: Any, count: int, width: int, d: int) -> None:
    block.expand = nn.Linear(d, width)
    block.expand_norm = nn.LayerNorm(width, eps=1e-12)


def _build_expand_batch_norm(block: Any, count: int, width: int, d: int) -> None:
    block.expand = nn.Linear(d, width)
    block.expand_norm = nn.BatchNorm1d(width)


OUTS: dict[str, Part] = {
    "linear": Part(_build_expand, lambda block, fused: block.expand(torch.relu(fused))),
    "layer_norm": Part(_build_expand_norm, lambda block, fused: block.expand_norm(block.expand(torch.relu(fused)))),
    "batch_norm": Part(
        _build_expand_batch_norm, lambda block, fused: torch.relu(block.expand_norm(block.expand(fused)))
    ),
}


def initialise(block: nn.Module, init: Literal["default", "xavier"] | float) -> None:
    """Draw the block's weights anew. Norms, gates and running statistics stay as they are made."""
    norms = {id(item) for module in block.modules() if "Norm" in type(module).__name__ for item in module.parameters()}
    for name, parameter in block.named_parameters():
        if id(parameter) in norms or "norm" in name or parameter.ndim == 0:
            continue
        is_bias = name.endswith("bias")
        fan_in, fan_out = _fans(parameter, block, name)
        bound = fan_in**-0.5
        if isinstance(init, float):
            nn.init.zeros_(parameter) if is_bias else nn.init.normal_(parameter, std=init)
        elif is_bias or init == "default":
            nn.init.uniform_(parameter, -bound, bound)
        else:
            limit = (6 / (fan_in + fan_out)) ** 0.5
            nn.init.uniform_(parameter, -limit, limit)


def _fans(parameter: nn.Parameter, block: nn.Module, name: str) -> tuple[int, int]:
    """Inputs and outputs of the matrix that a weight is, or that a bias goes with."""
    weight = block.get_parameter(f"{name.removesuffix('bias')}weight") if name.endswith("bias") else parameter
    if name.startswith("spatial"):
        return weight.shape[-1], 1
    if name.startswith("reduce"):
        return weight.shape[1], weight.shape[2]
    if name.startswith("refine"):  # two matrices side by side
        return weight.shape[1], weight.shape[2] // 2
    return weight.shape[1], weight.shape[0]

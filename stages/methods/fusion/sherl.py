"""SHERL's anti-redundancy fusion (Diao et al. 2024, ECCV, arXiv 2407.07523), as its code has it for T5.

For one token, with K taps x_1 .. x_K of width D, shallow to deep, and d = D // reduction:

    u_k = relu(W1_k x_k + b1_k)        f_k = (W2_k u_k + b2_k + u_k) * sigmoid(W3_k u_k + b3_k)
    r_k = sum over shallow j of relu(cos(f_k, f_j))             redundancy, the term j = k included
    m_k = w . (f_k * f_K) + b                                   score against the guide f_K, the deepest tap
    a_k = relu(m_k) / r_k, divided by their sum                 weights of the shallow taps
    z   = sum over shallow k of a_k f_k + f_K
    y   = W_o relu(z) + b_o + tanh(g / 0.1) * x_K               g starts at 0

The official code divides by zero where every unit of a tap is zero (rows of zeros, or a dead tap), and its
gradients are then NaN. Here norms and redundancies have a floor, which leaves any other value as it was; the
option `official_exact` takes the floor away.
"""

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from ..contract import Block, Options, RecipeError, StreamSpec, TokenwiseFusion, choose_taps

_EPS = 1e-6  # added to both norms, as published
_TEMPERATURE = 0.1
_NORM_FLOOR = 1e-24  # of a squared norm: keeps the gradient of its root finite at zero
_REDUNDANCY_FLOOR = 1e-6
# Blocks whose outputs the official T5 recipes tap, by number of blocks (T5-base, T5-large). The output of
# block i is tap i + 1.
_PUBLISHED_BLOCKS = {
    12: (1, 2, 3, 5, 6, 7, 9, 10, 11),
    24: (1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 22, 23),
}


class SherlConfig(Options):
    """Options of SHERL's fusion."""

    taps: str | None = Field(
        None,
        description="Taps to read, the deepest among them; unset: the published choice for "
        "encoder-decoders of 12 or 24 blocks, else every tap.",
    )
    reduction: int | None = Field(
        None, ge=1, description="Width over bottleneck, D / d; unset: 8 for an encoder-decoder, 2 otherwise."
    )
    init_std: float | None = Field(
        None,
        gt=0,
        description="Standard deviation of new weights; unset: 0.01 for an encoder-decoder, 0.02 otherwise.",
    )
    gate: bool = Field(
        True,
        description="Scale the deepest tap by tanh(g / 0.1), g = 0 at the start; false: add it as it is.",
    )
    official_exact: bool = Field(
        False, description="Without the floors that keep dead taps and rows of zeros finite; for comparisons."
    )


class SherlBlock(Block):
    """The fusion of one stream. Stacked over the K taps: W1 [K, D, d], and W2 beside W3 in [K, d, 2d]."""

    def __init__(self, config: SherlConfig, spec: StreamSpec, taps: tuple[int, ...]) -> None:
        super().__init__(config, spec, taps)
        reduction = config.reduction or (8 if spec.encoder_decoder else 2)
        count, width, bottleneck = len(taps), spec.width, spec.width // reduction
        if bottleneck == 0:
            raise RecipeError(
                f"fusion.reduction: {reduction} leaves no bottleneck in {spec.name} of width {width}; "
                f"use at most {width}"
            )
        # [in, out] and contiguous: the layout in which one batched product for all taps is fastest
        self.reduce_weight = nn.Parameter(torch.empty(count, width, bottleneck))
        self.reduce_bias = nn.Parameter(torch.zeros(count, 1, bottleneck))
        self.refine_weight = nn.Parameter(torch.empty(count, bottleneck, 2 * bottleneck))
        self.refine_bias = nn.Parameter(torch.zeros(count, 1, 2 * bottleneck))
        self.score = nn.Linear(bottleneck, 1)
        self.expand = nn.Linear(bottleneck, width)
        self.gate = nn.Parameter(torch.zeros(())) if config.gate else None
        self.floored = not config.official_exact
        std = config.init_std or (0.01 if spec.encoder_decoder else 0.02)
        for weight in (self.reduce_weight, self.refine_weight, self.score.weight, self.expand.weight):
            nn.init.normal_(weight, std=std)
        for bias in (self.score.bias, self.expand.bias):
            nn.init.zeros_(bias)

    def forward(self, taps: Tensor) -> Tensor:
        features = self.features(taps)
        shallow, guide = features[:-1], features[-1]
        weights = self.weigh(shallow, guide)
        fused = (weights.T.unsqueeze(2) * shallow).sum(0) + guide  # [N, d]
        residual = taps[-1] if self.gate is None else torch.tanh(self.gate / _TEMPERATURE) * taps[-1]
        return self.expand(torch.relu(fused)) + residual  # type: ignore[no-any-return]

    def weights(self, taps: Tensor) -> Tensor:
        """[K, N, D] -> [N, K-1]: the weights a_k of the shallow taps; a row sums to just under 1, or to 0."""
        features = self.features(taps)
        return self.weigh(features[:-1], features[-1])

    def features(self, taps: Tensor) -> Tensor:
        """[K, N, D] -> [K, N, d]: f_k of every tap, the guide last."""
        reduced = torch.relu(torch.baddbmm(self.reduce_bias, taps, self.reduce_weight))
        value, gate = torch.baddbmm(self.refine_bias, reduced, self.refine_weight).chunk(2, dim=-1)
        return (value + reduced) * torch.sigmoid(gate)

    def redundancy(self, shallow: Tensor) -> Tensor:
        """[K-1, N, d] -> [N, K-1]: how often each feature is said, by itself and by its like; 1 to K-1."""
        squares = shallow.square().sum(-1, keepdim=True)
        norms = (squares + _NORM_FLOOR if self.floored else squares).sqrt() + _EPS
        directions = (shallow / norms).transpose(0, 1)  # [N, K-1, d]
        cosines = directions @ directions.transpose(1, 2)  # [N, K-1, K-1]
        said = torch.relu(cosines).sum(-1)
        return said.clamp_min(_REDUNDANCY_FLOOR) if self.floored else said

    def weigh(self, shallow: Tensor, guide: Tensor) -> Tensor:
        """[K-1, N, d] and [N, d] -> [N, K-1]: the weights a_k."""
        scores = self.score(shallow * guide).squeeze(-1).T  # [N, K-1]
        raw = torch.relu(scores) / self.redundancy(shallow)
        return raw / (raw.sum(-1, keepdim=True) + _EPS)


class Sherl(TokenwiseFusion):
    """Weights shallow layers by agreement with the deepest one and by how little they repeat one another."""

    Config = SherlConfig
    source = "SHERL, Diao et al. 2024, arXiv 2407.07523"
    block = SherlBlock
    exit_norm = "new"

    @classmethod
    def select(cls, config: Any, name: str, streams: Mapping[str, StreamSpec]) -> tuple[int, ...]:
        spec = streams[name]
        taps = choose_taps(config.taps, name, streams)
        if taps is None:
            taps = _default_taps(spec)
        if taps[-1] != spec.deepest:
            raise RecipeError(
                f"fusion.taps ({name}): the deepest tap, h{spec.deepest:02d}, guides the fusion and is missing; add -1"
            )
        if len(taps) < 2:
            raise RecipeError(
                f"fusion.taps ({name}): h{spec.deepest:02d} alone is a guide without a shallow tap to weigh; "
                "read another tap, or leave more blocks before the late ones"
            )
        return taps


def _default_taps(spec: StreamSpec) -> tuple[int, ...]:
    blocks = _PUBLISHED_BLOCKS.get(spec.depth) if spec.encoder_decoder else None
    if blocks is None:
        return tuple(range(spec.deepest + 1))
    return tuple(sorted({0, *(block + 1 for block in blocks if block < spec.deepest), spec.deepest}))

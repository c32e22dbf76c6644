"""UniPT's parallel network on final states (Diao et al. 2024, CVPR, arXiv 2308.14316).

For one segment of T tokens, with shallow taps X_1 .. X_K, the deepest tap as anchor and d = D // reduction:

    t_k = LN(P_k X_k)      A = LN(P X_anchor)                  [T, d]
    C_k = relu(A t_k^T), each row divided by its sum, + I      interaction of anchor and tap, [T, T]
    M_k = C_k t_k
    c   = softmax over k of w . (mean(A) * mean(t_k)) + b      confidence of each tap, means over the tokens
    y   = W relu(A + Proj(sum over k of c_k M_k)) + b_o

Nothing goes back into the backbone: the rows are for the head.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ..contract import (
    Options,
    RecipeError,
    SegmentBlock,
    StreamSpec,
    StreamwiseFusion,
    Taps,
    choose_taps,
    padding_of,
    pool_segments,
)


class UniPTConfig(Options):
    """Options of UniPT."""

    taps: str | None = Field(None, description="Taps to read, the deepest among them; unset: every tap.")
    reduction: int = Field(2, ge=1, description="Width over bottleneck, D / d.")
    project: Literal["linear", "mlp"] = Field(
        "linear",
        description="Behind the weighted sum: a linear layer, or one with a hidden layer of width D; then a norm.",
    )
    activation: bool = Field(True, description="A ReLU before the last linear layer.")
    eps: float = Field(1e-8, gt=0, description="Added to the sums that rows of interactions are divided by.")


class UniPTBlock(SegmentBlock):
    """Stacked over the K + 1 taps, the anchor last: P [K + 1, D, d] with its norms; a layer a tap where widths differ."""

    def __init__(self, config: UniPTConfig, spec: StreamSpec, taps: tuple[int, ...]) -> None:
        super().__init__(config, spec, taps)
        count, width, d = len(taps), spec.width, spec.width // config.reduction
        if d == 0:
            raise RecipeError(
                f"fusion.reduction: {config.reduction} leaves no bottleneck in {spec.name} of width {width}; "
                f"use at most {width}"
            )
        self.eps = config.eps
        widths = spec.widths_of(taps)
        self.entries = nn.ModuleList(nn.Linear(own, d) for own in widths) if len(set(widths)) > 1 else None
        if self.entries is None:
            bound = width**-0.5
            self.reduce_weight = nn.Parameter(torch.empty(count, width, d).uniform_(-bound, bound))
            self.reduce_bias = nn.Parameter(torch.empty(count, 1, d).uniform_(-bound, bound))
        self.reduce_norm_weight = nn.Parameter(torch.ones(count, 1, d))
        self.reduce_norm_bias = nn.Parameter(torch.zeros(count, 1, d))
        self.score = nn.Linear(d, 1)
        hidden = [nn.Linear(d, width), nn.ReLU(), nn.Linear(width, d)] if config.project == "mlp" else [nn.Linear(d, d)]
        self.project = nn.Sequential(*hidden, nn.LayerNorm(d))
        self.activation = nn.ReLU() if config.activation else nn.Identity()
        self.expand = nn.Linear(d, width)

    def forward(self, taps: Taps, lengths: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(taps)
        anchor = features[-1]
        padding = padding_of(lengths)
        anchors = padding.pad(anchor)  # [S, T, d], zero where no token is: a key of zero interacts with nothing
        confidence = self.confidence(features, lengths)  # [K, S]
        mixed = torch.zeros_like(anchors)
        for feature, share in zip(features[:-1], confidence, strict=True):
            target = padding.pad(feature)
            mixed = mixed + share[:, None, None] * (self.interaction(anchors, target) @ target + target)
        fused = anchor + self.project(padding.pack(mixed))
        return self.expand(self.activation(fused)), lengths

    def features(self, taps: Taps) -> Tensor:
        """K + 1 taps [N, D_k] -> [K + 1, N, d], the anchor last."""
        if isinstance(taps, Tensor):
            reduced = torch.baddbmm(self.reduce_bias, taps, self.reduce_weight)
        else:
            assert self.entries is not None
            reduced = torch.stack([entry(tap) for entry, tap in zip(self.entries, taps, strict=True)])
        normed = nn.functional.layer_norm(reduced, reduced.shape[-1:])
        return normed * self.reduce_norm_weight + self.reduce_norm_bias

    def interaction(self, anchors: Tensor, targets: Tensor) -> Tensor:
        """[S, T, d] twice -> C_k less the identity, [S, T, T]; a row sums to just under 1, or to 0."""
        scores = torch.relu(anchors @ targets.transpose(1, 2))
        return scores / (scores.sum(-1, keepdim=True) + self.eps)

    def confidence(self, features: Tensor, lengths: Tensor) -> Tensor:
        """[K + 1, N, d] and [S] -> [K, S]: the share of each shallow tap, 1 over the taps of a segment."""
        means = torch.stack([pool_segments(feature, lengths, "mean") for feature in features])
        return torch.softmax(self.score(means[-1] * means[:-1]).squeeze(-1), dim=0)


class UniPT(StreamwiseFusion):
    """Lets every token of the deepest layer gather from all tokens of shallower ones; ends at the head."""

    Config = UniPTConfig
    source = "UniPT, Diao et al. 2024, arXiv 2308.14316"
    trains = "K (D d + 3 d) + D d + d d + D + 4 d + 1, a stream; d = D / reduction"
    block = UniPTBlock
    exit_norm = "none"
    enters_late = False
    any_widths = True

    @classmethod
    def select(cls, config: Any, name: str, streams: Mapping[str, StreamSpec]) -> tuple[int, ...]:
        spec = streams[name]
        taps = choose_taps(config.taps, name, streams) or tuple(range(spec.deepest + 1))
        if taps[-1] != spec.deepest or len(taps) < 2:
            raise RecipeError(
                f"fusion.taps ({name}): read the deepest tap, h{spec.deepest:02d}, which anchors the fusion, and at "
                "least one other"
            )
        return taps

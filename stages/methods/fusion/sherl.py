"""SHERL's anti-redundancy fusion (Diao et al. 2024, ECCV, arXiv 2407.07523), as its code has it for T5.

For one token, with K taps x_1 .. x_K of width D, shallow to deep, and d = D // reduction:

    u_k = relu(W1_k x_k + b1_k)        f_k = (W2_k u_k + b2_k + u_k) * sigmoid(W3_k u_k + b3_k)
    r_k = sum over shallow j of relu(cos(f_k, f_j))             redundancy, the term j = k included
    m_k = w . (f_k * f_K) + b                                   score against the guide f_K, the deepest tap
    a_k = relu(m_k) / r_k, divided by their sum                 weights of the shallow taps
    z   = sum over shallow k of a_k f_k + f_K
    y   = W_o relu(z) + b_o + tanh(g / 0.1) * x_K               g starts at 0

That is one of its published forms. They differ in four parts, and `preset` names one (stages/methods/fusion/
_sherl_parts.py holds the table): how a tap becomes a feature (`projection`), whether redundancy divides the scores,
what guides and how the weighted sum meets it (`guide`), and what becomes of the result (`out`).

The official code divides by zero where every unit of a tap is zero (rows of zeros, or a dead tap), and its
gradients are then NaN. Here norms and redundancies have a floor, which leaves any other value as it was; the
option `official_exact` takes the floor away.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ..contract import Block, Options, Packed, RecipeError, StreamSpec, Taps, TokenwiseFusion, choose_taps
from . import _sherl_parts as parts

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

    preset: parts.PresetName | None = Field(
        None,
        description="Published form: t5_glue, clip4clip (one row a segment, for the head), vse_text, vse_image, mdetr or "
        "lxmert; unset: as on T5, with a wider bottleneck where there is no decoder. Options below override its parts.",
    )
    taps: str | None = Field(
        None,
        description="Taps to read, the deepest among them; unset: the published choice for "
        "encoder-decoders of 12 or 24 blocks, else every tap.",
    )
    reduction: int | None = Field(
        None, ge=1, description="Width over bottleneck, D / d; unset: 8 for an encoder-decoder, 2 otherwise."
    )
    bottleneck: int | None = Field(None, ge=1, description="Width d of features, instead of reduction.")
    init_std: float | None = Field(
        None,
        gt=0,
        description="Standard deviation of new weights; unset: 0.01 for an encoder-decoder, 0.02 otherwise.",
    )
    gate: bool | None = Field(
        None,
        description="Scale the deepest tap by tanh(g / 0.1), g = 0 at the start; false: add it as it is; unset: true.",
    )
    projection: parts.ProjectionName | None = Field(
        None, description="Tap to feature: gated, relu_first, layer_norm or batch_norm; unset: gated."
    )
    redundancy: parts.RedundancyName | None = Field(
        None, description="What divides the scores: cosine similarity between taps, or none; unset: cosine."
    )
    guide: parts.GuideName | None = Field(
        None,
        description="The deepest tap, the same with an MLP on the weighted sum (deepest_mlp), or one row of it to which "
        "every tap is pooled (pooled); unset: deepest.",
    )
    out: parts.OutName | None = Field(
        None, description="Behind the last product: linear, layer_norm or batch_norm; unset: linear."
    )
    eps: float | None = Field(None, gt=0, description="Added to norms and sums that divide; unset: 1e-6.")
    dropout: float | None = Field(None, ge=0, lt=1, description="On what is added to the deepest tap; unset: 0.")
    official_exact: bool = Field(
        False, description="Without the floors that keep dead taps and rows of zeros finite; for comparisons."
    )

    def form(self, spec: StreamSpec) -> parts.Form:
        """The preset's form, or the stream's, with the options that are set. Raises RecipeError."""
        if self.reduction is not None and self.bottleneck is not None:
            raise RecipeError("fusion.bottleneck: it and fusion.reduction both say how wide a feature is; give one")
        usual = parts.PRESETS["t5_glue" if spec.encoder_decoder else "lxmert"]
        form = usual if self.preset is None else parts.PRESETS[self.preset]
        keys = ("gate", "projection", "redundancy", "guide", "out", "eps", "dropout")
        chosen = {key: getattr(self, key) for key in keys if getattr(self, key) is not None}
        if self.reduction is not None or self.bottleneck is not None:
            chosen |= {"reduction": self.reduction, "bottleneck": self.bottleneck}
        if self.init_std is not None:
            chosen["init"] = self.init_std
        return replace(form, **chosen)


class SherlBlock(Block):
    """The fusion of one stream. Stacked over the K taps: W1 [K, D, d], a layer a tap where widths differ, and W2 beside W3 in
    [K, d, 2d]."""

    def __init__(self, config: SherlConfig, spec: StreamSpec, taps: tuple[int, ...]) -> None:
        super().__init__(config, spec, taps)
        form = self.form = config.form(spec)
        count, width = len(taps), spec.width
        bottleneck = form.bottleneck or width // (form.reduction or 1)
        if bottleneck == 0:
            raise RecipeError(
                f"fusion.reduction: {form.reduction} leaves no bottleneck in {spec.name} of width {width}; "
                f"use at most {width}"
            )
        self.pools = form.guide == "pooled"
        if self.pools and spec.exit != "head":
            raise RecipeError(
                "fusion.guide: pooled gives one row a segment, which only a head can read; set late.blocks: 0"
            )
        self.eps, self.causal_stream = form.eps, spec.causal
        self.final_norm = spec.final_norm if self.pools else None
        self.widths = spec.widths_of(taps)
        parts.PROJECTIONS[form.projection].build(self, count, width, bottleneck)
        self.score = nn.Linear(bottleneck, 1)
        parts.GUIDES[form.guide].build(self, count, width, bottleneck)
        parts.OUTS[form.out].build(self, count, width, bottleneck)
        self.dropout = nn.Dropout(form.dropout)
        self.gate = nn.Parameter(torch.zeros(())) if form.gate else None
        self.floored = not config.official_exact
        parts.initialise(self, form.init)

    def forward(self, taps: Taps) -> Tensor:
        rows, _ = self.fuse(taps, None)
        return rows

    def fuse(self, taps: Taps, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """K taps [N, D_k] -> fused rows [N, D] and the weights [N, K'] of the taps that were weighed; where the taps are
        pooled, one row a segment of `lengths` [S]."""
        features = self.features(taps)
        if self.pools:
            assert lengths is not None
            shallow, guide, residual = parts.pool(self, taps, features, lengths)
        else:
            shallow, guide, residual = features[:-1], features[-1], taps[-1]
        weights = self.weigh(shallow, guide)
        summed = (weights.T.unsqueeze(2) * shallow).sum(0)  # [N, d]
        fused = parts.GUIDES[self.form.guide].run(self, summed, guide)
        if self.gate is not None:
            residual = torch.tanh(self.gate / _TEMPERATURE) * residual
        return self.dropout(parts.OUTS[self.form.out].run(self, fused)) + residual, weights

    def weights(self, taps: Taps) -> Tensor:
        """K taps [N, D_k] -> [N, K-1]: the weights a_k of the shallow taps; a row sums to just under 1, or to 0."""
        features = self.features(taps)
        return self.weigh(features[:-1], features[-1])

    def features(self, taps: Taps) -> Tensor:
        """K taps [N, D_k] -> [K, N, d]: f_k of every tap, the guide last."""
        features: Tensor = parts.PROJECTIONS[self.form.projection].run(self, taps)
        return features

    def redundancy(self, shallow: Tensor) -> Tensor:
        """[K-1, N, d] -> [N, K-1]: how often each feature is said, by itself and by its like; 1 to K-1."""
        rows = shallow.transpose(0, 1)  # [N, K-1, d]
        products = rows @ rows.transpose(1, 2)  # [N, K-1, K-1]
        squares = products.flatten(1)[:, :: len(shallow) + 1]  # [N, K-1], their diagonal
        norms = (squares + _NORM_FLOOR if self.floored else squares).sqrt() + self.eps  # [N, K-1]
        said = (torch.relu(products) / (norms.unsqueeze(2) * norms.unsqueeze(1))).sum(-1)
        return said.clamp_min(_REDUNDANCY_FLOOR) if self.floored else said

    def weigh(self, shallow: Tensor, guide: Tensor) -> Tensor:
        """[K-1, N, d] and [N, d] -> [N, K-1]: the weights a_k."""
        scores = self.score(shallow * guide).squeeze(-1).T  # [N, K-1]
        raw = torch.relu(scores)
        if self.form.redundancy == "cosine":
            raw = raw / self.redundancy(shallow)
        return raw / (raw.sum(-1, keepdim=True) + self.eps)


class Sherl(TokenwiseFusion):
    """Weights shallow layers by agreement with the deepest one and by how little they repeat one another."""

    Config = SherlConfig
    source = "SHERL, Diao et al. 2024, arXiv 2407.07523"
    trains = (
        "K (D d + 2 d d + 3 d) + D d + D + d + 2, a stream; d = D / reduction, other parts than the "
        "preset's have others"
    )
    block = SherlBlock
    exit_norm: Literal["new", "pretrained", "none"] = "new"
    any_widths = True

    def __init__(self, configs: Mapping[str, Any], streams: Mapping[str, StreamSpec]) -> None:
        super().__init__(configs, streams)
        forms = [config.form(streams[name]) for name, config in configs.items()]
        pooled = any(form.guide == "pooled" for form in forms)
        self.causal = not pooled
        # a batch norm in training reads every row of the batch
        self.tokenwise = not pooled and not any("batch_norm" in (form.projection, form.out) for form in forms)
        if pooled:
            self.exit_norm = "none"

    def fuse_stream(self, block: nn.Module, packed: Packed) -> tuple[Tensor, Tensor]:
        assert isinstance(block, SherlBlock)
        rows, weights = block.fuse(packed.taps, packed.lengths)
        if not torch.compiler.is_compiling():
            block.row_weights = weights.detach()
        return rows, torch.ones_like(packed.lengths) if block.pools else packed.lengths

    def layer_weights(self) -> dict[str, Tensor]:
        found = {name: getattr(block, "row_weights", None) for name, block in self.blocks.items()}
        return {name: weights for name, weights in found.items() if weights is not None}

    @classmethod
    def select(cls, config: Any, name: str, streams: Mapping[str, StreamSpec]) -> tuple[int, ...]:
        spec = streams[name]
        taps = choose_taps(config.taps, name, streams)
        if taps is None:
            taps = _default_taps(spec, config.preset)
        if taps[-1] != spec.deepest:
            raise RecipeError(
                f"fusion.taps ({name}): the deepest tap, h{spec.deepest:02d}, guides the fusion and is missing; add -1"
            )
        if len(taps) < 2 and config.form(spec).guide != "pooled":
            raise RecipeError(
                f"fusion.taps ({name}): h{spec.deepest:02d} alone is a guide without a shallow tap to weigh; "
                "read another tap, or leave more blocks before the late ones"
            )
        return taps


def _default_taps(spec: StreamSpec, preset: str | None) -> tuple[int, ...]:
    published = spec.encoder_decoder if preset is None else preset == "t5_glue"
    blocks = _PUBLISHED_BLOCKS.get(spec.depth) if published else None
    if blocks is None:
        return tuple(range(spec.deepest + 1))
    return tuple(sorted({0, *(block + 1 for block in blocks if block < spec.deepest), spec.deepest}))

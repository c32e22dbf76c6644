"""Visual Query Tuning (Tu et al. 2023, CVPR, arXiv 2212.03220): trained queries read each frozen layer.

For each layer l with input h, and T queries Q of its own:

    u = Q + W_o attention(q(Q), k(h), v(h))        o = u + FFN(u)        with the layer's norms, before or after
    f = [c; o_0; o_1; ..], each chunk flattened and scaled to length 1

c is the pooled last state after the final norm. Queries see real tokens only, not one another, and nothing of the
backbone changes, so cached layer inputs and the layers' frozen weights are all that is needed. Keys and values need not
be made: the key matrix is folded into the query, and values are made of the weighted mean of states (`fold`). A query has
no position: where scores carry a bias by distance, it gets none. The rows are one vector a segment, for the head.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ..contract import (
    Layer,
    Options,
    Padding,
    RecipeError,
    SegmentBlock,
    StreamSpec,
    StreamwiseFusion,
    choose_taps,
    padding_of,
    pool_segments,
)


class VQTConfig(Options):
    """Options of query tuning."""

    taps: str | None = Field(None, description="Layers to query, by the tap that enters them; unset: every layer.")
    queries: int = Field(1, ge=1, description="Queries T of each layer.")
    combine: Literal["concat", "mean"] = Field("concat", description="Queries of a layer side by side, or their mean.")
    fold: bool = Field(
        True, description="Fold keys and values into queries and outputs; false: make them, as the layer does."
    )


class VQTBlock(SegmentBlock):
    """Queries [L, T, D] and the frozen layers that they read."""

    def __init__(self, config: VQTConfig, spec: StreamSpec, taps: tuple[int, ...]) -> None:
        super().__init__(config, spec, taps)
        self.places = queried(config, spec)
        self.rows_of = [taps.index(place) for place in self.places]
        self.layers = nn.ModuleDict({str(place): spec.layers[place] for place in self.places})
        self.final_norm, self.pooling = spec.final_norm, spec.pooling
        self.fold, self.mean = config.fold, config.combine == "mean"
        bound = (3 / spec.width) ** 0.5  # of a matrix from D to D, as the published one is of patches to D
        self.queries = nn.Parameter(torch.empty(len(self.places), config.queries, spec.width).uniform_(-bound, bound))
        self.out_width = spec.width * (1 + len(self.places) * (1 if self.mean else config.queries))

    def forward(self, taps: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        last = taps[-1] if self.final_norm is None else self.final_norm(taps[-1])
        chunks = [pool_segments(last, lengths, self.pooling)]
        padding = padding_of(lengths)
        for queries, place, row in zip(self.queries, self.places, self.rows_of, strict=True):
            layer = self.layers[str(place)]
            assert isinstance(layer, Layer)
            read = self.ask(layer, queries, taps[row], padding)
            chunks.append(read.mean(1) if self.mean else read.flatten(1))
        features = torch.cat([nn.functional.normalize(chunk, dim=-1) for chunk in chunks], dim=-1)
        return features, torch.ones_like(lengths)

    def ask(self, layer: Layer, queries: Tensor, states: Tensor, padding: Padding) -> Tensor:
        """What queries [T, D] become in a layer whose input is states [N, D]: [S, T, D]."""
        normed = layer.attention_input(states)
        asked = layer.by_head(layer.query(layer.attention_input(queries)))  # [T, H, k]
        attend = self._folded if self.fold else self._explicit
        update = layer.out(attend(layer, asked * layer.score_scale, normed, padding).flatten(2))
        alone = queries.expand(len(padding.mask), -1, -1)
        return layer.join("ffn", layer.join("attention", alone, lambda _: update), layer.feed_forward)

    def _folded(self, layer: Layer, asked: Tensor, normed: Tensor, padding: Padding) -> Tensor:
        heads, width = layer.form.heads, normed.shape[-1]
        # the bias of the key adds the same to every score of a query
        folded = torch.einsum("thk,hkd->thd", asked, layer.key.weight.view(heads, -1, width))
        shares = _shares(normed @ folded.flatten(0, 1).T, padding)  # [S, M, T * H]
        means = (shares.transpose(1, 2) @ padding.pad(normed)).view(len(shares), -1, heads, width)  # [S, T, H, D]
        read = torch.einsum("sthd,hkd->sthk", means, layer.value.weight.view(heads, -1, width))
        return read if layer.value.bias is None else read + layer.value.bias.view(heads, -1)

    def _explicit(self, layer: Layer, asked: Tensor, normed: Tensor, padding: Padding) -> Tensor:
        scores = torch.einsum("thk,nhk->nth", asked, layer.by_head(layer.key(normed)))
        values = layer.by_head(padding.pad(layer.value(normed)))  # [S, M, H, k]
        shares = _shares(scores.flatten(1), padding).view(*values.shape[:2], *scores.shape[1:])
        return torch.einsum("smth,smhk->sthk", shares, values)


class VQT(StreamwiseFusion):
    """Trained queries read the frozen attention and feed-forward of every layer; ends at the head."""

    Config = VQTConfig
    source = "VQT, Tu et al. 2023, arXiv 2212.03220"
    trains = "(K - 1) queries D, a stream; where every layer is queried"
    block = VQTBlock
    exit_norm = "none"
    enters_late = False

    @classmethod
    def select(cls, config: Any, name: str, streams: Mapping[str, StreamSpec]) -> tuple[int, ...]:
        return tuple(sorted({*queried(config, streams[name]), streams[name].deepest}))

    @classmethod
    def frozen_layers(cls, options: Mapping[str, Any], streams: Mapping[str, StreamSpec]) -> dict[str, tuple[int, ...]]:
        cls.check_exit(streams)
        return {name: queried(config, streams[name]) for name, config in cls.stream_configs(options, streams).items()}


def queried(config: VQTConfig, spec: StreamSpec) -> tuple[int, ...]:
    """Numbers of the layers that are queried. Raises RecipeError."""
    taps = choose_taps(config.taps, spec.name, {spec.name: spec})
    places = tuple(range(spec.depth)) if taps is None else taps
    if places[-1] >= spec.depth:
        raise RecipeError(
            f"fusion.taps ({spec.name}): h{spec.depth:02d} enters no layer; the last that does is h{spec.depth - 1:02d}, "
            "leave out what is above"
        )
    return places


def _shares(scores: Tensor, padding: Padding) -> Tensor:
    """Scores [N, Q] of packed rows -> softmax over the rows of each segment, [S, M, Q], 0 where no row is."""
    absent = padding.mask.unsqueeze(-1) == 0
    return padding.pad(scores).masked_fill(absent, -torch.inf).softmax(1)

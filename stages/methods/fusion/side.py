"""Side-Tuning (Zhang et al. 2020, ECCV, arXiv 1912.13503): a small network beside the frozen one, blended with it.

    R(x) = alpha B(x) + (1 - alpha) S(x)        alpha = sigmoid(a), a = 0 at the start

B(x) is the deepest state. The published S reads pixels; here it reads the embeddings h_0, which hold whatever the model
reads: convolutions over neighbouring tokens of a segment, GELU between them, and on causal streams over earlier
tokens only.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from ..contract import Options, RecipeError, SegmentBlock, StreamSpec, StreamwiseFusion, Taps, padding_of


class SideConfig(Options):
    """Options of Side-Tuning."""

    layers: int = Field(4, ge=1, description="Convolutions of the side network.")
    hidden: int = Field(64, ge=1, description="Width between them.")
    kernel: int = Field(3, ge=1, description="Tokens that a convolution sees; 1: every token alone.")


class SideBlock(SegmentBlock):
    """The side network and the scalar a."""

    def __init__(self, config: SideConfig, spec: StreamSpec, taps: tuple[int, ...]) -> None:
        super().__init__(config, spec, taps)
        if spec.deepest == 0:
            raise RecipeError(
                f"fusion.name: every block of the {spec.name} runs late, which leaves its embeddings alone to read; set "
                "late.blocks lower"
            )
        embedded, base = spec.widths_of(taps)
        widths = [embedded, *[config.hidden] * (config.layers - 1), base]
        self.convolutions = nn.ModuleList(nn.Conv1d(before, after, config.kernel) for before, after in pairwise(widths))
        before = config.kernel - 1 if spec.causal else (config.kernel - 1) // 2
        self.reach = before, config.kernel - 1 - before
        self.alpha = nn.Parameter(torch.zeros(()))

    def forward(self, taps: Taps, lengths: Tensor) -> tuple[Tensor, Tensor]:
        embedded, base = taps
        share = torch.sigmoid(self.alpha)
        return share * base + (1 - share) * self.side(embedded, lengths), lengths

    def side(self, rows: Tensor, lengths: Tensor) -> Tensor:
        """S of packed rows [N, D]."""
        padding = padding_of(lengths)
        inside = padding.mask.unsqueeze(1).to(rows.dtype)
        states = padding.pad(rows).transpose(1, 2)  # [S, D, T]
        for number, convolution in enumerate(self.convolutions):
            if number:
                states = nn.functional.gelu(states) * inside  # what biases made of padding must not be read
            states = convolution(nn.functional.pad(states, self.reach))
        return padding.pack(states.transpose(1, 2))


class Side(StreamwiseFusion):
    """A small convolutional network on the embeddings, blended with the deepest state."""

    Config = SideConfig
    source = "Side-Tuning, Zhang et al. 2020, arXiv 1912.13503"
    trains = "kernel hidden (2 D + (layers - 2) hidden) + (layers - 1) hidden + D + 1, a stream; from two layers on"
    block = SideBlock
    exit_norm = "pretrained"
    causal = True
    any_widths = True

    @classmethod
    def select(cls, config: Any, name: str, streams: Mapping[str, StreamSpec]) -> tuple[int, ...]:
        return tuple(sorted({0, streams[name].deepest}))

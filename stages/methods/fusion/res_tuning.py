"""Res-Tuning's bypass (Jiang et al. 2023, NeurIPS, arXiv 2310.19859): a light path beside the frozen layers.

    b_0 = x_0        b_{i+1} = lateral_i(x_{i+1}) + vertical_i(b_i)        T(x) = x + W2 gelu(W1 x + c1) + c2

over the taps x_0 .. x_K; b_K takes the place of the last state, in front of the pretrained norm. The published form
ends there, at the head (`late.blocks: 0`).
"""

import torch
from pydantic import Field
from torch import Tensor, nn

from ..contract import Block, Options, RecipeError, StreamSpec, TokenwiseFusion


class ResTuningConfig(Options):
    """Options of the bypass."""

    taps: str | None = Field(None, description="Taps along the bypass; unset: every tap.")
    bottleneck: int = Field(32, ge=1, description="Hidden width of each tuner.")
    zero_init_last: bool = Field(False, description="Start with the last two tuners handing on what they are given.")


class ResTuningBlock(Block):
    """The K lateral tuners and the K vertical ones, stacked in this order: W1 [2K, D, m], W2 [2K, m, D]."""

    def __init__(self, config: ResTuningConfig, spec: StreamSpec, taps: tuple[int, ...]) -> None:
        super().__init__(config, spec, taps)
        if len(taps) < 2:
            raise RecipeError(
                f"fusion.taps ({spec.name}): a bypass needs at least two, and reads {len(taps)}; name one more, or run fewer "
                "late blocks"
            )
        self.steps = len(taps) - 1
        count, width, m = 2 * self.steps, spec.width, config.bottleneck
        self.down_weight = nn.Parameter(torch.empty(count, width, m))
        self.down_bias = nn.Parameter(torch.empty(count, 1, m).normal_(std=1e-6))
        self.up_weight = nn.Parameter(torch.empty(count, m, width))
        self.up_bias = nn.Parameter(torch.empty(count, 1, width).normal_(std=1e-6))
        bound = (6 / (width + m)) ** 0.5
        nn.init.uniform_(self.down_weight, -bound, bound)
        nn.init.uniform_(self.up_weight, -bound, bound)
        if config.zero_init_last:
            with torch.no_grad():
                for place in (self.steps - 1, count - 1):
                    self.up_weight[place].zero_()
                    self.up_bias[place].zero_()

    def forward(self, taps: Tensor) -> Tensor:
        steps = self.steps
        lateral = self.tune(taps[1:], slice(0, steps))
        path = taps[0]
        for step in range(steps):
            vertical = self.tune(path.unsqueeze(0), slice(steps + step, steps + step + 1))
            path = lateral[step] + vertical[0]
        return path

    def tune(self, rows: Tensor, which: slice) -> Tensor:
        """[K, N, D] through as many tuners."""
        hidden = nn.functional.gelu(torch.baddbmm(self.down_bias[which], rows, self.down_weight[which]))
        return rows + torch.baddbmm(self.up_bias[which], hidden, self.up_weight[which])


class ResTuning(TokenwiseFusion):
    """A path of small bottlenecks beside the frozen layers, fed by each of them."""

    Config = ResTuningConfig
    source = "Res-Tuning, Jiang et al. 2023, arXiv 2310.19859 (bypass)"
    trains = "2 (K - 1) (2 D bottleneck + D + bottleneck), a stream"
    block = ResTuningBlock
    exit_norm = "pretrained"

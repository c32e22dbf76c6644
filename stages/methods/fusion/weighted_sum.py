"""Softmax-weighted sum of layers with a gain (Peters et al. 2018, "Deep contextualized word representations",
arXiv 1802.05365, equation 1)."""

import torch
from pydantic import Field
from torch import Tensor, nn

from ..contract import Block, Options, StreamSpec, TokenwiseFusion


class WeightedSumConfig(Options):
    """Options of the weighted sum."""

    taps: str | None = Field(None, description="Taps to sum; unset: every tap.")
    layer_norm: bool = Field(False, description="Bring every tap to mean 0 and variance 1 over its width first.")


class WeightedSumBlock(Block):
    """y = gain * sum over k of softmax(s)_k x_k; K scores s, all equal at first, and one gain."""

    def __init__(self, config: WeightedSumConfig, spec: StreamSpec, taps: tuple[int, ...]) -> None:
        super().__init__(config, spec, taps)
        self.layer_norm = config.layer_norm
        self.scores = nn.Parameter(torch.zeros(len(taps)))
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, taps: Tensor) -> Tensor:
        if self.layer_norm:
            taps = nn.functional.layer_norm(taps, taps.shape[-1:])
        # one product over all taps; the gain on the K weights costs nothing
        return torch.einsum("k,knd->nd", self.gain * torch.softmax(self.scores, 0), taps)


class WeightedSum(TokenwiseFusion):
    """One learned weight a layer, the same for every token."""

    Config = WeightedSumConfig
    source = "ELMo, Peters et al. 2018, arXiv 1802.05365, eq. 1"
    trains = "K + 1, a stream"
    block = WeightedSumBlock
    exit_norm = "pretrained"

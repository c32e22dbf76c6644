"""No fusion: late blocks go on from the deepest tap, as pretrained; plain partial fine-tuning."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..contract import Block, StreamSpec, TokenwiseFusion


class LastBlock(Block):
    """Hands on its only tap; no parameters."""

    def forward(self, taps: Tensor) -> Tensor:
        return taps[0]


class Last(TokenwiseFusion):
    """Reads the deepest layer only and hands it on unchanged."""

    source = "plain partial fine-tuning"
    trains = "0"
    block = LastBlock
    exit_norm = "pretrained"
    hands_on_deepest = True
    any_widths = True

    @classmethod
    def select(cls, config: Any, name: str, streams: Mapping[str, StreamSpec]) -> tuple[int, ...]:
        return (streams[name].deepest,)

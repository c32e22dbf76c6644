"""Dropout on the cached taps, which are the most numbers of a step: on a CPU drawing them is what takes the time."""

from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

_LEVELS: Final = 1 << 16


class TapDropout(nn.Dropout):
    """Dropout (Srivastava et al. 2014) for inputs that need no gradient.

    On a CPU a number is dropped by 16 random bits of its own, four from each draw of a generator that torch's seeds, so `p`
    is rounded to a multiple of 2^-16, and what is kept is scaled by the rounded value. Elsewhere, and where a gradient is
    needed, the library's own.
    """

    def forward(self, input: Tensor) -> Tensor:
        dropped = round(self.p * _LEVELS)
        if not self.training or not 0 < dropped < _LEVELS or input.device.type != "cpu" or input.requires_grad:
            return super().forward(input)
        random = np.random.Generator(np.random.SFC64(int(torch.randint(1 << 62, ()))))
        draws = random.integers(-(1 << 63), (1 << 63) - 1, size=-(-input.numel() // 4), dtype=np.int64, endpoint=True)
        bits = torch.from_numpy(draws).view(torch.int16)[: input.numel()].view(input.shape)
        kept = bits >= dropped - _LEVELS // 2
        return torch.where(kept, input, 0.0).mul_(_LEVELS / (_LEVELS - dropped))

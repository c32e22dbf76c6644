"""Dropout on the cached taps, which are the most numbers of a step: on a CPU drawing them and moving them is what takes
the time.
"""

from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

_LEVELS: Final = 1 << 16
_PART: Final = 1 << 18
"""Numbers that pass all of its steps together: they stay in a core's own cache. A multiple of the four of a draw."""


class TapDropout(nn.Dropout):
    """Dropout (Srivastava et al. 2014) for inputs that need no gradient, which also brings them into the number format of
    the model.

    On a CPU a number is dropped by 16 random bits of its own, four from each draw of a generator that torch's seeds, so `p`
    is rounded to a multiple of 2^-16, and what is kept is scaled by the rounded value. Elsewhere, and where a gradient is
    needed, the library's own.
    """

    def forward(self, input: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Values of any shape -> the same shape in `dtype`, their own where it is None."""
        dtype = dtype or input.dtype
        dropped = round(self.p * _LEVELS)
        if not self.training or not 0 < dropped < _LEVELS or input.device.type != "cpu" or input.requires_grad:
            return super().forward(input.to(dtype))
        output = torch.empty(input.shape, dtype=dtype)
        values, found = input.contiguous().view(-1), output.view(-1)
        random = np.random.Generator(np.random.SFC64(int(torch.randint(1 << 62, ()))))
        for start in range(0, len(values), _PART):
            part = values[start : start + _PART]
            draws = random.integers(-(1 << 63), (1 << 63) - 1, size=-(-len(part) // 4), dtype=np.int64, endpoint=True)
            bits = torch.from_numpy(draws).view(torch.int16)[: len(part)]
            kept = _with_zeros(part, bits, dropped - _LEVELS // 2)
            found[start : start + _PART].copy_(kept).mul_(_LEVELS / (_LEVELS - dropped))
        return output


def _with_zeros(values: Tensor, bits: Tensor, least: int) -> Tensor:
    """Values where `bits` are at least that, else zeros."""
    if values.element_size() != bits.element_size():
        return torch.where(bits >= least, values, 0.0)
    # ones in every bit, or zeros, over the bits of a number: less than half the time of a choice
    mask = torch.ge(bits, least, out=torch.empty_like(bits)).neg_()
    return mask.bitwise_and_(values.view(bits.dtype)).view(values.dtype)

"""Both sides of a comparison in float64, all through."""

import pytest
import torch
from torch import Tensor
from transformers.models.t5.modeling_t5 import T5LayerNorm


@pytest.fixture
def norms_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """T5's norm takes its mean square in float32 even of float64; both sides get the same formula in float64."""

    def forward(self: T5LayerNorm, states: Tensor) -> Tensor:
        return self.weight * states * torch.rsqrt(states.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)

    monkeypatch.setattr(T5LayerNorm, "forward", forward)

"""A way to train, put together in this process: what trains, and its steps one after another."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ...storage.errors import InvalidInput

if TYPE_CHECKING:
    from ..recipe_sections import Train

LEARNING_RATE = 1e-4
"""Of the live ways; no time and no memory depends on it."""

TrainStep = Callable[[], float]
"""Takes one whole step, forward, backward and optimiser, and gives its loss."""
Losses = Iterator[Sequence[tuple[float, Callable[[], Tensor]]]]
"""For every step its micro-batches: share of the batch, and the mean loss, computed when it is called."""


@dataclass(frozen=True)
class Way:
    """What one process trains.

    waited: seconds spent waiting for the store so far, and store_bytes: bytes read from it; None for live ways.
    """

    modules: Sequence[nn.Module]
    trained: Sequence[nn.Parameter]
    steps: Iterator[TrainStep]
    waited: Callable[[], float] | None = None
    store_bytes: Callable[[], int] | None = None
    facts: Mapping[str, str] = field(default_factory=dict)

    @property
    def held_bytes(self) -> int:
        """Bytes of all weights and buffers; tensors that share memory count once."""
        storages = {}
        for module in self.modules:
            for tensor in (*module.parameters(), *module.buffers()):
                storage = tensor.untyped_storage()
                storages[storage.data_ptr() or id(storage)] = storage.nbytes()
        return sum(storages.values())

    def norms(self) -> list[float]:
        """Euclidean norm of every trained tensor."""
        return [float(torch.linalg.vector_norm(parameter.detach(), dtype=torch.float64)) for parameter in self.trained]


def steps_of(
    parameters: Sequence[nn.Parameter], losses: Losses, train: Train, device: torch.device
) -> Iterator[TrainStep]:
    """Steps of AdamW over live losses, with the number format, clipping and weight decay of a recipe.

    A step raises InvalidInput where the loss is not finite.
    """
    optimizer = torch.optim.AdamW(
        parameters, lr=LEARNING_RATE, weight_decay=train.weight_decay, fused=device.type in ("cpu", "cuda")
    )
    bfloat16 = train.precision == "bfloat16"

    def step(parts: Sequence[tuple[float, Callable[[], Tensor]]]) -> float:
        optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for share, loss in parts:
            with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
                value = share * loss()
            value.backward()  # type: ignore[no-untyped-call]
            total += float(value.detach())
        if not math.isfinite(total):
            raise InvalidInput(
                f"the loss became {total}; extract with --precision float32, in which the model then computes"
            )
        if train.clip_norm is not None:
            nn.utils.clip_grad_norm_(parameters, train.clip_norm)
        optimizer.step()
        return total

    for parts in losses:
        yield lambda parts=parts: step(parts)  # type: ignore[misc]

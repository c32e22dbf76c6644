"""What of memory belongs to which part of training: weights, gradients, the optimiser's state, the batch."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch.optim import Optimizer

    from .model import StageTwo
    from .steps import TrainBatch


class HeldBytes:
    """Bytes of tensors by part, for the log. Activations between forward and backward are not counted."""

    def __init__(self, model: StageTwo, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        parts = {name: getattr(model, name, None) for name in ("late", "fusion", "head")}
        modules = {name: part for name, part in parts.items() if isinstance(part, nn.Module)}
        self._weights = {name: _bytes(chain(part.parameters(), part.buffers())) for name, part in modules.items()}
        self._gradients = _bytes(parameter for parameter in model.parameters() if parameter.requires_grad)
        self._batch = 0

    def see(self, batch: TrainBatch) -> None:
        """A micro-batch that was decoded."""
        taps = [packed.taps for packed in batch.inputs.values()]
        self._batch = _bytes(chain.from_iterable([one] if isinstance(one, Tensor) else one for one in taps))

    def told(self) -> dict[str, int]:
        """Bytes by part; the batch is the last micro-batch seen."""
        states = (value for state in self._optimizer.state.values() for value in state.values())
        optimizer = _bytes(value for value in states if isinstance(value, Tensor))
        return {**self._weights, "gradients": self._gradients, "optimizer": optimizer, "batch": self._batch}


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum({id(tensor): tensor.nbytes for tensor in tensors}.values())

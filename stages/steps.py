"""What a training loop is given: steps, one after another, each of one or several batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

    from .methods.contract import Packed, Targets


@dataclass(frozen=True)
class TrainBatch:
    """One batch as the model takes it."""

    inputs: Mapping[str, Packed]
    targets: Targets
    select: Tensor | None
    """Rows that carry a label, [N] bool, for heads that answer row by row, whose targets are those of these rows; None:
    all rows.
    """
    segments: Tensor
    """Segments of each example in the stream that the head reads, [B]."""
    examples: int
    tokens: int


class Step(Protocol):
    """What one step learns from: a global batch, or this rank's slice of one, whole or as micro-batches."""

    @property
    def examples(self) -> int: ...
    @property
    def tokens(self) -> int: ...

    def targets(self) -> Sequence[Targets]:
        """Of every micro-batch, in order."""
        ...

    def batches(self) -> Iterator[TrainBatch]:
        """The micro-batches, each made when it is asked for."""
        ...


class Batches(Protocol):
    """Where batches come from: the same sequence for the same epoch, from any batch on."""

    @property
    def waited_seconds(self) -> float:
        """Seconds spent waiting for data so far."""
        ...

    def batches_in(self, epoch: int) -> int: ...
    def steps(self, epoch: int, start_batch: int) -> Iterator[Step]: ...

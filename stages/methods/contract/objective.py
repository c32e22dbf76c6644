"""The objective axis: what a head gives and what it should have given -> a loss."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from torch import Tensor

from .base import Method

UNLABELLED = -100
"""What stands in `Targets.tokens` and `Targets.gold` where there is no label; torch's own `ignore_index`."""


@dataclass(frozen=True, kw_only=True)
class Targets:
    """What a batch should have answered; what is missing is None.

    gold: int64 [S], the class, negative where there is no label; score: float [S], NaN where there is none;
    tokens: int64 [N], UNLABELLED where there is none.
    """

    gold: Tensor | None = None
    score: Tensor | None = None
    tokens: Tensor | None = None


@dataclass(frozen=True)
class Loss:
    """A loss before it is divided, so that the loop can divide by the weight of the whole global batch.

    sum: scalar with gradient; weight: scalar, how much was summed; parts: named sums without gradient.
    """

    sum: Tensor
    weight: Tensor
    parts: dict[str, Tensor]


class Objective(Method):
    """Output of the head + targets -> Loss. Rows without label contribute nothing to sum and weight."""

    axis = "objective"
    kinds: ClassVar[tuple[str, ...]]
    """Kinds of tasks that it serves."""
    output: ClassVar[Literal["classes", "score", "tokens"]]
    """Which output of a head it reads; see `Head.output`."""

    def __init__(self, config: Any) -> None:
        super().__init__()

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        """The objective. Raises RecipeError."""
        return cls(cls.validated(options))

    @abstractmethod
    def forward(self, output: Tensor, targets: Targets) -> Loss:
        """Computed in at least float32. Raises RecipeError when the labels that it needs are missing."""

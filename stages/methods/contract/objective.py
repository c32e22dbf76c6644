"""The objective axis: what a forward gives and what it should have given -> a loss."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self

from torch import Tensor

from ....storage.errors import RecipeError
from .base import Method, Packed

UNLABELLED = -100
"""What stands in `Targets.tokens` and `Targets.gold` where there is no label; torch's own `ignore_index`."""


@dataclass(frozen=True, kw_only=True)
class Targets:
    """What a batch should have answered; what is missing is None.

    gold: int64 [S], the class, negative where there is no label; score: float [S], NaN where there is none;
    tokens: int64 [N], UNLABELLED where there is none; groups: int64 [A] and [B], what each vector of a pair belongs to
    (an image and its captions share a group), negative where that is not known.
    """

    gold: Tensor | None = None
    score: Tensor | None = None
    tokens: Tensor | None = None
    groups: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What one forward offers to objectives.

    head: what the head gives, see `Head.output`; fused: rows after the fusion by stream (K = 1); taps: what the fusion
    read, by stream. The last two are empty where no objective asks for them.
    """

    head: Any
    fused: Mapping[str, Packed] = field(default_factory=dict)
    taps: Mapping[str, Packed] = field(default_factory=dict)


@dataclass(frozen=True)
class Loss:
    """A loss before it is divided, so that the loop can divide by the weight of the whole global batch.

    sum: scalar with gradient; weight: scalar, how much was summed; parts: named sums without gradient.
    """

    sum: Tensor
    weight: Tensor
    parts: dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class ObjectiveSpec:
    """What an objective is built for.

    classes: how many labels the task has; label_counts: labelled training examples of each; streams: names of the
    streams that the fusion gives.
    """

    classes: int = 0
    label_counts: tuple[int, ...] = ()
    streams: tuple[str, ...] = ()


class Objective(Method):
    """Output of the head, or fused features, + targets -> Loss. Rows without label add nothing to sum and weight."""

    axis = "objective"
    trains = "0"
    kinds: ClassVar[tuple[str, ...]]
    """Kinds of tasks that it serves."""
    output: ClassVar[Literal["classes", "score", "tokens", "pair", "features"]]
    """What it reads: the output of a head (see `Head.output`), or `features`, the whole Outputs."""
    couples_batch: ClassVar[bool] = False
    """Its value for a batch is not the sum of its values for parts of the batch."""

    def __init__(self, config: Any, spec: ObjectiveSpec) -> None:
        super().__init__()

    @classmethod
    def from_options(cls, options: Mapping[str, Any], spec: ObjectiveSpec | None = None) -> Self:
        """The objective. Raises RecipeError."""
        return cls(cls.validated(options), spec or ObjectiveSpec())

    @abstractmethod
    def forward(self, output: Any, targets: Targets) -> Loss:
        """What `output` names -> Loss, computed in at least float32. Raises RecipeError when the labels that it needs are
        missing.
        """

    def weigh(self, targets: Targets) -> Tensor:
        """The weight of the Loss that these targets will have, known before any forward; a step in micro-batches divides
        by it. One that couples the batch has none.
        """
        raise RecipeError(
            f"train.micro_batch_examples: the objective {self.method_name()} needs the whole batch at once; set it to null"
        )

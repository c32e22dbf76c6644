"""The head axis: rows after the last block -> what an objective reads."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from ....storage.errors import RecipeError
from .base import Method, at_least_float32

Pooling = Literal["mean", "cls", "last"]


@dataclass(frozen=True, kw_only=True)
class HeadSpec:
    """What a head is built for.

    width: of the rows it reads; kind: the task's (`classification`, `regression`); classes: how many labels
    there are; pooling: the backbone's own; initializer_range: standard deviation of new weights; lm: rows
    [N, D] -> logits [N, V], the backbone's pretrained output projection, which stays the model's; second_width and
    second_pooling: of the rows of a second stream, for a head that reads two; meeting: pretrained projections of both streams
    into one space, [P, width] and [P, second_width], where the backbone has them.
    """

    width: int
    kind: str
    classes: int
    pooling: Pooling
    initializer_range: float
    lm: Callable[[Tensor], Tensor] | None = None
    second_width: int | None = None
    second_pooling: Pooling | None = None
    meeting: tuple[Tensor, Tensor] | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Pair:
    """Two sets of vectors of length one, [A, P] and [B, P], and the scale of their products, a scalar."""

    first: Tensor
    second: Tensor
    scale: Tensor


class Head(Method):
    """Rows after the last block -> what the objective reads."""

    axis = "head"
    kinds: ClassVar[tuple[str, ...]]
    """Kinds of tasks that it answers."""
    output: ClassVar[Literal["classes", "score", "tokens", "pair"]]
    """What it gives: `classes` [S, C], `score` [S], `tokens` [N, V], or `pair`, a Pair from the rows of two streams."""

    def __init__(self, config: Any, spec: HeadSpec) -> None:
        super().__init__()

    @classmethod
    def from_options(cls, options: Mapping[str, Any], spec: HeadSpec) -> Self:
        """The head for this task. Raises RecipeError, also where it does not answer this kind of task."""
        if spec.kind not in cls.kinds:
            raise RecipeError(
                f"head.name: {cls.method_name()} answers {' and '.join(cls.kinds)}, this task is one of {spec.kind}: "
                "leave head.name out for the head that fits"
            )
        return cls(cls.validated(options), spec)

    @abstractmethod
    def forward(self, rows: Any, lengths: Any) -> Any:
        """Rows [N, D] of segments of `lengths` [S] -> see `output`; for `tokens` any rows will do, and for `pair` rows
        and lengths are tuples of two.
        """

    def reads(self, lengths: Tensor, stream: int = 0) -> Tensor | None:
        """The only row that it reads of each segment, int64 [S], counted within the segment; None where it reads more.

        Here by its attribute `pooling`, where it has one. stream: 1 for the second stream of a head that reads two.
        """
        return only_row(lengths, getattr(self, "pooling", None))


def only_row(lengths: Tensor, pooling: Pooling | None) -> Tensor | None:
    """Place of the only row that a pooling reads of each segment of `lengths` [S]; None where it reads more."""
    return {"cls": torch.zeros_like(lengths), "last": lengths - 1}.get(pooling or "")


def pool_segments(rows: Tensor, lengths: Tensor, pooling: Pooling) -> Tensor:
    """[N, D] -> [S, D]: the mean of each segment's rows, its first (`cls`) or its `last`; lengths are at least 1."""
    if pooling == "cls":
        return rows[lengths.cumsum(0) - lengths]
    if pooling == "last":
        return rows[lengths.cumsum(0) - 1]
    segments = torch.arange(len(lengths), device=rows.device)
    owner = torch.repeat_interleave(segments, lengths, output_size=len(rows))  # [N]; without the size it would sync
    wide = at_least_float32(rows)  # a sum in half precision loses what a mean is for
    sums = wide.new_zeros(len(lengths), rows.shape[1]).index_add(0, owner, wide)
    return (sums / lengths.unsqueeze(1)).to(rows.dtype)

"""What every axis builds on: packed rows, options, and the base of a plug-in."""

from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from ...plugins import validate_options


@dataclass(frozen=True)
class Packed:
    """Taps of the valid tokens of one stream, or, after a fusion, its fused rows (K = 1).

    taps: [K, N, D], shallow to deep; lengths: int64 [S] with sum N; depths: the tap number of each of the K;
    owners: int64 [S], the segment of its memory stream that each segment attends to; None where it attends to none,
    or every segment has one of its own, in order. tasks: int64 [S], the number of each segment's task; None where nobody
    reads it.
    """

    taps: Tensor
    lengths: Tensor
    depths: tuple[int, ...]
    owners: Tensor | None = None
    tasks: Tensor | None = None

    def __post_init__(self) -> None:
        if self.taps.ndim != 3 or len(self.taps) != len(self.depths):
            raise ValueError(f"taps of shape {tuple(self.taps.shape)} are not [K, N, D] of {len(self.depths)} depths")

    @property
    def rows(self) -> Tensor:
        """[N, D]: the only tap. Raises ValueError when there are several."""
        if len(self.depths) != 1:
            raise ValueError(f"there are {len(self.depths)} taps; only fused rows are a single one")
        return self.taps[0]


class Options(BaseModel):
    """Base of every method's `Config`: frozen, unknown keys refused, numbers finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Method(nn.Module, ABC):
    """One plug-in: a `Config` and a module built from it. The docstring's first line is its summary."""

    axis: ClassVar[str]
    Config: ClassVar[type[Options]] = Options
    source: ClassVar[str] = ""
    """Paper and equation, for `sherl-cache methods`."""

    @classmethod
    def method_name(cls) -> str:
        """The name by which recipes call it: that of its file."""
        return cls.__module__.rpartition(".")[2]

    def penalties(self) -> dict[str, Tensor]:
        """What is added to the loss of every step for its own weights' sake, scalars by name, each times its factor. The log has
        each in `parts`, as `<axis>.<name>`. Of fusions, tuners and heads; usually nothing.
        """
        return {}

    @classmethod
    def validated(cls, options: Mapping[str, Any]) -> Any:
        """The `Config` of raw options. Raises RecipeError."""
        return validate_options(cls.Config, options, where=cls.axis, owner=cls.method_name())


def at_least_float32(values: Tensor) -> Tensor:
    """The same values in float32 or, where they are float64, in float64."""
    return values.to(torch.promote_types(values.dtype, torch.float32))

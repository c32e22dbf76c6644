"""What every axis builds on: packed rows, options, and the base of a plug-in."""

from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from ...plugins import validate_options

Taps = Tensor | tuple[Tensor, ...]
"""[K, N, D], or K tensors [N, D_k] where widths differ; either way the k-th of it is a tap."""


@dataclass(frozen=True)
class Packed:
    """Taps of the valid tokens of one stream, or, after a fusion, its fused rows (K = 1).

    taps: [K, N, D], shallow to deep, or, where their widths differ, a tuple of K tensors [N, D_k]; lengths: int64 [S] with
    sum N; depths: the tap number of each of the K; owners: int64 [S], the segment of its memory stream that each segment
    attends to; None where it attends to none, or every segment has one of its own, in order. tasks: int64 [S], the number of
    each segment's task; None where nobody reads it.
    """

    taps: Taps
    lengths: Tensor
    depths: tuple[int, ...]
    owners: Tensor | None = None
    tasks: Tensor | None = None

    def __post_init__(self) -> None:
        taps = self.taps
        if isinstance(taps, Tensor):
            if taps.ndim != 3 or len(taps) != len(self.depths):
                raise ValueError(f"taps of shape {tuple(taps.shape)} are not [K, N, D] of {len(self.depths)} depths")
        elif len(taps) != len(self.depths) or len({tap.shape for tap in taps}) < 2:
            raise ValueError(
                f"{len(taps)} taps of {len(self.depths)} depths; those of equal widths are one tensor [K, N, D]"
            )

    @classmethod
    def of(cls, taps: Sequence[Tensor], lengths: Tensor, depths: tuple[int, ...], tasks: Tensor | None = None) -> Self:
        """From one tensor [N, D_k] a tap."""
        return cls(joined_taps(taps), lengths, depths, tasks=tasks)

    @property
    def rows(self) -> Tensor:
        """[N, D]: the only tap. Raises ValueError when there are several."""
        if len(self.depths) != 1:
            raise ValueError(f"there are {len(self.depths)} taps; only fused rows are a single one")
        return self.taps[0]


def joined_taps(taps: Sequence[Tensor]) -> Taps:
    """K tensors [N, D_k] as taps of a Packed: one tensor where they are equally wide."""
    return torch.stack(list(taps)) if len({tap.shape for tap in taps}) == 1 else tuple(taps)


def some_taps(taps: Taps, places: slice | Sequence[int]) -> Taps:
    """Some of the taps, by their places among the K."""
    if isinstance(taps, Tensor):
        return taps[places]
    return joined_taps(taps[places] if isinstance(places, slice) else [taps[place] for place in places])


def each_tap(taps: Taps, change: Callable[[Tensor], Tensor]) -> Taps:
    """Every tap changed value by value."""
    return change(taps) if isinstance(taps, Tensor) else tuple(map(change, taps))


class Options(BaseModel):
    """Base of every method's `Config`: frozen, unknown keys refused, numbers finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Method(nn.Module, ABC):
    """One plug-in: a `Config` and a module built from it. The docstring's first line is its summary."""

    axis: ClassVar[str]
    Config: ClassVar[type[Options]] = Options
    source: ClassVar[str] = ""
    """Paper and equation, for `sherl-cache methods`."""
    trains: ClassVar[str] = ""
    """How many numbers train, for `sherl-cache methods`: a formula in the options' names and, where they apply, K taps that
    are read, width D (D_in and D_out of an op), feed-forward width F, C classes; behind a comma what it is counted for (`a
    stream`, `an op`, `a layer`), behind a semicolon what else is to say.
    """

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

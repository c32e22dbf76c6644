"""Maps of a network on pictures as rows of a store: pooled without a parameter, on one grid for all of its stages.

A stage of a convolutional network gives a map [B, C, H, W], coarser and wider than the one before. Every map of a picture is
pooled to the same grid, so that row n of every tap is the same place of the picture, as with tokens, and only widths differ.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, Self, get_args

from ..storage.errors import ModelError, RecipeError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

Pooling = Literal["max+average", "average"]
_POOLINGS: Final[tuple[str, ...]] = get_args(Pooling)


@dataclass(frozen=True)
class MapForm:
    """What is stored of a map.

    pooling: of the places that fall into one cell of the grid, their average, or the mean of that and their maximum (half of
    what SHERL's form for such networks takes); a map as fine as the grid is stored as it is, either way. side: rows and
    columns of the grid; None: those of the deepest map, so that it is stored whole.
    """

    pooling: Pooling = "max+average"
    side: int | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """`max+average` or `average`, then `:SIDE`, as in average:1. Raises RecipeError."""
        name, colon, side = text.strip().partition(":")
        if name not in _POOLINGS or (colon and not re.fullmatch(r"[1-9][0-9]{0,3}", side)):
            raise RecipeError(
                f"maps {text!r}: write {' or '.join(_POOLINGS)}, and perhaps the side of the grid behind a colon, as in "
                "average:1"
            )
        pooling: Pooling = "average" if name == "average" else "max+average"
        return cls(pooling, int(side) if colon else None)

    @property
    def name(self) -> str:
        """What `parse` reads back as the same."""
        return self.pooling if self.side is None else f"{self.pooling}:{self.side}"

    def rows(self, state: Tensor, grid: tuple[int, int]) -> Tensor:
        """A map [B, C, H, W] -> rows [B, h * w, C] of a grid (h, w), row of the grid after row."""
        from torch.nn import functional as F  # recipes parse this form without torch

        if state.shape[-2:] != grid:
            pooled = F.adaptive_avg_pool2d(state, grid)
            if self.pooling == "max+average":
                pooled = (pooled + F.adaptive_max_pool2d(state, grid)) / 2
            state = pooled
        return state.flatten(2).transpose(1, 2)


@dataclass(frozen=True, kw_only=True)
class MapTable:
    """Of a stack whose states are maps [B, C, H, W], wider and coarser from layer to layer. They are stored pooled to one
    grid, so none of its layers can run late.
    """

    widths: Callable[[Any], tuple[int, ...]]
    """Channels of h00 to hL, of a config."""
    stride: Callable[[Any], int]
    """Pixels along a side for one place of the deepest map, of a config; what is left over makes one place more."""
    form: MapForm = field(default_factory=MapForm)
    """What is stored of a map."""

    def grid(self, config: Any, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the grid of a picture of so many pixels. Raises ModelError where it is finer than the
        deepest map."""
        stride, side = self.stride(config), self.form.side
        deepest = (-(-height // stride), -(-width // stride))
        if side is None:
            return deepest
        if side > min(deepest):
            raise ModelError(
                f"maps {self.form.name}: the deepest map of this {config.model_type} model has {deepest[0]} x {deepest[1]} "
                f"places for a picture of {height} x {width} pixels; give a side of at most {min(deepest)}"
            )
        return side, side

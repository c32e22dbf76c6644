"""Maps of a network on pictures as rows of a store: pooled without a parameter, on one grid for all of its stages.

A stage of a convolutional network gives a map [B, C, H, W], coarser and wider than the one before. Every map of a picture is
pooled to the same grid, so that row n of every tap is the same place of the picture, as with tokens, and only widths differ.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, Self, get_args

from ..storage.errors import RecipeError

if TYPE_CHECKING:
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

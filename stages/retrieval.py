"""Retrieval over a whole split: vectors of pictures and of captions, gathered batch by batch, and how each finds the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from .metrics import both_directions, places_ahead, recall_of
from .ranks import ALONE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from .methods.contract import Pair
    from .ranks import Ranks

QUERIES: Final = 256
"""Queries that are compared with every candidate at once."""


class PairVectors:
    """Vectors of both sides of a split, with the number of the group that each belongs to; a group is one picture, shown
    once, and all of its captions, each of them a right answer. Held in float32.
    """

    def __init__(self) -> None:
        self._sides: tuple[list[NDArray[np.float32]], list[NDArray[np.float32]]] = ([], [])
        self._groups: tuple[list[NDArray[np.int64]], list[NDArray[np.int64]]] = ([], [])
        self._places: tuple[list[NDArray[np.int64]], list[NDArray[np.int64]]] = ([], [])

    def add(self, pair: Pair, groups: Sequence[Tensor], number: int = 0) -> None:
        """Take the vectors of a batch; groups: int64, one a vector of either side; number: of the batch, where several ranks
        hold a slice of it.
        """
        for place, (vectors, of_each) in enumerate(zip((pair.first, pair.second), groups, strict=True)):
            self._sides[place].append(vectors.detach().float().cpu().numpy())
            self._groups[place].append(of_each.cpu().numpy())
            self._places[place].append(np.full(len(of_each), number))

    def scores(self, ranks: Ranks = ALONE) -> tuple[dict[str, float], NDArray[np.float64]]:
        """`recall` and its parts, see metrics.retrieval_scores, and for each vector of the first side, in the order in
        which they came, the rank of its nearest partner, from 1; over what all ranks added. Raises DataError where nothing
        was added.
        """
        (first, own), (second, other) = (
            ranks.in_order([vectors, groups], places)
            for vectors, groups, places in zip(self._sides, self._groups, self._places, strict=True)
        )
        known, shown, place = np.unique(own, return_index=True, return_inverse=True)
        forth = _places_ahead(first[shown], second, known, other)
        back = _places_ahead(second, first[shown], other, known)
        return both_directions(recall_of(forth), recall_of(back)), (forth[place] + 1).astype(np.float64)


def _places_ahead(
    queries: NDArray[np.float32], candidates: NDArray[np.float32], own: NDArray[Any], other: NDArray[Any]
) -> NDArray[np.int64]:
    """metrics.places_ahead of the products of vectors, some queries at a time."""
    parts = [slice(start, start + QUERIES) for start in range(0, len(queries), QUERIES)]
    return np.concatenate([places_ahead(queries[part] @ candidates.T, own[part], other) for part in parts])

"""Retrieval: vectors of pictures and of captions, of a whole split or of what a user gives, and how each finds the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from .metrics import both_directions, places_ahead, recall_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from .live import LiveModel
    from .methods.contract import Pair
    from .pair_inputs import PairInputs
    from .sources.contract import Picture
    from .tasks import Task

QUERIES: Final = 256
"""Queries that are compared with every candidate at once."""


class PairVectors:
    """Vectors of both sides of a split, with the number of the group that each belongs to; a group is one picture, shown
    once, and all of its captions, each of them a right answer. Held in float32.
    """

    def __init__(self) -> None:
        self._sides: tuple[list[NDArray[np.float32]], list[NDArray[np.float32]]] = ([], [])
        self._groups: tuple[list[NDArray[np.int64]], list[NDArray[np.int64]]] = ([], [])

    def add(self, pair: Pair, groups: Sequence[Tensor]) -> None:
        """Take the vectors of a batch; groups: int64, one a vector of either side."""
        for place, (vectors, of_each) in enumerate(zip((pair.first, pair.second), groups, strict=True)):
            self._sides[place].append(vectors.detach().float().cpu().numpy())
            self._groups[place].append(of_each.cpu().numpy())

    def scores(self) -> tuple[dict[str, float], NDArray[np.float64]]:
        """`recall` and its parts, see metrics.retrieval_scores, and for each vector of the first side, in the order in
        which they came, the rank of its nearest partner, from 1. Raises DataError where nothing was added.
        """
        first, second = (np.concatenate(side) for side in self._sides)
        own, other = (np.concatenate(groups) for groups in self._groups)
        known, shown, place = np.unique(own, return_index=True, return_inverse=True)
        forth = _places_ahead(first[shown], second, known, other)
        back = _places_ahead(second, first[shown], other, known)
        return both_directions(recall_of(forth), recall_of(back)), (forth[place] + 1).astype(np.float64)


def embedded(
    live: LiveModel,
    inputs: PairInputs,
    task: Task,
    pictures: Sequence[Picture],
    texts: Sequence[str],
    batch_examples: int,
) -> tuple[Tensor, Tensor]:
    """Vectors of length one of pictures [A, P] and of texts [B, P], on the CPU, in float32."""
    sides: tuple[list[Tensor], list[Tensor]] = ([], [])
    for start in range(0, max(len(pictures), len(texts), 1), batch_examples):
        shown, said = pictures[start : start + batch_examples], texts[start : start + batch_examples]
        pair = live.logits(inputs.apart(shown, said, task))
        for side, vectors, given in zip(sides, (pair.first, pair.second), (shown, said), strict=True):
            side.append(vectors[: len(given)].float().cpu())
    return torch.cat(sides[0]), torch.cat(sides[1])


def nearest(queries: Tensor, candidates: Tensor, top: int) -> list[list[tuple[int, float]]]:
    """For each query [A, P] the numbers of the `top` likest candidates [B, P] with their products, the likest first; of equal
    ones the earlier.
    """
    found = []
    for part in torch.split(queries, QUERIES):
        products, order = (part @ candidates.T).sort(dim=1, descending=True, stable=True)
        for numbers, values in zip(order[:, :top].tolist(), products[:, :top].tolist(), strict=True):
            found.append(list(zip(numbers, values, strict=True)))
    return found


def _places_ahead(
    queries: NDArray[np.float32], candidates: NDArray[np.float32], own: NDArray[Any], other: NDArray[Any]
) -> NDArray[np.int64]:
    """metrics.places_ahead of the products of vectors, some queries at a time."""
    parts = [slice(start, start + QUERIES) for start in range(0, len(queries), QUERIES)]
    return np.concatenate([places_ahead(queries[part] @ candidates.T, own[part], other) for part in parts])

"""How a fusion weighs its taps over a split: mean and spread over rows, for all of them and for those of each class."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from torch import Tensor

    from .ranks import Ranks
    from .steps import TrainBatch

MOST_CLASSES: Final = 64
"""Of more than these the classes are not told apart."""


class LayerWeights:
    """Sums over the rows seen so far, in float64, by stream: [classes + 1, 2, K'] of weights and of their squares, and how
    many rows there were, [classes + 1]; the last entry is of all rows.
    """

    def __init__(self, classes: int, exit_stream: str) -> None:
        """classes: how many the examples have, 0 where they have none; exit_stream: the one that the head reads."""
        self.classes = classes if classes <= MOST_CLASSES else 0
        self.exit_stream = exit_stream
        self._sums: dict[str, Tensor] = {}
        self._rows: dict[str, Tensor] = {}

    def add(self, weights: Mapping[str, Tensor], batch: TrainBatch, gold: NDArray[Any]) -> None:
        """weights: what `Fusion.layer_weights` says after this batch, [N, K'] by stream; gold: the class of each example,
        below 0 where it has none, [B].
        """
        for name, found in weights.items():
            each = found.double().cpu()
            owners = self._classes_of_rows(name, len(each), batch, gold)
            sums = self._sums.setdefault(name, torch.zeros(self.classes + 1, 2, each.shape[1], dtype=torch.float64))
            rows = self._rows.setdefault(name, torch.zeros(self.classes + 1, dtype=torch.float64))
            both = torch.stack([each, each.square()], dim=1)  # [N, 2, K']
            sums[-1] += both.sum(0)
            rows[-1] += len(each)
            if owners is not None:
                known = (owners >= 0) & (owners < self.classes)
                sums.index_add_(0, owners[known], both[known])
                rows.index_add_(0, owners[known], torch.ones(int(known.sum()), dtype=torch.float64))

    def told(self, ranks: Ranks) -> dict[str, Any]:
        """By stream: `rows`, and the `mean` and `spread` (standard deviation over rows) of each weight; `classes`: the same of
        every class that has rows, with its `label`. Of what all ranks saw.
        """
        seen = {name: [self._sums[name].tolist(), self._rows[name].tolist()] for name in self._sums}
        parts = ranks.gather_json(seen)
        found = {}
        for name in dict.fromkeys(name for part in parts for name in part):
            sums, rows = (np.sum([part[name][at] for part in parts if name in part], axis=0) for at in (0, 1))
            each = [_moments(sums[at], rows[at]) for at in range(self.classes + 1)]
            classes = [{"label": label, **moments} for label, moments in enumerate(each[:-1]) if moments["rows"]]
            found[name] = {**each[-1], "classes": classes}
        return found

    def _classes_of_rows(self, name: str, count: int, batch: TrainBatch, gold: NDArray[Any]) -> Tensor | None:
        """The class of the example that each row belongs to, [N]; None where classes are not told apart."""
        lengths = batch.inputs[name].lengths.cpu()
        of_examples = torch.from_numpy(np.asarray(gold, np.int64))
        if not self.classes:
            return None
        of_segments = of_examples
        if len(lengths) != len(of_examples):  # several segments an example, as candidate answers are
            if name != self.exit_stream:
                return None
            of_segments = torch.repeat_interleave(of_examples, batch.segments.cpu())
        return of_segments if count == len(of_segments) else torch.repeat_interleave(of_segments, lengths)


def _moments(sums: NDArray[np.float64], rows: float) -> dict[str, Any]:
    mean, square = sums / max(rows, 1.0)
    return {"rows": int(rows), "mean": mean.tolist(), "spread": np.sqrt(np.maximum(square - mean**2, 0.0)).tolist()}

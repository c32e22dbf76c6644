"""What a live model reads of the examples of a store."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ...stages.data import TargetTable
from ...stages.inputs import TokenBatches
from ...stages.prepare import ExtractSettings
from ...stages.subject import open_subject
from ..again import stored_settings
from .examples import labelled

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ...stages.inputs import Batches
    from ...stages.load import LoadedModel
    from ...stages.tokens import TokenBatch
    from ...storage import Store
    from .examples import Examples


class LiveInputs:
    """Batches of token ids, which the store holds, or of pixels, which are read again from the data it was made of."""

    def __init__(self, store: Store, loaded: LoadedModel, answers: bool) -> None:
        """answers: each example brings its right answer; else none is read. Raises DataError where pictures are gone."""
        self._loaded, self._table = loaded, store.examples("train")
        self._batches = batches_for(store.producer, loaded)
        self._right = TargetTable(self._table, store.producer["task"], "tokens") if answers else None
        self.attention = str(getattr(loaded.config, "_attn_implementation", "unknown"))

    def parts(self, examples: Examples, micro: int | None) -> Iterator[tuple[float, Examples]]:
        """The labelled examples of a batch as micro-batches, each with its share of them."""
        known = labelled(self._table, examples)
        size = micro or max(len(known), 1)
        for first in range(0, len(known), size):
            part = known[first : first + size]
            yield len(part) / len(known), part

    def batch(self, examples: Examples) -> TokenBatch:
        """What the model reads of some labelled examples."""
        rows = self._table.rows(examples)
        batch = self._batches.batch("train", rows, np.arange(len(rows)))
        targets = None if self._right is None else [[answer] for answer in self.answers(examples)]
        return replace(batch, targets=targets)

    def answers(self, examples: Examples) -> list[list[int]]:
        """Token ids of the right answers."""
        assert self._right is not None
        gold = self._right.gold
        return [self._right.candidates(each)[int(gold[each])].tolist() for each in examples.tolist()]

    def tasks(self, examples: Examples) -> list[str]:
        """Names of the tasks of some examples."""
        names: list[str] = self._table.rows(examples)["task"].to_pylist()
        return names


def batches_for(producer: Mapping[str, Any], loaded: LoadedModel) -> Batches:
    """What makes the batches of a forward from rows of a store's example table. Raises DataError where pictures are gone."""
    if not loaded.table.reads_pictures:
        return TokenBatches(continued=loaded.table.text_form == "continuation")
    subject = open_subject(settings_of(producer), loaded.device, loaded)
    return subject.inputs.batches(subject.source, subject.task)


def settings_of(producer: Mapping[str, Any]) -> ExtractSettings:
    """The settings that a store was made with. Raises StoreNotUsable where an old one does not say them."""
    values = stored_settings(producer)
    return ExtractSettings(**{**values, "text_columns": tuple(values["text_columns"])})

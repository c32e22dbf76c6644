"""Which rows train and which are scored: views on a source by a seeded choice of rows.

Every view offers the splits `train`, `validation` and, where there is one, `test`. The rules are named so that a
run can record them:

* `official`: the source's own training and validation rows;
* `paper`: the protocol of SHERL's official T5 code (arXiv 2407.07523), drawn with seed 42;
* `holdout:N`: N training rows become `validation`, the official validation rows become `test`;
* `train`: the source's training rows and nothing else, to measure on.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..storage.errors import DataError
from ..storage.nearest import did_you_mean
from .sources.contract import Batch, Source
from .tasks import Task

PAPER_SEED = 42
PAPER_HOLDOUT = 1000
_HALVED = ("cola", "rte", "mrpc", "stsb")  # the paper halves their validation rows
_HELD_OUT = ("sst2", "qnli", "qqp")  # the paper takes 1,000 of their training rows
_TWO_DOMAINS = "mnli"  # it has matched and mismatched validation rows


@dataclass(frozen=True)
class Part:
    """Rows of one split of the source: all of them, or those numbered, ascending."""

    split: str
    rows: NDArray[np.int64] | None = None


class SplitView(Source):
    """Chosen rows of a source, itself a source; 8 bytes a chosen row are held. It is not laid over a view."""

    def __init__(self, source: Source, parts: Mapping[str, Part]) -> None:
        self.source = source
        self.name = source.name
        self.task = source.task
        self.synthetic = source.synthetic
        self.scored = source.scored
        self.splits = tuple(parts)
        self._parts = dict(parts)

    def columns(self, split: str) -> tuple[str, ...]:
        return self.source.columns(self._part(split).split)

    def rows(self, split: str) -> int:
        part = self._part(split)
        return self.source.rows(part.split) if part.rows is None else len(part.rows)

    def class_names(self, split: str, column: str) -> tuple[str, ...] | None:
        return self.source.class_names(self._part(split).split, column)

    def picture_columns(self, split: str) -> tuple[str, ...]:
        return self.source.picture_columns(self._part(split).split)

    def take(self, split: str, column: str, rows: Sequence[int]) -> list[Any]:
        return self.source.take(self.origin(split), column, rows)

    def origin(self, split: str) -> str:
        return self.source.origin(self._part(split).split)

    def row_numbers(self, split: str) -> Iterable[int]:
        part = self._part(split)
        numbers = self.source.row_numbers(part.split)
        return numbers if part.rows is None else map(int, part.rows)

    def batches(self, split: str, columns: Sequence[str]) -> Iterator[Batch]:
        part = self._part(split)
        batches = self.source.batches(part.split, columns)
        return batches if part.rows is None else _chosen(batches, part.rows)

    def _part(self, split: str) -> Part:
        if split not in self._parts:
            Source.require(self, split)
        return self._parts[split]


def split_rules(
    source: Source, task: Task, rule: str = "official", *, limit: int | None = None, seed: int = PAPER_SEED
) -> SplitView:
    """The view on `source` that `rule` describes (see the top of this file).

    `limit` keeps the first N, in the order of the source, of the training rows that the rule leaves; the other
    splits stay whole. `seed` draws the rows of `holdout:N`; `paper` always draws with seed 42.

    Raises DataError for an unknown rule, a split that the rule needs and the source lacks, and more rows to hold
    out than there are.
    """
    if rule == "official":
        parts = _official(source)
    elif rule == "paper":
        parts = _paper(source, task)
    elif rule.startswith("holdout:") and rule.removeprefix("holdout:").isdecimal():
        parts = _hold_out(source, int(rule.removeprefix("holdout:")), seed)
    elif rule == "train":
        source.require("train")
        parts = {"train": Part("train")}
    else:
        hint = did_you_mean(rule.partition(":")[0], ("official", "paper", "holdout", "train"))
        raise DataError(
            f"no split rule {rule!r}{hint}; there are official, paper, train and holdout:N (as in holdout:1000)"
        )
    if limit is not None:
        parts["train"] = _first(source, parts, limit)
    return SplitView(source, parts)


def _official(source: Source) -> dict[str, Part]:
    parts = {"train": Part("train")} if "train" in source.splits else {}
    scored = _scored_split(source)
    if scored is not None:
        parts["validation"] = Part(scored)
    if "validation_mismatched" in source.splits:
        parts["validation_mismatched"] = Part("validation_mismatched")
    if not parts:
        raise DataError(f"{source.name}: neither train nor validation rows; it has {', '.join(source.splits)}")
    return parts


def _paper(source: Source, task: Task) -> dict[str, Part]:
    if task.name in _HALVED:
        first, second = _drawn(source, "validation", None, PAPER_SEED)
        return {"train": Part("train"), "validation": first, "test": second}
    if task.name in _HELD_OUT:
        return _hold_out(source, PAPER_HOLDOUT, PAPER_SEED)
    if task.name == _TWO_DOMAINS:
        source.require("validation_matched")
        source.require("validation_mismatched")
        return {
            "train": Part("train"),
            "validation": Part("validation_mismatched"),
            "test": Part("validation_matched"),
        }
    known = ", ".join((*_HALVED, *_HELD_OUT, _TWO_DOMAINS))
    raise DataError(f"the paper names no splits for task {task.name!r}, only for {known}; use official or holdout:N")


def _hold_out(source: Source, count: int, seed: int) -> dict[str, Part]:
    held, left = _drawn(source, "train", count, seed)
    parts = {"train": left, "validation": held}
    scored = _scored_split(source)
    if scored is not None:
        parts["test"] = Part(scored)
    return parts


def _drawn(source: Source, split: str, count: int | None, seed: int) -> tuple[Part, Part]:
    """`count` rows (half of them, rounded down, for None) drawn from a split, and the rest."""
    source.require(split)
    total = source.rows(split)
    count = total // 2 if count is None else count
    if not 0 < count < total:
        raise DataError(
            f"{source.name}: {count} rows cannot be held out of the {total} of split {split!r}; "
            f"choose from 1 to {total - 1}"
        )
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed)).numpy()
    return Part(split, np.sort(order[:count])), Part(split, np.sort(order[count:]))


def _first(source: Source, parts: Mapping[str, Part], limit: int) -> Part:
    if limit < 1:
        raise DataError(f"a limit of {limit} training rows leaves nothing to train on; give at least 1")
    if "train" not in parts:
        raise DataError(f"{source.name}: no training rows to limit; it has {', '.join(source.splits)}")
    part = parts["train"]
    rows = np.arange(source.rows(part.split)) if part.rows is None else part.rows
    return Part(part.split, rows[:limit])


def _scored_split(source: Source) -> str | None:
    """The split that official scores are taken on."""
    return next((split for split in source.scored if split in source.splits), None)


def _chosen(batches: Iterable[Batch], rows: NDArray[np.int64]) -> Iterator[Batch]:
    """The rows of a stream whose numbers are in `rows`, which ascend. Reads no further than the last of them."""
    start = 0
    for batch in batches:
        size = len(next(iter(batch.values())))
        low, high = np.searchsorted(rows, [start, start + size])
        if high > low:
            here = (rows[low:high] - start).tolist()
            yield {column: [values[row] for row in here] for column, values in batch.items()}
        start += size
        if high == len(rows):
            return

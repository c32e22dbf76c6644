"""Answers of a live model to raw text, and their score."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch

from ..storage.errors import DataError
from .answer_texts import decode_answer
from .choose_inputs import live_inputs
from .metrics import score
from .prompts import OPEN_ANSWER_TOKENS
from .retrieval import PairVectors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from .live import LiveModel
    from .sources.contract import Picture, Source
    from .tasks import Task
    from .tokens import TokenBatch


@dataclass(frozen=True)
class Answer:
    """One answer. `value`: class number or score, None outside the label set; `score`: how likely, where that is
    known.
    """

    value: float | None
    label: str | float | None
    score: float | None
    scored: float | None = None
    """Class number that label scoring takes, for text-to-text models with a closed label set."""
    probabilities: tuple[float, ...] | None = None
    """Of every label, in their order; by label scoring where the answer was generated. None without a closed set."""


class Answerer:
    """A live model together with the task it answers."""

    def __init__(self, live: LiveModel, task: Task, target_ids: list[list[int]] | None, max_length: int) -> None:
        """`target_ids`: token ids of each label's text, for text-to-text models with a closed label set."""
        self.live, self.task, self.target_ids, self.max_length = live, task, target_ids, max_length
        self.inputs = live_inputs(live.loaded, max_length)

    def with_tasks(self, batch: TokenBatch, names: Sequence[str]) -> TokenBatch:
        """A batch of rows of these tasks, where the model reads the task of a row. Raises DataError for one it does not know."""
        stage_two = self.live.stage_two
        if not stage_two.reads_tasks:
            return batch
        if strangers := set(names) - set(stage_two.tasks):
            raise DataError(f"rows of the task {min(strangers)!r}: this model knows {', '.join(stage_two.tasks)}")
        return replace(batch, tasks=[stage_two.tasks.index(name) for name in names])

    def answer(self, batch: TokenBatch, num_beams: int = 1) -> list[Answer]:
        """An answer for each example of a batch."""
        if self.live.stage_two.head.output == "tokens":
            return self._generated(batch, num_beams)
        output = self.live.logits(batch).double().cpu()
        if self.live.stage_two.head.output == "score":
            return [Answer(value, value, None) for value in output.tolist()]
        likelihood = torch.softmax(output, dim=1)
        return [
            Answer(
                chosen, self.task.labels[chosen], float(likelihood[row, chosen]), None, tuple(likelihood[row].tolist())
            )
            for row, chosen in enumerate(output.argmax(1).tolist())
        ]

    def _generated(self, batch: TokenBatch, num_beams: int) -> list[Answer]:
        if self.live.leads and self.target_ids is not None:
            return self._scored(batch)
        longest = max(map(len, self.target_ids)) + 1 if self.target_ids else OPEN_ANSWER_TOKENS
        asked = replace(batch, targets=None)
        texts = self.live.generate(asked, longest, num_beams)
        values = [decode_answer(text, self.task) for text in texts]
        if self.target_ids is None:
            return [Answer(value, value, None) for value in values]
        candidates = [self.target_ids] * len(batch.input_ids)
        scores = self.live.label_scores(replace(asked, targets=candidates)).cpu()
        likelihood, scored = torch.softmax(scores, dim=1), scores.argmax(1).tolist()
        return [
            Answer(
                value,
                text if value is None else self.task.labels[int(value)],
                None if value is None else float(likelihood[row, int(value)]),
                scored[row],
                tuple(likelihood[row].tolist()),
            )
            for row, (text, value) in enumerate(zip(texts, values, strict=True))
        ]

    def _scored(self, batch: TokenBatch) -> list[Answer]:
        """Answers by label scoring alone, of a model that cannot generate."""
        assert self.target_ids is not None
        candidates = [self.target_ids] * len(batch.input_ids)
        scores = self.live.label_scores(replace(batch, targets=candidates)).cpu()
        likelihood, scored = torch.softmax(scores, dim=1), scores.argmax(1).tolist()
        return [
            Answer(chosen, self.task.labels[chosen], float(likelihood[row, chosen]), chosen)
            for row, chosen in enumerate(scored)
        ]


def score_split(
    answerer: Answerer,
    source: Source,
    split: str,
    limit: int | None,
    batch_examples: int,
    num_beams: int,
    advance: Callable[[int], None],
) -> dict[str, Any]:
    """The task's metric over the labelled rows of a split, on raw text.

    A text-to-text model with a closed label set brings the metric of label scoring and the share of answers outside
    the set.
    """
    if answerer.live.stage_two.head.output == "pair":
        return _score_pairs(answerer, source, split, limit, batch_examples, advance)
    task = answerer.task
    answers: list[Answer] = []
    references: list[float] = []
    batches = answerer.inputs.batches(source, task)
    for table in _batches(answerer.inputs.encode(source, split, task), batch_examples, limit):
        given = answerer.with_tasks(batches.batch(split, table, np.arange(len(table))), table["task"].to_pylist())
        labels = table["label"].to_pylist()
        for found, label in zip(answerer.answer(given, num_beams), labels, strict=True):
            if label is not None:
                answers.append(found)
                references.append(label)
        advance(len(table))
    scores = score(task.metric, [item.value for item in answers], references)
    result: dict[str, Any] = {
        "metric": task.metric,
        "value": scores[task.metric],
        "examples": len(references),
        "scores": scores,
        "synthetic": source.synthetic,
    }
    if answerer.live.stage_two.head.output == "tokens" and answerer.target_ids is not None:
        result["label_scoring"] = score(task.metric, [item.scored for item in answers], references)[task.metric]
        result["outside_label_set"] = float(np.mean([item.value is None for item in answers]))
    return result


def _score_pairs(
    answerer: Answerer,
    source: Source,
    split: str,
    limit: int | None,
    batch_examples: int,
    advance: Callable[[int], None],
) -> dict[str, Any]:
    """Recall over pictures and captions of a split, each searched among all of the split, or of its first `limit`."""
    task, vectors, numbers = answerer.task, PairVectors(), dict[str, int]()
    batches, examples = answerer.inputs.batches(source, task), 0
    for table in _batches(answerer.inputs.encode(source, split, task), batch_examples, limit):
        own = torch.tensor([numbers.setdefault(group, len(numbers)) for group in table["group_id"].to_pylist()])
        captions = torch.tensor([len(ids) for ids in table["target_ids"].to_pylist()])
        pair = answerer.live.logits(batches.batch(split, table, np.arange(len(table))))
        vectors.add(pair, (own, own.repeat_interleave(captions)))
        examples += len(table)
        advance(len(table))
    scores, _ = vectors.scores()
    return {
        "metric": task.metric,
        "value": scores[task.metric],
        "examples": examples,
        "scores": scores,
        "synthetic": source.synthetic,
    }


def answer_rows(
    answerer: Answerer, rows: Iterable[Sequence[str | Picture]], batch_examples: int
) -> Iterator[tuple[Sequence[str | Picture], Answer]]:
    """Answers for rows of texts, one text a text column of the task, or of pictures, one a row, by file name or whole."""
    source = iter(rows)
    while given := list(islice(source, batch_examples)):
        yield from zip(given, answerer.answer(answerer.inputs.raw(given, answerer.task)), strict=True)


def _batches(rows: Iterable[pa.RecordBatch], batch_examples: int, limit: int | None) -> Iterator[pa.Table]:
    """Rows of record batches, `batch_examples` at a time, `limit` in all."""
    left = limit
    for batch in rows:
        for start in range(0, batch.num_rows, batch_examples):
            part = batch.slice(start, batch_examples if left is None else min(batch_examples, left))
            if part.num_rows == 0:
                return
            left = None if left is None else left - part.num_rows
            yield pa.Table.from_batches([part])

"""What a run's folder says, read for a page: metrics, answers, recipe, result."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...storage.errors import StoreCorrupt
from ..run import Run

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from ..recipe import Recipe


@dataclass(frozen=True)
class RunRecord:
    """A run as it was recorded. steps: lines of metrics.jsonl with a loss; validations: those with scores."""

    name: str
    recipe: Recipe
    facts: Mapping[str, Any]
    result: Mapping[str, Any] | None
    steps: Sequence[Mapping[str, Any]]
    validations: Sequence[Mapping[str, Any]]
    answers: Answers | None
    layer_weights: Mapping[str, Any] | None
    """See Run.layer_weights."""
    evals: Sequence[Mapping[str, Any]]

    @property
    def task(self) -> Mapping[str, Any]:
        """The task as the store said it."""
        task: Mapping[str, Any] = self.facts["producer"]["task"]
        return task

    def label(self, number: float) -> str:
        """The name of a class, or its number where it has none."""
        labels = self.task["labels"] or ()
        return str(labels[int(number)]) if 0 <= number < len(labels) else f"{number:g}"

    @property
    def metric(self) -> str:
        """What the best epoch is chosen by."""
        return str(self.validations[0]["validation"]["metric"]) if self.validations else "none"

    @property
    def best(self) -> Mapping[str, Any] | None:
        """The record of the best validation so far."""
        if self.result is not None:
            chosen = self.result["best_epoch"]
            return next((line for line in self.validations if line["epoch"] == chosen), None)
        choose = min if self.metric == "loss" else max
        return choose(self.validations, key=lambda line: line["validation"]["value"], default=None)

    @property
    def seconds(self) -> float:
        """Of all steps that are recorded, or of the whole run where it is finished."""
        return float(self.result["seconds"]) if self.result else sum(line["seconds"]["step"] for line in self.steps)

    @property
    def peak_memory(self) -> int:
        """The largest peak that is recorded."""
        return max((int(line["memory"]) for line in (*self.steps, *self.validations)), default=0)


@dataclass(frozen=True)
class Answers:
    """Answers on the validation rows at the best epoch; NaN where a label, an answer or its probability is missing."""

    source_ids: list[str]
    labels: list[float]
    predictions: list[float]
    probabilities: list[float]
    marks: Mapping[str, int]
    """What each row is known again by, under its source id; empty in runs of an older version."""


def read_run(folder: Path) -> RunRecord:
    """Read a run, finished or not. Raises UsageError where the folder holds none, StoreCorrupt for damaged files."""
    run = Run.open(folder)
    lines = _lines(folder / "metrics.jsonl")
    return RunRecord(
        name=folder.resolve().name,
        recipe=run.recipe(),
        facts=run.facts(),
        result=run.result(),
        steps=[line for line in lines if "loss" in line],
        validations=[line for line in lines if "validation" in line],
        answers=_answers(folder / "predictions.parquet"),
        layer_weights=run.layer_weights(),
        evals=run.evals(),
    )


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    found = []
    lines = path.read_text("utf-8").split("\n")
    for place, line in enumerate(lines):
        try:
            if line:
                found.append(json.loads(line))
        except ValueError:
            if place < len(lines) - 1:  # the last line may be being written
                raise StoreCorrupt(f"{path}: line {place + 1} is no JSON") from None
    return found


def _answers(path: Path) -> Answers | None:
    if not path.is_file():
        return None
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
        ids, labels, predictions = (table.column(name).to_pylist() for name in ("source_id", "label", "prediction"))
    except (pa.ArrowException, OSError, KeyError) as error:
        raise StoreCorrupt(f"{path} cannot be read: {error}; train again with --restart") from None
    own = set(table.column_names)  # runs of an older version have fewer
    likely = table.column("probability").to_pylist() if "probability" in own else [None] * len(ids)
    marks = table.column("content").to_pylist() if "content" in own else []
    known = dict(zip(ids, marks, strict=False))
    return Answers(ids, _numbers(labels), _numbers(predictions), _numbers(likely), known)


def _numbers(values: Sequence[float | None]) -> list[float]:
    return [float("nan") if value is None else float(value) for value in values]

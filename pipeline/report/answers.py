"""What a run answers: scores, the confusion matrix, and the examples it got most wrong."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from .charts import Series, line_chart, number, shortened
from .page import Figure, Section, Table
from .places import shown_place

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .read_run import Answers, RunRecord
    from .texts import Texts

_SHOWN_WRONG: Final = 25
_MOST_LABELS: Final = 30
_MOST_POINTS: Final = 300
_LONGEST_TEXT: Final = 600


@dataclass(frozen=True)
class Answered:
    """One validation row with a label and an answer, or of retrieval the rank of the nearest right one as `given`."""

    source: str
    label: float
    given: float
    probability: float


def most_wrong(run: RunRecord) -> list[Answered]:
    """The examples that a run got most wrong: wrong classes that it held for the likeliest first, else the largest errors."""
    if run.answers is None:
        return []
    if run.task["kind"] == "retrieval":
        ranked = [row for row in _rows(run.answers) if row.given > 1]
        return sorted(ranked, key=lambda row: -row.given)[:_SHOWN_WRONG]
    known = _known(run.answers)
    if run.task["labels"]:
        wrong = [row for row in known if row.label != row.given]
        return sorted(wrong, key=lambda row: -_or_zero(row.probability))[:_SHOWN_WRONG]
    return sorted(known, key=lambda row: -abs(row.label - row.given))[:_SHOWN_WRONG]


def answers_section(run: RunRecord, texts: Texts | None) -> Section:
    """The answers on validation rows; where there are none, why."""
    notes, figures, tables = [], [], _scores(run)
    answers = run.answers
    if not run.validations:
        ended = run.result is not None
        notes = ["The store holds no validation split, so nothing was scored." if ended else "No epoch has ended yet."]
    elif answers is None:
        notes = ["No answers are kept of this run."]
    elif run.task["kind"] == "retrieval":
        count = len([row for row in _rows(answers) if row.given > 1])
        notes = [
            f"Of {len(answers.source_ids):,} pictures {count:,} have another caption nearer than each of their own."
        ]
        tables += _listed(run, texts, ["example", "rank of its nearest caption"], "pictures found last")
    elif not (known := _known(answers)):
        notes = [
            "The answers are texts of an open set: training knows their loss alone; "
            "sherl-cache eval lets the whole model write them and scores what it wrote."
        ]
    elif run.task["labels"]:
        notes.append(_about(answers, known))
        tables += [*_confusion(known, run.task["labels"]), *_wrong_classes(run, texts, known)]
    else:
        notes.append(_about(answers, known))
        figures.append(_scatter(known))
        tables += _listed(run, texts, ["example", "label", "answer", "error"], "largest errors")
    listed = any(table.caption.startswith(("pictures", "largest", "wrong")) for table in tables)
    return Section("answers", "Answers", [*notes, *(_about_texts(texts) if listed else [])], figures, tables)


def _scores(run: RunRecord) -> list[Table]:
    """Every score of the best epoch, and what `eval` said of the whole model."""
    tables = []
    if run.best is not None:
        found = run.best["validation"]
        rows = [[name, f"{value:.4f}"] for name, value in found.items() if isinstance(value, float) and name != "value"]
        tables.append(Table(["score", "value"], rows, f"validation, epoch {run.best['epoch'] + 1}"))
    if run.evals:
        rows = [
            [
                shown_place(str(each["data"])),
                str(each["split"]),
                f"{each['examples']:,}",
                f"{each['metric']} {each['value']:.4f}",
            ]
            for each in run.evals
        ]
        tables.append(Table(["data", "split", "rows", "score"], rows, "the whole model on raw inputs, by eval"))
    return tables


def _confusion(known: Sequence[Answered], labels: Sequence[str]) -> list[Table]:
    if len(labels) > _MOST_LABELS:
        return []
    counts: dict[tuple[int, int], int] = {}
    for row in known:
        counts[int(row.label), int(row.given)] = counts.get((int(row.label), int(row.given)), 0) + 1
    rows = [[str(name), *(f"{counts.get((r, c), 0):,}" for c in range(len(labels)))] for r, name in enumerate(labels)]
    return [Table(["label \\ answer", *map(str, labels)], rows, "confusion matrix, examples")]


def _wrong_classes(run: RunRecord, texts: Texts | None, known: Sequence[Answered]) -> list[Table]:
    count = sum(row.label != row.given for row in known)
    if not count:
        return []
    shown = min(count, _SHOWN_WRONG)
    said = f"wrong answers, those given with most confidence first: {shown:,} of {count:,}"
    return _listed(run, texts, ["example", "label", "answer", "probability"], said)


def _listed(run: RunRecord, texts: Texts | None, columns: list[str], caption: str) -> list[Table]:
    rows = []
    for row in most_wrong(run):
        if run.task["kind"] == "retrieval":
            cells = [row.source, number(row.given)]
        elif run.task["labels"]:
            likely = "-" if math.isnan(row.probability) else f"{row.probability:.3f}"
            cells = [row.source, run.label(row.label), run.label(row.given), likely]
        else:
            cells = [row.source, number(row.label), number(row.given), number(abs(row.label - row.given))]
        if texts is not None and texts.problem is None:
            cells += [shortened(text, _LONGEST_TEXT) for text in texts.of(row.source)]
        rows.append(cells)
    if texts is not None and texts.problem is None:
        columns = [*columns, *texts.columns]
    return [Table(columns, rows, caption)] if rows else []


def _scatter(known: Sequence[Answered]) -> Figure:
    stride = -(-len(known) // _MOST_POINTS)
    points = sorted((row.label, row.given) for row in known[::stride])
    exact = [(value, value) for value in (points[0][0], points[-1][0])]
    series = [Series("answers", points, marks=True), Series("label and answer agree", exact)]
    said = f"Answer against label, {len(points):,} of {len(known):,} examples"
    return Figure(line_chart(series, "label", "answer"), said)


def _about(answers: Answers, known: Sequence[Answered]) -> str:
    return f"Answers of the best epoch on {len(known):,} of {len(answers.source_ids):,} validation rows with a label."


def _about_texts(texts: Texts | None) -> list[str]:
    if texts is None:
        return [
            "Examples are named by their row in the data; a store may be private, so texts are shown with --texts alone."
        ]
    if texts.problem is not None:
        return [f"Texts could not be read from the data: {texts.problem}"]
    return ["Texts are read from the data; the store keeps none."]


def _rows(answers: Answers) -> list[Answered]:
    columns = (answers.source_ids, answers.labels, answers.predictions, answers.probabilities)
    return [Answered(*row) for row in zip(*columns, strict=True)]


def _known(answers: Answers) -> list[Answered]:
    return [row for row in _rows(answers) if not math.isnan(row.label) and not math.isnan(row.given)]


def _or_zero(value: float) -> float:
    return 0.0 if math.isnan(value) else value

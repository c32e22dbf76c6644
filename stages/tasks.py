"""What a task is: its text, its labels and its metric; a table of the eight GLUE tasks, and users' own tasks.

Text templates and target texts are those of SHERL's official T5 code (arXiv 2407.07523), which follow T5
(arXiv 1910.10683) but for MNLI, where the official code leaves out the colon after `hypothesis`. Labels are
named and ordered as in the hub's data set nyu-mll/glue.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal

from ..storage.errors import DataError
from ..storage.nearest import did_you_mean
from .labels import distinct_labels, label_name, number
from .sources.contract import FileLayout, Source

Metric = Literal["accuracy", "matthews", "accuracy_f1", "pearson_spearman", "recall"]


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task as the store records it.

    `text_format` is a `str.format` template over the text columns by position. `labels` names the classes in
    the order of their numbers; `label_texts` holds the target text of each, and is None for an open set
    (regression). `numbered` says that a whole number in the label column is a class number; otherwise it is a
    class's name. A retrieval reads a picture and its captions, in this order, and has no label: `label_column` is "".
    """

    name: str
    kind: Literal["classification", "regression", "retrieval"]
    columns: tuple[str, ...]
    text_format: str
    label_column: str
    labels: tuple[str, ...] = ()
    label_texts: tuple[str, ...] | None = None
    metric: Metric
    numbered: bool = True

    @property
    def read_columns(self) -> tuple[str, ...]:
        """Every column that it reads of a source."""
        return (*self.columns, self.label_column) if self.label_column else self.columns

    def to_json(self) -> dict[str, Any]:
        """The task as JSON holds it; `from_json` reads it back."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Task":
        """The task that `to_json` wrote."""
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in document.items()
        }
        return cls(**values)


def _glue(
    name: str, text_format: str, columns: Sequence[str], labels: Sequence[str], metric: Metric = "accuracy"
) -> Task:
    """A GLUE task; without `labels` it is a regression, whose target texts are an open set."""
    return Task(
        name=name,
        kind="classification" if labels else "regression",
        columns=tuple(columns),
        text_format=text_format,
        label_column="label",
        labels=tuple(labels),
        label_texts=tuple(str(index) for index in range(len(labels))) if labels else None,
        metric=metric,
    )


_PAIR = ("sentence1", "sentence2")
_ENTAILMENT = ("entailment", "not_entailment")
_GLUE: Final = (
    _glue("cola", "cola sentence: {}", ["sentence"], ("unacceptable", "acceptable"), "matthews"),
    _glue("sst2", "sst2 sentence: {}", ["sentence"], ("negative", "positive")),
    _glue("mrpc", "mrpc sentence1: {} sentence2: {}", _PAIR, ("not_equivalent", "equivalent"), "accuracy_f1"),
    _glue(
        "qqp",
        "qqp question1: {} question2: {}",
        ("question1", "question2"),
        ("not_duplicate", "duplicate"),
        "accuracy_f1",
    ),
    _glue("stsb", "stsb sentence1: {} sentence2: {}", _PAIR, (), "pearson_spearman"),
    _glue(
        "mnli",
        "mnli premise: {} hypothesis {}",
        ("premise", "hypothesis"),
        ("entailment", "neutral", "contradiction"),
    ),
    _glue("qnli", "qnli question: {} sentence: {}", ("question", "sentence"), _ENTAILMENT),
    _glue("rte", "rte sentence1: {} sentence2: {}", _PAIR, _ENTAILMENT),
)
_REVIEWS = Task(
    name="reviews",
    kind="classification",
    columns=("text",),
    text_format="{}",
    label_column="label",
    labels=("negative", "positive"),
    label_texts=("negative", "positive"),
    metric="accuracy",
)
TASKS: Final[Mapping[str, Task]] = {task.name: task for task in (*_GLUE, _REVIEWS)}

LAYOUTS: Final[Mapping[str, FileLayout]] = {
    "cola": FileLayout(columns={"sentence": 3, "label": 1}, header=False),
    "sst2": FileLayout(columns={"sentence": "sentence", "label": "label"}),
    "mrpc": FileLayout(columns={"sentence1": "#1 String", "sentence2": "#2 String", "label": "Quality"}),
    "qqp": FileLayout(columns={"question1": "question1", "question2": "question2", "label": "is_duplicate"}),
    "stsb": FileLayout(columns={"sentence1": "sentence1", "sentence2": "sentence2", "label": "score"}),
    "mnli": FileLayout(
        columns={"premise": "sentence1", "hypothesis": "sentence2", "label": "gold_label"},
        splits={
            "train": "train",
            "validation_matched": "dev_matched",
            "validation_mismatched": "dev_mismatched",
        },
    ),
    "qnli": FileLayout(columns={"question": "question", "sentence": "sentence", "label": "label"}),
    "rte": FileLayout(columns={"sentence1": "sentence1", "sentence2": "sentence2", "label": "label"}),
}
"""How each task's rows lie in a folder of GLUE files; their test files carry no labels and are left out."""


def named_task(name: str) -> Task:
    """The task of that name in the table. Raises DataError where there is none."""
    if name not in TASKS:
        raise DataError(f"no task {name!r}{did_you_mean(name, TASKS)}; there are {', '.join(TASKS)}")
    return TASKS[name]


def task_for(
    name: str | None,
    source: Source,
    text_columns: Sequence[str] = (),
    label_column: str | None = None,
    *,
    pictures: bool = False,
    pairs: bool = False,
) -> Task:
    """The task to learn from a source: one of the table, or one described by the source's own columns.

    A table task is taken when it is named, or when the data names it (`glue/sst2`); columns given replace its
    own, in order. Otherwise classes are the distinct labels of the training rows (`labels.distinct_labels`), or
    the scores there are predicted. Without `text_columns` the column `text` or `sentence` is read, without
    `label_column` the column `label`. With `pictures` the one column that holds pictures is read, with `pairs` that and
    the one of its captions (see `pair_columns`).

    Raises DataError for an unknown task, a column that is not there, a missing or unusable label column.
    """
    columns = pair_columns(source, text_columns, label_column) if pairs else None
    if columns is not None:
        return _retrieval_task(name, source, columns)
    if pictures:
        return _picture_task(name, source, tuple(text_columns), label_column or "label")
    found = named_task(name) if name else TASKS.get(source.task or "")
    split = "train" if "train" in source.splits else source.splits[0]
    if found is None:
        return _own_task(source, split, tuple(text_columns), label_column or "label")
    if text_columns and len(text_columns) != len(found.columns):
        raise DataError(
            f"task {found.name} reads {len(found.columns)} text column(s) ({', '.join(found.columns)}), "
            f"but {len(text_columns)} were named ({', '.join(text_columns)})"
        )
    task = replace(found, columns=tuple(text_columns) or found.columns, label_column=label_column or found.label_column)
    source.require(split, [*task.columns, task.label_column])
    return task


def pair_columns(
    source: Source, text_columns: Sequence[str] = (), label_column: str | None = None
) -> tuple[str, str] | None:
    """The columns of pictures and of captions where a source has pairs of them; None where it is for another task.

    They are the two of `text_columns`, in either order, where one of these holds pictures; else, where no column is
    named and there is no column `label`, the one that holds pictures and the column `caption` or `captions`.
    """
    split = "train" if "train" in source.splits else source.splits[0]
    known, present = source.picture_columns(split), source.columns(split)
    if label_column is not None or not known:
        return None
    if text_columns:
        pictures = [column for column in text_columns if column in known]
        captions = [column for column in text_columns if column not in known]
        return (pictures[0], captions[0]) if len(pictures) == len(captions) == 1 else None
    captions = [column for column in ("caption", "captions") if column in present]
    return (known[0], captions[0]) if len(known) == 1 and captions and "label" not in present else None


def label_of(task: Task, value: Any, *, source: str = "data", split: str = "train", row: int = 0) -> int | float | None:
    """Class number or score of a value of the label column; None for a row without label (null, "" or -1).

    `source`, `split` and `row` (from 0) name the place in messages. -1 is a score, or a class of its own, in a
    task that is not of the table.

    Raises DataError for a label outside the set, or a score that is no finite number.
    """
    if value is None or value == "":
        return None
    place = f"{source}: split {split!r}, row {row}: label {value!r} in column {task.label_column!r}"
    if task.kind == "regression":
        score = number(value)
        if score is None:
            raise DataError(f"{place} is no finite number, as a score must be")
        return None if score == -1 and task.name in TASKS else score
    text = label_name(value)
    if text in task.labels and not (task.numbered and isinstance(value, int)):
        return task.labels.index(text)
    if task.numbered and text.isdecimal() and int(text) < len(task.labels):
        return int(text)
    if text == "-1":
        return None
    allowed = ", ".join(task.labels[:20]) + (", .." if len(task.labels) > 20 else "")
    numbers = f", or their numbers 0 to {len(task.labels) - 1}" if task.numbered else ""
    raise DataError(f"{place} is not in the set of task {task.name!r}: {allowed}{numbers}")


def _own_task(source: Source, split: str, text_columns: tuple[str, ...], label_column: str) -> Task:
    columns = text_columns or _guess_text_column(source, split)
    source.require(split, [*columns, label_column])
    if label_column in columns:
        raise DataError(f"{source.name}: column {label_column!r} cannot be both text and label; name another")
    escaped = [column.replace("{", "{{").replace("}", "}}") for column in columns]
    names = source.class_names(split, label_column)
    labels = names or distinct_labels(source, split, label_column)
    return Task(
        name="own",
        kind="classification" if labels else "regression",
        columns=columns,
        text_format="{}" if len(columns) == 1 else " ".join(f"{column}: {{}}" for column in escaped),
        label_column=label_column,
        labels=labels,
        label_texts=labels or None,
        metric="accuracy" if labels else "pearson_spearman",
        numbered=names is not None,
    )


def _picture_task(name: str | None, source: Source, columns: tuple[str, ...], label_column: str) -> Task:
    """A task of the source's own columns, one of them a picture."""
    if name is not None:
        raise DataError(f"task {name!r} reads text, and the model reads pictures; leave --task out")
    split = "train" if "train" in source.splits else source.splits[0]
    known = source.picture_columns(split)
    if not known:
        raise DataError(
            f"{source.name}: no column of split {split!r} holds pictures, and the model reads pictures; it has "
            f"{', '.join(source.columns(split))}"
        )
    chosen = columns or known
    if len(chosen) != 1 or chosen[0] not in known:
        raise DataError(
            f"{source.name}: one picture column is read, not {', '.join(chosen)}; name one of {', '.join(known)} with "
            "--text-column"
        )
    return _own_task(source, split, chosen, label_column)


def _retrieval_task(name: str | None, source: Source, columns: tuple[str, str]) -> Task:
    if name is not None:
        raise DataError(f"task {name!r} reads text, and the data are pictures with captions; leave --task out")
    source.require("train" if "train" in source.splits else source.splits[0], columns)
    return Task(
        name="own",
        kind="retrieval",
        columns=columns,
        text_format="{}",
        label_column="",
        metric="recall",
        numbered=False,
    )


def _guess_text_column(source: Source, split: str) -> tuple[str, ...]:
    present = source.columns(split)
    for column in ("text", "sentence"):
        if column in present:
            return (column,)
    raise DataError(
        f"{source.name}: no column 'text' or 'sentence' in split {split!r}, which has {', '.join(present)}; "
        "name the text column(s) with --text-column"
    )

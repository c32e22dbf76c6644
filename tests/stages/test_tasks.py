"""Tasks, labels and splits, against the GLUE and SHERL conventions written out by hand."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sherl_cache.stages.sources.contract import Batch, Source
from sherl_cache.stages.splits import SplitView, split_rules
from sherl_cache.stages.tasks import LAYOUTS, TASKS, Task, label_of, task_for
from sherl_cache.storage.errors import DataError


class Rows(Source):
    """A source over lists, three rows a batch."""

    def __init__(self, **splits: dict[str, list[Any]]) -> None:
        self.name = "rows"
        self.splits = tuple(splits)
        self.data = splits

    def columns(self, split: str) -> tuple[str, ...]:
        return tuple(self.data[split])

    def rows(self, split: str) -> int:
        return len(next(iter(self.data[split].values())))

    def batches(self, split: str, columns: Sequence[str]) -> Iterator[Batch]:
        self.require(split, columns)
        for start in range(0, self.rows(split), 3):
            yield {column: self.data[split][column][start : start + 3] for column in columns}


def labelled(labels: list[Any]) -> Rows:
    return Rows(train={"text": [f"t{row}" for row in range(len(labels))], "label": labels})


# --- the table ------------------------------------------------------------------------------------------------

FILLED = {
    "cola": ("cola sentence: A", "matthews", ["unacceptable", "acceptable"]),
    "sst2": ("sst2 sentence: A", "accuracy", ["negative", "positive"]),
    "mrpc": ("mrpc sentence1: A sentence2: B", "accuracy_f1", ["not_equivalent", "equivalent"]),
    "qqp": ("qqp question1: A question2: B", "accuracy_f1", ["not_duplicate", "duplicate"]),
    "stsb": ("stsb sentence1: A sentence2: B", "pearson_spearman", []),
    "mnli": ("mnli premise: A hypothesis B", "accuracy", ["entailment", "neutral", "contradiction"]),
    "qnli": ("qnli question: A sentence: B", "accuracy", ["entailment", "not_entailment"]),
    "rte": ("rte sentence1: A sentence2: B", "accuracy", ["entailment", "not_entailment"]),
}


@pytest.mark.parametrize("name", FILLED)
def test_glue_texts_metrics_and_labels_are_the_official_ones(name: str) -> None:
    task = TASKS[name]
    text, metric, labels = FILLED[name]
    assert task.text_format.format(*"AB"[: len(task.columns)]) == text
    assert (task.metric, list(task.labels)) == (metric, labels)
    assert task.label_texts == (tuple("012"[: len(labels)]) if labels else None)
    assert set(LAYOUTS[name].columns) == {*task.columns, "label"}


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_a_task_survives_json(task: Task) -> None:
    assert Task.from_json(json.loads(json.dumps(task.to_json()))) == task


# --- users' own tasks -----------------------------------------------------------------------------------------


def test_numbers_are_classes_in_their_order_and_name_themselves() -> None:
    task = task_for(None, labelled([10, 2, -1, 2, 10]))
    assert (task.kind, task.labels, task.label_texts) == ("classification", ("-1", "2", "10"), ("-1", "2", "10"))
    assert [label_of(task, value) for value in (-1, 2, "10", 2.0)] == [0, 1, 2, 1]


def test_text_labels_are_sorted() -> None:
    assert task_for(None, labelled(["spam", "ham", "spam", None, ""])).labels == ("ham", "spam")


@pytest.mark.parametrize("labels", [[0.5, 1.0, 2.0], ["0.5", "1", "2"], [float(n) for n in range(21)]])
def test_fractions_and_many_floats_are_scores(labels: list[Any]) -> None:
    task = task_for(None, labelled(labels))
    assert (task.kind, task.metric, task.label_texts) == ("regression", "pearson_spearman", None)
    assert label_of(task, labels[0]) == float(labels[0])
    assert label_of(task, -1.0) == -1.0


def test_a_few_whole_floats_are_classes() -> None:
    assert task_for(None, labelled([1.0, 0.0, 1.0])).labels == ("0", "1")


def test_text_of_one_column_is_plain_and_of_several_is_named() -> None:
    source = Rows(train={"a": ["x"], "{b}": ["{y}"], "label": ["p"], "text": ["t"]})
    source.data["train"] = {key: values + values for key, values in source.data["train"].items()}
    source.data["train"]["label"] = ["p", "q"]
    assert task_for(None, source).text_format.format("T") == "T"
    two = task_for(None, source, ["a", "{b}"])
    assert two.text_format.format("x", "{y}") == "a: x {b}: {y}"


def test_columns_given_replace_those_of_a_named_task() -> None:
    source = Rows(train={"review": ["fine"], "stars": [1]})
    task = task_for("sst2", source, ["review"], "stars")
    assert (task.columns, task.label_column, task.labels) == (("review",), "stars", ("negative", "positive"))


@pytest.mark.parametrize(
    ("name", "source", "columns", "label", "match"),
    [
        ("sst", labelled([0, 1]), (), None, "did you mean sst2"),
        ("rte", labelled([0, 1]), ("text",), None, r"reads 2 text column\(s\)"),
        ("sst2", labelled([0, 1]), (), None, "no column 'sentence'; it has text, label"),
        (None, Rows(train={"body": ["a"], "label": [0]}), (), None, "--text-column"),
        (None, labelled([0, 1]), ("txet",), None, "did you mean text"),
        (None, labelled([0, 1]), (), "lable", "did you mean label"),
        (None, labelled([0, 1]), (), "text", "both text and label"),
        (None, labelled([1, 1]), (), None, "only the label '1'"),
        (None, labelled([None, ""]), (), None, "holds no label"),
        (None, labelled([f"x{row}" for row in range(1100)]), (), None, "more than 1000 different values"),
    ],
)
def test_what_is_no_task_is_refused(
    name: str | None, source: Source, columns: tuple[str, ...], label: str | None, match: str
) -> None:
    with pytest.raises(DataError, match=match):
        task_for(name, source, columns, label)


# --- labels ---------------------------------------------------------------------------------------------------


def test_names_and_numbers_mean_the_same_class() -> None:
    rte = TASKS["rte"]
    assert [label_of(rte, value) for value in ("entailment", 0, "0", "not_entailment", 1, "1", 1.0)] == [
        0,
        0,
        0,
        1,
        1,
        1,
        1,
    ]
    assert [label_of(rte, value) for value in (None, "", -1, "-1")] == [None] * 4
    assert [label_of(TASKS["stsb"], value) for value in ("3.800", 0, -1.0, None)] == [3.8, 0.0, None, None]


@pytest.mark.parametrize("value", [2, "2", "neutral", -2, 0.5, "0.5"])
def test_a_label_outside_the_set_names_its_place_and_what_is_allowed(value: object) -> None:
    with pytest.raises(DataError) as caught:
        label_of(TASKS["rte"], value, source="my.csv", split="validation", row=7)
    for part in ("my.csv", "'validation'", "row 7", repr(value), "entailment, not_entailment", "0 to 1"):
        assert part in str(caught.value)


@pytest.mark.parametrize("value", ["high", "nan", float("inf"), True])
def test_a_score_must_be_a_finite_number(value: object) -> None:
    with pytest.raises(DataError, match="no finite number"):
        label_of(TASKS["stsb"], value)


# --- splits ---------------------------------------------------------------------------------------------------


def numbered(**sizes: int) -> Rows:
    return Rows(**{split: {"n": list(range(size))} for split, size in sizes.items()})


def chosen(view: SplitView, split: str) -> list[int]:
    rows = [n for batch in view.batches(split, ["n"]) for n in batch["n"]]
    assert rows == [number for number, _ in zip(view.row_numbers(split), rows, strict=False)]
    assert view.rows(split) == len(rows)
    return rows


def permuted(size: int) -> list[int]:
    generator = torch.Generator()
    generator.manual_seed(42)
    order: list[int] = torch.randperm(size, generator=generator).tolist()
    return order


@pytest.mark.parametrize("name", ["cola", "rte", "mrpc", "stsb"])
def test_the_paper_halves_small_validation_sets(name: str) -> None:
    view = split_rules(numbered(train=20, validation=11), TASKS[name], "paper")
    order = permuted(11)
    assert chosen(view, "train") == list(range(20))
    assert chosen(view, "validation") == sorted(order[:5])
    assert chosen(view, "test") == sorted(order[5:])
    assert view.origin("test") == "validation"


@pytest.mark.parametrize("name", ["sst2", "qnli", "qqp"])
def test_the_paper_holds_1000_rows_out_of_large_training_sets(name: str) -> None:
    view = split_rules(numbered(train=1203, validation=4, test=5), TASKS[name], "paper")
    order = permuted(1203)
    assert chosen(view, "validation") == sorted(order[:1000])
    assert chosen(view, "train") == sorted(order[1000:])
    assert chosen(view, "test") == [0, 1, 2, 3]
    assert (view.origin("validation"), view.origin("test")) == ("train", "validation")


def test_the_paper_validates_mnli_on_mismatched() -> None:
    source = numbered(train=3, validation_matched=4, validation_mismatched=5)
    view = split_rules(source, TASKS["mnli"], "paper")
    assert (view.rows("validation"), view.rows("test")) == (5, 4)
    official = split_rules(source, TASKS["mnli"])
    assert {split: official.rows(split) for split in official.splits} == {
        "train": 3,
        "validation": 4,
        "validation_mismatched": 5,
    }


@settings(deadline=None)
@given(st.integers(2, 40), st.data())
def test_held_out_and_training_rows_part_the_training_set(size: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, size - 1))
    limit = data.draw(st.none() | st.integers(1, size))
    seed = data.draw(st.integers(0, 3))
    view = split_rules(numbered(train=size, validation=2), TASKS["sst2"], f"holdout:{count}", limit=limit, seed=seed)
    held, left = chosen(view, "validation"), chosen(view, "train")
    rest = sorted(set(range(size)) - set(held))
    assert len(held) == count
    assert left == rest[:limit]
    assert chosen(view, "test") == [0, 1]


def test_limit_takes_the_first_training_rows_and_leaves_validation_whole() -> None:
    view = split_rules(numbered(train=10, validation=7), TASKS["sst2"], limit=4)
    assert chosen(view, "train") == [0, 1, 2, 3]
    assert view.rows("validation") == 7
    assert split_rules(numbered(train=3), TASKS["sst2"], limit=9).rows("train") == 3


def test_training_rows_alone() -> None:
    view = split_rules(numbered(train=5, validation=7, test=2), TASKS["sst2"], "train", limit=3)
    assert view.splits == ("train",)
    assert chosen(view, "train") == [0, 1, 2]


@pytest.mark.parametrize(
    ("rule", "limit", "match"),
    [
        ("papers", None, "no split rule 'papers'"),
        ("holdout:", None, "no split rule"),
        ("holdout:0", None, "choose from 1 to 4"),
        ("holdout:5", None, "choose from 1 to 4"),
        ("paper", None, "1000 rows cannot be held out"),
        ("official", 0, "a limit of 0"),
    ],
)
def test_splits_that_cannot_be_are_refused(rule: str, limit: int | None, match: str) -> None:
    with pytest.raises(DataError, match=match):
        split_rules(numbered(train=5), TASKS["sst2"], rule, limit=limit)
    with pytest.raises(DataError, match="names no splits for task 'reviews'"):
        split_rules(numbered(train=5), TASKS["reviews"], "paper")

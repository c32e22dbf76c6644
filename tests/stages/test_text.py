"""Tokens, candidates and hashes, against one plain tokenizer call a row."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_bert, tiny_roberta, tiny_t5
from transformers import AutoTokenizer

from sherl_cache.stages.answer_texts import decode_answer, target_text
from sherl_cache.stages.sources.contract import Batch, Source
from sherl_cache.stages.splits import split_rules
from sherl_cache.stages.tasks import TASKS, Task, task_for
from sherl_cache.stages.text import (
    SCHEMA,
    EncodeStats,
    Form,
    default_max_length,
    encode,
    text_key_fields,
    tokenizer_digest,
)
from sherl_cache.storage.errors import DataError

PAIRS = [
    ("the film is good", "the film is great", 1.0),
    ("a dull story " * 6, "no", 0.0),
    ("no", "a dull story " * 6, 1.0),
    ("", "x", -1.0),
]


class Rows(Source):
    """Rows of a test, two a batch."""

    name = "rows.csv"
    splits = ("train",)

    def __init__(self, columns: dict[str, list[Any]]) -> None:
        self.data = columns

    def columns(self, split: str) -> tuple[str, ...]:
        return tuple(self.data)

    def rows(self, split: str) -> int:
        return len(next(iter(self.data.values())))

    def batches(self, split: str, columns: Sequence[str]) -> Iterator[Batch]:
        self.require(split, columns)
        for start in range(0, self.rows(split), 2):
            yield {column: self.data[column][start : start + 2] for column in columns}


def pairs() -> Rows:
    first, second, labels = zip(*PAIRS, strict=True)
    return Rows({"sentence1": list(first), "sentence2": list(second), "label": list(labels)})


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return AutoTokenizer.from_pretrained(tiny_t5(tmp_path_factory.mktemp("t5")))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return AutoTokenizer.from_pretrained(tiny_bert(tmp_path_factory.mktemp("bert")))


@pytest.fixture(scope="module")
def roberta(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return AutoTokenizer.from_pretrained(tiny_roberta(tmp_path_factory.mktemp("roberta")))


def table(
    source: Source, task: Task, tokenizer: Any, form: Form, length: int = 16, **options: Any
) -> list[dict[str, Any]]:
    batches = list(encode(source, "train", task, tokenizer, form=form, max_length=length, **options))
    assert all(batch.schema.equals(SCHEMA) for batch in batches)
    return [row for batch in batches for row in batch.to_pylist()]


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_pairs_equal_one_tokenizer_call_a_row(family: str, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(family)
    stats = EncodeStats()
    rows = table(pairs(), TASKS["rte"], tokenizer, "pair", stats=stats)
    whole = [tokenizer(first, second)["input_ids"] for first, second, _ in PAIRS]
    for row, (first, second, _) in zip(rows, PAIRS, strict=True):
        alone = tokenizer(first, second, truncation="longest_first", max_length=16)
        assert row["input_ids"] == alone["input_ids"]
        assert row["token_type_ids"] == alone.get("token_type_ids")
        assert row["target_ids"] is None
    assert [row["label"] for row in rows] == [1.0, 0.0, 1.0, None]
    assert [row["gold"] for row in rows] == [1, 0, 1, -1]
    assert [row["source_id"] for row in rows] == ["0", "1", "2", "3"]
    lengths = [len(row["input_ids"]) for row in rows]
    assert (stats.rows, stats.tokens, stats.longest) == (4, sum(lengths), 16)
    assert stats.truncated == sum(len(ids) > 16 for ids in whole) == 2 + (family == "roberta")
    assert stats.unlabelled == 1


def test_a_single_text_has_no_token_types(bert: Any) -> None:
    source = Rows({"sentence": ["fine", "dull"], "label": [1, 0]})
    rows = table(source, TASKS["sst2"], bert, "pair")
    assert [row["token_type_ids"] for row in rows] == [None, None]
    assert rows[0]["input_ids"] == bert("fine")["input_ids"]


def test_text_to_text_fills_the_template_and_lists_every_candidate(t5: Any) -> None:
    rows = table(pairs(), TASKS["rte"], t5, "text_to_text", 64)
    assert rows[0]["input_ids"] == t5("rte sentence1: the film is good sentence2: the film is great")["input_ids"]
    candidates = [t5("0")["input_ids"], t5("1")["input_ids"]]
    assert all(row["target_ids"] == candidates for row in rows)
    assert all(ids[-1] == t5.eos_token_id for ids in candidates)
    assert [row["gold"] for row in rows] == [1, 0, 1, -1]


def test_an_open_set_has_the_gold_text_alone(t5: Any) -> None:
    source = pairs()
    source.data["label"] = [3.25, 2.75, None, 5]
    rows = table(source, TASKS["stsb"], t5, "text_to_text", 64)
    assert [row["target_ids"] for row in rows] == [
        [t5("3.2")["input_ids"]],
        [t5("2.8")["input_ids"]],
        [],
        [t5("5.0")["input_ids"]],
    ]
    assert [row["gold"] for row in rows] == [0, 0, -1, 0]
    assert [row["label"] for row in rows] == [3.25, 2.75, None, 5.0]


def test_content_hashes_and_the_data_digest_follow_the_content_alone(bert: Any, t5: Any) -> None:
    stats, again = EncodeStats(), EncodeStats()
    rows = table(pairs(), TASKS["rte"], bert, "pair", stats=stats)
    other = pairs()
    other.name = "elsewhere.parquet"
    others = table(other, TASKS["rte"], t5, "text_to_text", stats=again)
    hashes = [row["content_hash"] for row in rows]
    text = json.dumps({"label": 1, "texts": PAIRS[0][:2]}, separators=(",", ":"), sort_keys=True)
    assert hashes[0] == hashlib.sha256(text.encode()).hexdigest()[:32]
    assert hashes == [row["content_hash"] for row in others]
    assert stats.data_digest == again.data_digest == hashlib.sha256("".join(hashes).encode()).hexdigest()
    other.data["label"][1] = 1
    changed = EncodeStats()
    table(other, TASKS["rte"], bert, "pair", stats=changed)
    assert changed.data_digest != stats.data_digest


def test_source_ids_name_rows_of_the_source_in_a_view(bert: Any) -> None:
    source = Rows({"sentence": [f"word {row}" for row in range(9)], "label": [0, 1] * 4 + [0]})
    view = split_rules(source, TASKS["sst2"], "holdout:3")
    for split in ("train", "validation"):
        batches = encode(view, split, TASKS["sst2"], bert, form="pair", max_length=16)
        for row in (row for batch in batches for row in batch.to_pylist()):
            assert row["input_ids"] == bert(f"word {row['source_id']}")["input_ids"]


def test_rows_without_a_label_column_need_it_said(bert: Any) -> None:
    source = Rows({"sentence": ["fine", "dull"]})
    with pytest.raises(DataError, match="no column 'label'"):
        table(source, TASKS["sst2"], bert, "pair")
    assert [row["gold"] for row in table(source, TASKS["sst2"], bert, "pair", label_required=False)] == [-1, -1]


@pytest.mark.parametrize(
    ("text", "label", "match"),
    [
        (None, 1, "row 2: column 'sentence' holds no value"),
        (["a"], 1, "row 2: column 'sentence' holds list"),
        ("fine", 7, "row 2: label 7 .*negative, positive"),
    ],
)
def test_a_bad_row_is_named(text: Any, label: Any, match: str, bert: Any) -> None:
    source = Rows({"sentence": ["a", "b", text], "label": [0, 1, label]})
    with pytest.raises(DataError, match=rf"rows\.csv: split 'train', {match}"):
        table(source, TASKS["sst2"], bert, "pair")


def test_a_length_without_room_for_text_is_refused(bert: Any) -> None:
    with pytest.raises(DataError, match="at least 5 are needed"):
        table(pairs(), TASKS["rte"], bert, "pair", 4)
    assert table(pairs(), TASKS["rte"], bert, "pair", 5)


def test_default_length_is_the_smaller_limit(t5: Any, bert: Any) -> None:
    assert default_max_length(t5, None) == 512
    assert default_max_length(bert, 128) == 128
    assert default_max_length(bert, 64) == 64


def test_the_tokenizer_digest_knows_no_place_and_no_earlier_call(tmp_path: Path, bert: Any) -> None:
    fresh = AutoTokenizer.from_pretrained(tiny_bert(tmp_path / "elsewhere"))
    digest = tokenizer_digest(fresh)
    fresh(["a", "b c"], padding=True, truncation=True, max_length=7)
    assert tokenizer_digest(fresh) == digest == tokenizer_digest(bert)
    fresh.add_tokens(["newword"])
    assert tokenizer_digest(fresh) != digest


def test_key_fields_change_with_what_the_tokens_depend_on(t5: Any, bert: Any) -> None:
    fields = text_key_fields(TASKS["rte"], t5, form="text_to_text", max_length=128)
    assert all(isinstance(value, str | int) for value in fields.values())
    for changed in (
        text_key_fields(TASKS["mrpc"], t5, form="text_to_text", max_length=128),
        text_key_fields(TASKS["rte"], bert, form="text_to_text", max_length=128),
        text_key_fields(TASKS["rte"], t5, form="pair", max_length=128),
        text_key_fields(TASKS["rte"], t5, form="text_to_text", max_length=64),
    ):
        assert changed != fields


@pytest.mark.parametrize("name", ["rte", "mnli"])
def test_an_answer_is_matched_exactly_after_stripping(name: str) -> None:
    task = TASKS[name]
    texts = task.label_texts or ()
    assert [decode_answer(f" {text}\n", task) for text in texts] == list(range(len(texts)))
    assert [decode_answer(text, task) for text in ("", "3", "0 1", "entailment", "01")] == [None] * 5


@settings(deadline=None)
@given(st.floats(0, 5))
def test_a_score_and_its_text_agree_to_one_decimal(value: float) -> None:
    text = target_text(TASKS["stsb"], value)
    assert len(text) == 3
    assert abs(float(text) - value) <= 0.05 + 1e-12
    assert decode_answer(text, TASKS["stsb"]) == float(text)


def test_an_unreadable_score_is_minus_one() -> None:
    assert [decode_answer(text, TASKS["stsb"]) for text in ("good", "", "nan", "4.2 stars")] == [-1.0] * 4


def test_own_labels_are_their_own_targets(t5: Any) -> None:
    source = Rows({"text": ["a", "b", "c"], "label": ["ham", "spam", "ham"]})
    rows = table(source, task_for(None, source), t5, "text_to_text")
    assert rows[1]["target_ids"] == [t5("ham")["input_ids"], t5("spam")["input_ids"]]
    assert [row["gold"] for row in rows] == [0, 1, 0]

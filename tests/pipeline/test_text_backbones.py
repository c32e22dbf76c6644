"""The main job on other kinds of text models: causal decoders without a padding token, BART, whatever rotates."""

import csv
import random
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from cli import call
from reviews_csv import BAD, GOOD, NOUNS, write_csv
from tiny import tiny_bart, tiny_causal

SETTINGS = ("--set", "data.batch_examples=16", "--set", "train.learning_rate=1e-2", "--epochs", 3)


def write_pairs(path: Path, rows: int, seed: int = 0) -> Path:
    """Two texts a row, of which one may be empty; do they agree?"""
    drawn = random.Random(seed)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["first", "second", "label"])
        for row in range(rows):
            same = drawn.choice(("no", "yes"))
            words = GOOD if same == "yes" else BAD
            first = f"{drawn.choice(NOUNS)} is {drawn.choice(GOOD)}" if row % 7 else ""
            writer.writerow([first, f"{drawn.choice(NOUNS)} is {drawn.choice(words)}", same])
    return path


def trained_job(root: Path, model: Path, write: Any, *columns: str) -> dict[str, Any]:
    """What training says of a run in root / "run", from a store in float32: live and cached scores are the same numbers."""
    data = [write(root / "train.csv", 96), write(root / "validation.csv", 40, seed=1)]
    named = [word for column in columns for word in ("--text-column", column)]
    extract = ("extract", "--model", model, "--data", data[0], "--validation", data[1], "--store", root / "cache")
    assert call(*extract, *named, "--encoding", "float32")["examples"] == 136
    return call("train", "--store", root / "cache", "--run", root / "run", *SETTINGS)


def check_live_equals_cached(root: Path, trained: dict[str, Any]) -> None:
    """Oracle: the score and the predictions from the store, of states that ran in other batches."""
    live = call("eval", "--run", root / "run")
    assert (live["examples"], live["value"]) == (40, pytest.approx(trained["best"], abs=1e-12))
    table = pq.read_table(root / "run" / "predictions.parquet").to_pydict()
    with (root / "validation.csv").open(newline="") as file:
        rows = [row[:-1] for row in csv.reader(file)][1:]
    answers = call("predict", "--run", root / "run", *("\t".join(rows[int(row)]) for row in table["source_id"]))
    labels = sorted({answer["label"] for answer in answers})
    assert len(labels) == 2, "answers that are all the same would show little"
    assert [labels.index(answer["label"]) for answer in answers] == table["prediction"]


def test_causal_decoder_without_padding_token_learns_from_two_columns(tmp_path: Path) -> None:
    """The tokenizer knows no pairs and adds no token: the task's template is one text, answered at its last token."""
    trained = trained_job(tmp_path, tiny_causal(tmp_path / "model"), write_pairs, "first", "second")
    check_live_equals_cached(tmp_path, trained)
    message = call("train", "--store", tmp_path / "cache", "--set", "head.name=language_model", code=3)
    assert "use classifier or regression" in message


def test_bart_learns_answers_as_text_and_generates_them(tmp_path: Path) -> None:
    """Oracle: label scoring from the store against label scoring by the live model."""
    trained = trained_job(tmp_path, tiny_bart(tmp_path / "model"), write_csv)
    live = call("eval", "--run", tmp_path / "run")
    assert live["label_scoring"] == pytest.approx(trained["best"], abs=1e-12)
    assert 0 <= live["outside_label_set"] <= 1
    answer = call("predict", "--run", tmp_path / "run", "the film is good")[0]
    assert answer["text"] == "the film is good"


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen3", "gemma2", "gemma3_text", "gpt_neox", "opt"])
def test_every_kind_of_causal_decoder_runs_the_main_job(model_type: str, tmp_path: Path) -> None:
    options = {"gemma2": {"head_dim": 8}, "gemma3_text": {"head_dim": 8}}.get(model_type, {})
    options |= {"opt": {"ffn_dim": 64, "word_embed_proj_dim": 32}}.get(model_type, {})
    options |= (
        {"num_key_value_heads": 2} if model_type in ("llama", "mistral", "qwen3", "gemma2", "gemma3_text") else {}
    )
    trained = trained_job(tmp_path, tiny_causal(tmp_path / "model", model_type, **options), write_csv)
    check_live_equals_cached(tmp_path, trained)

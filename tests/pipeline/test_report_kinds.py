"""The page of a run of every kind of task: what makes sense there has its numbers, and no section is empty."""

import csv
import json
import random
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from captioned_pictures import write_pairs
from cli import call
from report_pages import Parsed, asks_for_nothing, reported
from reviews_csv import write_csv
from tiny import tiny_bert, tiny_t5
from tiny_pictures import tiny_clip, tiny_vit, write_class_folders

from sherl_cache.pipeline.report.charts import number

SETTINGS = ("--set", "data.batch_examples=8", "--epochs", 2)


def scored_csv(path: Path, rows: int, seed: int = 0) -> Path:
    """Two texts and a score."""
    draw = random.Random(seed)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["one", "other", "label"])
        for _ in range(rows):
            words = [" ".join(draw.choice(("good", "bad", "film", "plot")) for _ in range(4)) for _ in range(2)]
            writer.writerow([*words, f"{draw.uniform(0, 5):.2f}"])
    return path


def page_of(root: Path, *extract: object) -> Parsed:
    """Extract, train, and the page of the run with texts; every section says something."""
    call("extract", *extract, "--store", root / "cache", "--encoding", "float32")
    call("train", "--store", root / "cache", "--run", root / "run", *SETTINGS)
    _, page, text = reported(root, "--run", root / "run", "--store", root / "cache", "--texts")
    asks_for_nothing(page, text)
    for section in text.split("<section ")[1:]:
        assert any(tag in section for tag in ("<svg", "<td", "<pre", "<p>")), section[:200]
        assert "<tbody>\n</tbody>" not in section, section[:200]
    assert {"curves", "memory", "time", "bytes", "answers", "trained", "recipe"} <= set(page.sections())
    return page


def predictions(root: Path) -> dict[str, list[float]]:
    found: dict[str, list[float]] = pq.read_table(root / "run" / "predictions.parquet").to_pydict()
    return found


def test_of_a_regression_the_largest_errors_come_first(tmp_path: Path) -> None:
    data, held_out = scored_csv(tmp_path / "train.csv", 30), scored_csv(tmp_path / "validation.csv", 12, seed=1)
    columns = ("--text-column", "one", "--text-column", "other", "--label-column", "label")
    page = page_of(
        tmp_path, "--model", tiny_bert(tmp_path / "model"), "--data", data, "--validation", held_out, *columns
    )
    table = predictions(tmp_path)
    worst = int(np.argmax(np.abs(np.subtract(table["label"], table["prediction"]))))
    with held_out.open(newline="") as file:
        row = list(csv.DictReader(file))[int(table["source_id"][worst])]
    label, given = table["label"][worst], table["prediction"][worst]
    told = f"{number(label)} {number(given)} {number(abs(label - given))} {row['one']} {row['other']}"
    assert f"example label answer error one other {table['source_id'][worst]} {told}" in page.text
    assert "confusion" not in page.text
    assert set(table["probability"]) == {None} or all(np.isnan(table["probability"]))
    scores = json.loads((tmp_path / "run" / "result.json").read_text())
    best = scores["history"][scores["best_epoch"]]
    assert all(f"{name} {best[name]:.4f}" in page.text for name in ("pearson", "spearman"))
    assert json.loads((tmp_path / "run" / "layer_weights.json").read_text())["streams"]["encoder"]["classes"] == []


def test_answers_in_text_of_a_closed_set_have_a_confusion_matrix_and_weights_of_both_streams(tmp_path: Path) -> None:
    data, held_out = write_csv(tmp_path / "train.csv", 30), write_csv(tmp_path / "validation.csv", 12, seed=1)
    page = page_of(tmp_path, "--model", tiny_t5(tmp_path / "model"), "--data", data, "--validation", held_out)
    pairs = list(zip(*(predictions(tmp_path)[name] for name in ("label", "prediction")), strict=True))
    matrix = (
        f"negative {pairs.count((0, 0))} {pairs.count((0, 1))} positive {pairs.count((1, 0))} {pairs.count((1, 1))}"
    )
    assert matrix in page.text
    assert all(f"{stream}: weights of the taps, by class" in page.text for stream in ("encoder", "decoder"))


@pytest.mark.slow
def test_answers_of_an_open_set_say_where_they_are_scored(tmp_path: Path) -> None:
    data, held_out = scored_csv(tmp_path / "train.csv", 30), scored_csv(tmp_path / "validation.csv", 12, seed=1)
    columns = ("--text-column", "one", "--text-column", "other", "--label-column", "label")
    page = page_of(tmp_path, "--model", tiny_t5(tmp_path / "model"), "--data", data, "--validation", held_out, *columns)
    assert "sherl-cache eval" in page.text
    call("eval", "--run", tmp_path / "run")
    evaluated = json.loads((tmp_path / "run" / "evals.json").read_text())["evals"][0]
    _, page, _ = reported(tmp_path, "--run", tmp_path / "run")
    assert f"12 {evaluated['metric']} {evaluated['value']:.4f}" in page.text


@pytest.mark.slow
def test_pictures_are_named_by_their_files(tmp_path: Path) -> None:
    write_class_folders(tmp_path / "set" / "train", {"blue": 12, "green": 10, "red": 14})
    write_class_folders(tmp_path / "set" / "validation", {"blue": 4, "green": 4, "red": 4}, seed=1)
    page = page_of(tmp_path, "--model", tiny_vit(tmp_path / "model"), "--data", tmp_path / "set")
    assert "label \\ answer blue green red" in page.text
    wrong = [
        at
        for at, label in enumerate(predictions(tmp_path)["label"])
        if label != predictions(tmp_path)["prediction"][at]
    ]
    assert page.text.count(".png") == len(wrong) > 0


@pytest.mark.slow
def test_of_a_retrieval_the_pictures_found_last_come_first(tmp_path: Path) -> None:
    write_pairs(tmp_path / "set" / "train", 24, 0)
    write_pairs(tmp_path / "set" / "validation", 10, 1)
    page = page_of(tmp_path, "--model", tiny_clip(tmp_path / "model"), "--data", tmp_path / "set")
    table = predictions(tmp_path)
    worst = int(np.argmax(table["prediction"]))
    source = table["source_id"][worst]
    assert (
        f"example rank of its nearest caption image caption {source} {int(table['prediction'][worst])} {int(source):03}.png"
        in page.text
    )
    assert "first_to_second_recall@5" in page.text


def test_a_run_without_validation_says_so(tmp_path: Path) -> None:
    data = write_csv(tmp_path / "train.csv", 16)
    page = page_of(tmp_path, "--model", tiny_bert(tmp_path / "model"), "--data", data)
    assert "holds no validation split" in page.text
    assert "No score" in page.text

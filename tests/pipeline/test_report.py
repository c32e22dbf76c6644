"""`report`: every part with the numbers that were recorded, text that stays text, and pages that ask for nothing."""

import csv
import dataclasses
import html
import json
import re
import shutil
import statistics
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from cli import call
from report_pages import Parsed, asks_for_nothing, reported
from reviews_csv import write_csv
from tiny import tiny_bert

from sherl_cache.pipeline.progress import size
from sherl_cache.pipeline.report.charts import (
    Series,
    heat_map,
    line_chart,
    number,
    stacked_bars,
)
from sherl_cache.pipeline.report.costs import mean_seconds
from sherl_cache.pipeline.report.page import Page, Section, Table, render
from sherl_cache.pipeline.report.read_run import read_run
from sherl_cache.pipeline.report.seeds import Group, groups_of

HOSTILE = "</td><script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{7*7}}\u202e\x07"


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with its analysis, and two runs of different seeds, of a tiny model."""
    root = tmp_path_factory.mktemp("report")
    data, validation = write_csv(root / "train.csv", 60), write_csv(root / "validation.csv", 30, seed=1)
    model = tiny_bert(root / "model")
    call("extract", "--model", model, "--data", data, "--validation", validation, "--store", root / "cache")
    for seed in (0, 1):
        settings = ("--set", "data.batch_examples=16", "--epochs", 2, "--seed", seed)
        call("train", "--store", root / "cache", "--run", root / f"run{seed}", *settings)
    call("analyze", "--store", root / "cache")
    return root


def test_a_run_shows_every_part_with_the_recorded_numbers(job: Path) -> None:
    result, page, text = reported(job, "--run", job / "run0", "--store", job / "cache")
    expected = ["curves", "layers", "redundancy-encoder", "memory", "time", "bytes", "answers", "trained", "recipe"]
    assert page.sections() == result["sections"] == expected
    asks_for_nothing(page, text)
    found = json.loads((job / "run0" / "result.json").read_text())
    lines = [json.loads(line) for line in (job / "run0" / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert f"accuracy {found['best']:.4f} in epoch {found['best_epoch'] + 1}" in page.text
    assert f"{found['trained_parameters']:,}" in page.text
    assert found["weights_digest"] in page.text
    assert number(steps[-1]["loss"]) in page.text
    weights = steps[-1]["layer_weights"]["encoder"]
    spreads = steps[-1]["layer_weight_spreads"]["encoder"]
    for tap, weight, spread in zip(found["taps"]["encoder"], weights, spreads, strict=False):
        assert f"h{tap:02d} {number(weight)} {number(spread)}" in page.text
    told = json.loads((job / "run0" / "layer_weights.json").read_text())["streams"]["encoder"]
    assert told["taps"] == [0, 1, 2]
    for place, tap in enumerate(told["taps"]):
        cells = [f"{each['mean'][place]:.3f} ± {each['spread'][place]:.3f}" for each in (told, *told["classes"])]
        assert f"h{tap:02d} {' '.join(cells)}" in page.text
    assert "tap mean weight ± spread negative positive cosine to the other taps" in page.text
    environment = json.loads((job / "run0" / "run.json").read_text())["environment"]
    assert all(f"{name} {environment[name]}" in page.text for name in ("torch", "python", "threads"))
    held = steps[-1]["bytes"]
    assert steps[-1]["read_buffers"] > 0
    assert set(held) == {"late", "fusion", "head", "gradients", "optimizer", "batch"}
    assert held["gradients"] == 4 * found["trained_parameters"] >= held["fusion"] > 0
    assert held["optimizer"] == pytest.approx(2 * held["gradients"], rel=0.02)  # AdamW's two moments
    assert f"late weights {size(held['late'])} fusion {size(held['fusion'])} head {size(held['head'])}" in page.text
    assert f"read slots {size(steps[-1]['read_buffers'])}" in page.text
    analysis = json.loads((job / "cache/sherl/analysis/train/analysis.json").read_text())["streams"]["encoder"]
    assert f"{analysis['cka'][0][1]:.3f}" in page.text
    table = pq.read_table(job / "run0" / "predictions.parquet").to_pydict()
    wrong = sum(a != b for a, b in zip(table["label"], table["prediction"], strict=True))
    assert f"those given with most confidence first: {wrong} of {wrong}" in page.text
    assert all(0.5 <= likely <= 1 for likely in table["probability"])
    pairs = list(zip(table["label"], table["prediction"], strict=True))
    assert (
        f"negative {pairs.count((0, 0))} {pairs.count((0, 1))} positive {pairs.count((1, 0))} {pairs.count((1, 1))}"
        in page.text
    )
    assert (
        yaml.safe_load(html.unescape(text.split("<pre")[1].split(">", 1)[1].split("</pre>")[0]))["fusion"]["name"]
        == "sherl"
    )


def test_the_parts_of_a_step_sum_to_the_step(job: Path) -> None:
    run = read_run(job / "run0")
    steps = [line["seconds"]["step"] for line in run.steps]
    assert sum(mean_seconds(run).values()) == pytest.approx(sum(steps) / len(steps))


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_most_wrong_come_first_and_their_texts_only_when_asked_for(job: Path, tmp_path: Path) -> None:
    table = pq.read_table(job / "run0" / "predictions.parquet").to_pydict()
    wrong = [at for at, label in enumerate(table["label"]) if label != table["prediction"][at]]
    wrong.sort(key=lambda at: -table["probability"][at])
    texts = [row["text"] for row in rows_of(job / "validation.csv")]
    _, page, _ = reported(tmp_path, "--run", job / "run0")
    assert not any(text in page.text for text in texts if len(text) > 20)
    assert "--texts" in page.text
    _, page, _ = reported(tmp_path, "--run", job / "run0", "--texts")
    names = ("negative", "positive")
    listed = [
        f"{table['source_id'][at]} {names[int(table['label'][at])]} {names[int(table['prediction'][at])]} "
        f"{table['probability'][at]:.3f} {texts[int(table['source_id'][at])]}"
        for at in wrong
    ]
    places = [page.text.index(line) for line in listed]
    assert places == sorted(places)
    assert len(places) > 1
    assert "one --run" in call("report", "--store", job / "cache", "--texts", code=2)


def test_texts_that_changed_or_went_are_not_shown(job: Path, tmp_path: Path) -> None:
    shutil.copytree(job / "run0", tmp_path / "run")
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    lines = (job / "validation.csv").read_text().splitlines()
    (tmp_path / "validation.csv").write_text("\n".join([lines[0], *(f"other {line}" for line in lines[1:])]) + "\n")
    facts["producer"]["data"]["validation"] = str(tmp_path / "validation.csv")
    (tmp_path / "run" / "run.json").write_text(json.dumps(facts))
    _, page, _ = reported(tmp_path, "--run", tmp_path / "run", "--texts")
    assert "another row here by now" in page.text
    assert "other the" not in page.text
    (tmp_path / "validation.csv").unlink()
    _, page, _ = reported(tmp_path, "--run", tmp_path / "run", "--texts")
    assert "Texts could not be read from the data" in page.text
    assert "validation.csv" in page.text


def test_what_the_taps_repeat_is_looked_up_or_the_way_to_it_is_told(job: Path, tmp_path: Path) -> None:
    _, page, _ = reported(tmp_path, "--run", job / "run0")
    assert "where --store names the store" in page.text
    shutil.copytree(job / "cache", tmp_path / "cache")
    shutil.rmtree(tmp_path / "cache" / "sherl" / "analysis")
    _, page, _ = reported(tmp_path, "--run", job / "run0", "--store", tmp_path / "cache")
    assert f"sherl-cache analyze --store {tmp_path / 'cache'}" in page.text


def test_a_run_that_is_not_there_names_the_near_one(job: Path) -> None:
    assert f"did you mean {job / 'run0'}?" in call("report", "--run", job / "runn0", code=2)


def test_a_run_of_an_older_version_that_recorded_less_has_its_page(job: Path, tmp_path: Path) -> None:
    shutil.copytree(job / "run0", tmp_path / "run")
    for name in ("layer_weights.json", "evals.json"):
        (tmp_path / "run" / name).unlink(missing_ok=True)
    newer = ("bytes", "read_buffers", "layer_weight_spreads")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    kept = [{key: value for key, value in line.items() if key not in newer} for line in lines]
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    table = pq.read_table(tmp_path / "run" / "predictions.parquet", columns=["source_id", "label", "prediction"])
    pq.write_table(table, tmp_path / "run" / "predictions.parquet")
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps({**facts, "environment": {}}))
    _, page, _ = reported(tmp_path, "--run", tmp_path / "run", "--texts")
    assert {"layers", "memory", "answers"} <= set(page.sections())
    assert "confusion matrix" in page.text


def test_a_run_without_its_store_and_one_that_is_not_finished(job: Path, tmp_path: Path) -> None:
    shutil.copytree(job / "run0", tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9')  # a line that is being written
    _, page, _ = reported(tmp_path, "--run", tmp_path / "run")
    assert "not finished after" in page.text
    assert "bytes" not in page.sections()


def test_runs_side_by_side(job: Path) -> None:
    """Two seeds of one recipe are drawn as one, with their spread; another recipe is a line of its own."""
    settings = ("--config", "probe", "--set", "data.batch_examples=16", "--epochs", 2)
    call("train", "--store", job / "cache", "--run", job / "probe", *settings)
    runs = [word for name in ("run0", "probe", "run1") for word in ("--run", job / name)]
    result, page, text = reported(job, *runs)
    assert page.sections() == result["sections"] == ["runs", "curves", "price", "time"]
    asks_for_nothing(page, text)
    found = {name: json.loads((job / name / "result.json").read_text()) for name in ("run0", "run1", "probe")}
    assert all(f"accuracy {each['best']:.4f}" in page.text for each in found.values())
    both = [found["run0"]["best"], found["run1"]["best"]]
    told = f"{statistics.mean(both):.4f} ± {statistics.stdev(both):.4f}"
    assert f"sherl, 2 seeds 0, 1 {told}" in page.text
    single = f"probe is ahead of 1 with accuracy {found['probe']['best']:.4f}"
    assert (
        single if found["probe"]["best"] > statistics.mean(both) else f"ahead of 1 with accuracy {told}"
    ) in page.text
    curves = [figure for figure in re.findall(r"<svg.*?</svg>", text, re.DOTALL) if 'aria-label="loss over' in figure]
    assert [curves[0].count(mark) for mark in ("<polyline", "<polygon")] == [2, 1]


def test_seeds_are_averaged_where_all_of_them_stand(job: Path) -> None:
    records = [read_run(job / name) for name in ("run0", "run1")]
    [group] = groups_of(records)
    shorter = dataclasses.replace(records[1], steps=records[1].steps[:3])
    line = Group("g", [records[0], shorter]).line(lambda run: {at["step"]: at["loss"] for at in run.steps})
    pairs = [(a["loss"], b["loss"]) for a, b in zip(records[0].steps, shorter.steps, strict=False)]
    assert [y for _, y in line.points] == pytest.approx([statistics.mean(pair) for pair in pairs])
    assert list(line.spread) == pytest.approx([statistics.stdev(pair) for pair in pairs])
    assert len(line.points) == 3
    mark = group.mark(lambda run: (1.0, run.steps[0]["loss"]))
    assert mark.points[0][1] == pytest.approx(statistics.mean(pairs[0]))
    assert groups_of(records[:1])[0].name == "run0"


def test_a_store_alone(job: Path) -> None:
    result, page, text = reported(job, "--store", job / "cache")
    assert page.sections() == ["contents", "bytes", "redundancy-encoder"]
    asks_for_nothing(page, text)
    known = call("info", "--store", job / "cache")
    assert f"{known['examples']:,} examples, {known['tokens']:,} tokens" in page.text
    assert known["digest"] in page.text
    assert result["runs"] == []
    assert "analyze again" not in page.text


def test_figures_of_another_state_of_the_store_are_marked(job: Path, tmp_path: Path) -> None:
    shutil.copytree(job / "cache", tmp_path / "cache")
    path = tmp_path / "cache" / "sherl" / "analysis" / "train" / "analysis.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "store_digest": "0" * 64}))
    _, page, _ = reported(tmp_path, "--store", tmp_path / "cache")
    assert "analyze again" in page.text


def test_what_cannot_be_is_refused(job: Path, tmp_path: Path) -> None:
    assert "--run" in call("report", code=2)
    assert "holds no run" in call("report", "--run", tmp_path, code=2)
    shutil.copytree(job / "run0", tmp_path / "other")
    facts = json.loads((tmp_path / "other" / "run.json").read_text())
    (tmp_path / "other" / "run.json").write_text(json.dumps({**facts, "store_fingerprint": "0" * 64}))
    assert "another store" in call("report", "--run", tmp_path / "other", "--store", job / "cache", code=4)


def hostile_run(job: Path, folder: Path) -> Path:
    """A run whose names, labels and ids are markup."""
    shutil.copytree(job / "run0", folder)
    facts = json.loads((folder / "run.json").read_text())
    facts["producer"]["task"].update(labels=[HOSTILE, "b"], name=HOSTILE)
    facts["producer"]["data"]["name"] = f"https://user:CANARY@host/{HOSTILE}"
    facts["producer"]["model"]["name"] = HOSTILE
    (folder / "run.json").write_text(json.dumps(facts))
    columns = {"source_id": [HOSTILE, "2"], "label": [0.0, 1.0], "prediction": [1.0, 1.0]}
    pq.write_table(pa.table(columns), folder / "predictions.parquet")
    return folder


def test_text_of_others_stays_text_and_secrets_stay_out(job: Path, tmp_path: Path) -> None:
    hostile = hostile_run(job, tmp_path / "x<b>y")
    for words in (("--run", hostile), ("--run", hostile, "--run", job / "run1")):
        _, page, text = reported(tmp_path, *words)
        asks_for_nothing(page, text)
        assert "CANARY" not in text
        assert "<b>" not in text
    _, page, _ = reported(tmp_path, "--run", hostile)
    assert "<script>alert(1)</script>" in page.text
    assert "{{7*7}}" in page.text


def test_a_table_or_note_is_escaped_wherever_it_stands() -> None:
    table = Table([HOSTILE], [[HOSTILE]], HOSTILE)
    figure = line_chart([Series(HOSTILE, [(0, 1), (1, 2)]), Series("b", [(0, 1)])], HOSTILE, HOSTILE)
    assert "<script" not in figure + heat_map([HOSTILE], [[0.5]], HOSTILE) + stacked_bars(
        [(HOSTILE, {HOSTILE: 1})], HOSTILE
    )
    page = Page(HOSTILE, HOSTILE, HOSTILE, [Section("a", HOSTILE, [HOSTILE], [], [table], HOSTILE)])
    assert not {tag for tag, _ in Parsed(render(page)).tags} & {"script", "img"}

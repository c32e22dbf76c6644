"""The main job through the command line on tiny models: extract, train, eval, predict; twice; and what it prints."""

import json
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import jsonschema
import pyarrow.parquet as pq
import pytest
from cli import call, start
from reviews_csv import write_csv
from tiny import tiny_bert, tiny_t5

SCHEMAS = json.loads((Path(__file__).parents[2] / "docs" / "json-schemas.json").read_text("utf-8"))["$defs"]
SETTINGS = ("--set", "data.batch_examples=16", "--set", "train.learning_rate=3e-3", "--epochs", 2)


def checked(command: str, result: Any) -> Any:
    jsonschema.validate(result, SCHEMAS[command])
    return result


@pytest.fixture(scope="module", params=["bert", "t5"])
def job(request, tmp_path_factory) -> dict[str, Any]:
    """A store and a trained run of one tiny model; float32, so that live and cached scores are the same numbers."""
    root = tmp_path_factory.mktemp(request.param)
    model = {"bert": tiny_bert, "t5": tiny_t5}[request.param](root / "model")
    data, validation = write_csv(root / "train.csv", 120), write_csv(root / "validation.csv", 50, seed=1)
    extract = ("extract", "--model", model, "--data", data, "--validation", validation, "--store", root / "cache")
    extract = (*extract, "--encoding", "float32")
    train = ("train", "--store", root / "cache", "--run", root / "run", *SETTINGS)
    return {
        "root": root,
        "family": request.param,
        "extract": extract,
        "extracted": checked("extract", call(*extract)),
        "train": train,
        "trained": checked("train", call(*train)),
    }


def test_extract_again_changes_nothing(job) -> None:
    store = job["root"] / "cache"
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*") if path.is_file()}
    again = call(*job["extract"])
    assert again["digest"] == job["extracted"]["digest"]
    assert {path: path.stat().st_mtime_ns for path in store.rglob("*") if path.is_file()} == before


def test_train_again_prints_the_finished_run(job) -> None:
    assert call(*job["train"]) == job["trained"]


def test_a_finished_run_that_was_moved_names_its_new_place(job) -> None:
    moved = job["root"] / "moved"
    shutil.copytree(job["root"] / "run", moved)
    again = call("train", "--store", job["root"] / "cache", "--run", moved, *SETTINGS)
    assert again == {**job["trained"], "run": str(moved)}


def test_restart_is_a_run_beside_with_the_same_weights(job) -> None:
    again = call(*job["train"], "--restart")
    assert again["run"] != job["trained"]["run"]
    assert again["weights_digest"] == job["trained"]["weights_digest"]


def test_another_seed_is_another_run(job) -> None:
    other = call("train", "--store", job["root"] / "cache", "--run", job["root"] / "seed1", *SETTINGS, "--seed", 1)
    assert other["weights_digest"] != job["trained"]["weights_digest"]


@pytest.mark.parametrize("size", ["data.batch_examples=16", "data.batch_tokens=300"])
def test_budget_and_threads_change_no_weight_and_the_time_waited_is_written(job, size: str) -> None:
    train = ("train", "--store", job["root"] / "cache", *SETTINGS[2:], "--set", size, "--set", "data.window=1")
    small = {"bert": "600KiB", "t5": "1000KiB"}[job["family"]]
    found = {}
    for name, knobs in {"memory": (1, "1GiB"), "blocks": (2, small), "alone": (0, small)}.items():
        run = job["root"] / f"{name}-{size}"
        settings = ("--set", f"data.threads={knobs[0]}", "--set", f"data.read_budget={knobs[1]}")
        found[name] = call(*train, *settings, "--run", run)["weights_digest"]
        steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
        assert all(0 <= step["seconds"]["stall"] <= step["seconds"]["read"] for step in steps if "loss" in step)
    assert len(set(found.values())) == 1


def test_live_score_equals_the_score_from_the_store(job) -> None:
    """eval runs the whole live model on raw text; training scored the cached states: the same answers."""
    live = checked("eval", call("eval", "--run", job["root"] / "run"))
    cached = live["label_scoring"] if job["family"] == "t5" else live["value"]
    assert cached == pytest.approx(job["trained"]["best"], abs=1e-12)
    assert live["examples"] == 50


def test_predictions_of_the_run_are_those_of_the_live_model(job) -> None:
    root = job["root"]
    table = pq.read_table(root / "run" / "predictions.parquet").to_pydict()
    rows = [line.rsplit(",", 1)[0] for line in (root / "validation.csv").read_text().splitlines()[1:]]
    texts = [rows[int(number)] for number in table["source_id"]]
    answers = checked("predict", call("predict", "--run", root / "run", *texts))
    if job["family"] == "bert":
        labels = ["negative", "positive"]
        assert [labels.index(answer["label"]) for answer in answers] == table["prediction"]
    assert [answer["text"] for answer in answers] == texts


def test_predict_reads_files_without_labels(job, tmp_path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text\nthe film is good\nthe plot is dull\n")
    call_out = tmp_path / "answers.jsonl"
    from sherl_cache.pipeline.cli import main

    run = str(job["root"] / "run")
    assert main(["predict", "--run", run, "--data", str(path), "--out", str(call_out)]) == 0
    answers = [json.loads(line) for line in call_out.read_text().splitlines()]
    assert [answer["text"] for answer in answers] == ["the film is good", "the plot is dull"]
    checked("predict", answers)


def test_metrics_have_a_line_a_step_and_the_parts_of_its_time(job) -> None:
    lines = [json.loads(line) for line in (job["root"] / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, job["trained"]["steps"] + 1))
    for line in steps:
        assert {"read", "fusion", "late", "head", "backward", "optimizer"} <= set(line["seconds"])
    assert len([line for line in lines if "validation" in line]) == 2


@pytest.mark.parametrize("recipe", ["probe", "last", "sherl-paper", "lora"])
def test_every_shipped_recipe_trains_from_the_same_store(job, recipe) -> None:
    root = job["root"]
    result = checked(
        "train", call("train", "--store", root / "cache", "--config", recipe, "--run", root / recipe, *SETTINGS)
    )
    assert result["trained_parameters"] > 0
    assert ("logistic_regression" in result) == (recipe == "probe")
    live = call("eval", "--run", root / recipe)
    cached = live.get("label_scoring", live["value"])
    assert cached == pytest.approx(result["best"], abs=1e-12)


def test_info_verify_plan_methods_and_recipes_print_their_schema(job) -> None:
    store = job["root"] / "cache"
    info = checked("info", call("info", "--store", store))
    assert info["complete"]
    assert info["digest"] == job["extracted"]["digest"]
    assert checked("verify", call("verify", "--store", store, "--deep"))["findings"] == []
    bill = checked("plan", call("plan", *job["extract"][1:-4], "--store", store, "--encoding", "float32"))
    assert bill["bytes"] == pytest.approx(job["extracted"]["bytes"], rel=0.05)
    assert {"sherl", "last", "weighted_sum"} <= {
        item["name"] for item in checked("methods", call("methods"))["methods"]
    }
    assert checked("recipe show", call("recipe", "show", "probe"))["name"] == "probe"
    jsonschema.Draft202012Validator.check_schema(checked("recipe schema", call("recipe", "schema")))


def test_bfloat16_scores_stay_near_float32(job, tmp_path) -> None:
    words = list(job["extract"])
    words[words.index("--store") + 1] = tmp_path / "cache"
    words[words.index("float32")] = "bfloat16"
    call(*words)
    result = call("train", "--store", tmp_path / "cache", "--run", tmp_path / "run", *SETTINGS)
    assert result["steps"] == job["trained"]["steps"]
    first, second = (first_epoch_loss(folder) for folder in (tmp_path / "run", job["root"] / "run"))
    assert first == pytest.approx(second, rel=0.05)


def first_epoch_loss(run: Path) -> float:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line and line["epoch"] == 0]
    return sum(losses) / len(losses)


def test_scores_as_labels_are_an_open_set_for_t5_and_a_regression_for_bert(job, tmp_path) -> None:
    """A column of fractions: T5 learns to write the number and is validated by its loss, BERT has one output."""
    for name, rows, seed in (("train", 60, 0), ("validation", 20, 1)):
        lines = write_csv(tmp_path / "words.csv", rows, seed).read_text().splitlines()[1:]
        scored = [f"{line.rsplit(',', 1)[0]},{number % 50 / 10}" for number, line in enumerate(lines)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["text,label", *scored]) + "\n")
    files = ("--data", tmp_path / "train.csv", "--validation", tmp_path / "validation.csv")
    call("extract", "--model", job["root"] / "model", *files, "--store", tmp_path / "cache")
    trained = checked("train", call("train", "--store", tmp_path / "cache", "--run", tmp_path / "run", *SETTINGS))
    live = checked("eval", call("eval", "--run", tmp_path / "run"))
    assert trained["metric"] == {"t5": "loss", "bert": "pearson_spearman"}[job["family"]]
    assert live["metric"] == "pearson_spearman"
    answer = call("predict", "--run", tmp_path / "run", "the film is good")[0]
    assert isinstance(answer["label"], float)
    if job["family"] == "bert":  # the probe's head is the one that fits, too
        probe = ("train", "--store", tmp_path / "cache", "--config", "probe", "--run", tmp_path / "probe", *SETTINGS)
        assert checked("train", call(*probe))["metric"] == "pearson_spearman"


def test_ctrl_c_ends_with_130_and_the_same_command_goes_on(job, tmp_path) -> None:
    store, epochs = job["root"] / "cache", 30
    command = ("train", "--store", store, "--run", tmp_path / "run", "--epochs", epochs, *SETTINGS[:-2])
    # Ctrl-C between the two halves of an open() leaves a file that the interpreter itself warns of
    process = start(*command, warnings="error,ignore::ResourceWarning")
    while process.poll() is None and not (tmp_path / "run" / "metrics.jsonl").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == 130, said
    assert "the same command goes on" in said
    assert "Traceback" not in said
    assert call(*command)["steps"] == epochs * job["trained"]["steps"] // 2

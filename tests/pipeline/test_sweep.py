"""Sweeps: runs trained side by side from one read are, to the last bit, the runs that `train` makes alone."""

import json
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from cli import call, run, start
from reviews_csv import write_csv
from tiny import tiny_bert, tiny_t5

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "json-schemas.json").read_text("utf-8"))["$defs"]["sweep"]
COMMON = ("data.batch_examples=16", "train.epochs=2", "data.window=1", "train.checkpoint_steps=2")

RECIPES = {
    "all": "name: all\ndropout: {features: 0.1, late: true, head: 0.1}\n",
    "some": "name: some\nfusion: {name: weighted_sum, taps: 'encoder:0,2'}\ntrain: {learning_rate: 1e-2, patience: 1}\n",
    "probe": "name: probe\nfusion: {name: last}\nlate: {blocks: 0, mode: frozen}\nhead: {pooling: mean}\n",
    "split": "name: split\nfusion: {name: last}\nlate: {mode: full}\ntrain: {micro_batch_examples: 5}\n",
}


only_bert = pytest.mark.parametrize("place", ["bert"], indirect=True)


def settings(*more: str) -> list[str]:
    return [word for item in (*COMMON, *more) for word in ("--set", item)]


@pytest.fixture(scope="module", params=["bert", "t5"])
def place(request, tmp_path_factory) -> Path:
    root: Path = tmp_path_factory.mktemp(request.param)
    model = {"bert": tiny_bert, "t5": tiny_t5}[request.param](root / "model")
    data, validation = write_csv(root / "train.csv", 90), write_csv(root / "validation.csv", 30, seed=1)
    small = ("--encoding", "float32", "--set", "extract.chunk_bytes=4KiB")
    call("extract", "--model", model, "--data", data, "--validation", validation, "--store", root / "cache", *small)
    for name, text in RECIPES.items():
        (root / f"{name}.yaml").write_text(text)
    return root


def sweep(place: Path, runs: Path, *words: object, code: int = 0) -> Any:
    table = call("sweep", *words, "--store", place / "cache", "--runs", runs, code=code)
    if code == 0:
        jsonschema.validate(table, SCHEMA)
        assert json.loads(Path(table["sweep"]).read_text("utf-8")) == table
    return table


def told(folder: Path) -> list[dict[str, Any]]:
    """What a run logged, but for times and memory."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    return [
        {key: value for key, value in line.items() if key not in ("seconds", "memory", "read_buffers")}
        for line in lines
    ]


@pytest.mark.parametrize(("place", "budget"), [("bert", "1GiB"), ("bert", "1MiB"), ("t5", "1MiB")], indirect=["place"])
def test_a_sweep_of_runs_equals_their_lone_runs(place: Path, tmp_path: Path, budget: str) -> None:
    """Other fusions, taps, depths, heads, dropout and micro-batches; in memory, and block by block."""
    recipes = [place / f"{name}.yaml" for name in RECIPES]
    knobs = settings(f"data.read_budget={budget}")
    table = sweep(place, tmp_path / "runs", *recipes, *knobs)
    assert [Path(row["recipe"]).stem for row in table["runs"]] == list(RECIPES)
    for recipe, row in zip(recipes, table["runs"], strict=True):
        lone = call("train", "--store", place / "cache", "--config", recipe, "--run", tmp_path / recipe.stem, *knobs)
        together = json.loads((Path(row["run"]) / "result.json").read_text("utf-8"))
        timed = ("run", "seconds", "peak_memory_bytes")
        assert {k: v for k, v in together.items() if k not in timed} == {
            k: v for k, v in lone.items() if k not in timed
        }
        assert row["weights_digest"] == lone["weights_digest"]
        assert told(Path(row["run"])) == told(tmp_path / recipe.stem)
        again = call("train", "--store", place / "cache", "--config", recipe, "--run", row["run"], *knobs)
        assert again == {**together, "run": row["run"]}  # `train` finds the run of a sweep finished


@only_bert
def test_seeds_and_a_grid_make_every_combination_and_only_their_keys_differ(place: Path, tmp_path: Path) -> None:
    grid = ("--grid", "train.learning_rate=1e-3,3e-3", "--seeds", "0,1")
    table = sweep(place, tmp_path, place / "probe.yaml", *settings("train.epochs=1"), *grid)
    found = [(row["changed"]["train.learning_rate"], row["changed"]["seed"], row["seed"]) for row in table["runs"]]
    assert found == [
        (1e-3, 0, 0),
        (1e-3, 1, 1),
        (3e-3, 0, 0),
        (3e-3, 1, 1),
    ]
    asked = json.loads((Path(table["runs"][2]["run"]) / "run.json").read_text("utf-8"))["recipe_identity"]["train"]
    assert asked["learning_rate"] == 3e-3
    assert len({row["weights_digest"] for row in table["runs"]}) == 4


@only_bert
def test_more_runs_read_no_more_bytes(place: Path, tmp_path: Path) -> None:
    words = (place / "all.yaml", *settings("data.read_budget=1MiB", "train.epochs=2"))
    one = sweep(place, tmp_path / "one", *words)
    three = sweep(place, tmp_path / "three", *words, place / "split.yaml", place / "some.yaml")
    assert three["read_bytes"] == one["read_bytes"] > 0


@only_bert
def test_one_that_stops_early_does_not_stop_the_others(place: Path, tmp_path: Path) -> None:
    grid = ("--grid", "train.learning_rate=1e-12,1e-3", "--set", "train.patience=1", "--set", "fusion.name=last")
    table = sweep(place, tmp_path, place / "probe.yaml", *settings("train.epochs=3"), *grid)
    steps = [row["steps"] for row in table["runs"]]
    assert steps == [12, 18]  # a rate that moves nothing: the second of three epochs is no better than the first
    results = [json.loads((Path(row["run"]) / "result.json").read_text("utf-8")) for row in table["runs"]]
    assert len(results[0]["history"]) == 2
    lone = call(
        "train",
        *("--store", place / "cache", "--config", place / "probe.yaml", "--run", tmp_path / "lone"),
        *settings("train.epochs=3"),
        *("--set", "train.learning_rate=1e-3", "--set", "train.patience=1"),
    )
    assert results[1]["history"] == lone["history"]


def test_runs_at_different_places_end_as_if_never_interrupted(place: Path, tmp_path: Path) -> None:
    words = [place / f"{name}.yaml" for name in ("all", "probe", "split")] + settings()
    whole = sweep(place, tmp_path / "whole", *words)
    again = tmp_path / "again"
    shutil.copytree(tmp_path / "whole", again)
    for number, row in enumerate(whole["runs"][:2]):  # the first stands one checkpoint behind, the second at its end
        folder = again / Path(row["run"]).name
        (folder / "result.json").unlink()
        for checkpoint in sorted((folder / "checkpoints").iterdir())[1 - number + 1 :]:
            shutil.rmtree(checkpoint)
        if number == 0:
            shutil.rmtree(sorted((folder / "checkpoints").iterdir())[-1])
    table = sweep(place, again, *words)
    for row, other in zip(table["runs"], whole["runs"], strict=True):
        assert row["weights_digest"] == other["weights_digest"]
        assert told(Path(row["run"])) == told(Path(other["run"]))


@only_bert
def test_a_finished_sweep_prints_its_table_and_reads_nothing(place: Path, tmp_path: Path) -> None:
    words = (place / "probe.yaml", *settings("train.epochs=1"), "--seeds", "0,1")
    first = sweep(place, tmp_path, *words)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert sweep(place, tmp_path, *words) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")} == before


@only_bert
def test_a_run_whose_loss_is_no_number_stops_alone_and_is_named(place: Path, tmp_path: Path) -> None:
    words = (place / "all.yaml", *settings("train.epochs=1"), "--grid", "train.learning_rate=1e-3,1e30")
    said = sweep(place, tmp_path, *words, code=3)
    assert "became" in said
    table = json.loads(next(tmp_path.glob("sweep-*.json")).read_text("utf-8"))
    jsonschema.validate(table, SCHEMA)
    assert [row["error"] is None for row in table["runs"]] == [True, False]
    assert table["runs"][0]["best"] is not None


@only_bert
@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ("data.seed=0,1", "cannot share one read: data.seed is 0 in "),
        ("data.window=1,2", "cannot share one read: data.window is 1 in "),
        ("data.batch_examples=8,16", "cannot share one read: data.batch_examples is 8 in "),
        ("train.epochs=1,2", "cannot share one read: train.epochs is 1 in "),
        ("seed=3,3", "are the same run"),
        ("train.epohs=1,2", "did you mean train.epochs?"),
        ("seed", "give a key and its values"),
        ("data.read_budget=1KiB", "read budget of 1,024 bytes is too small: a window of 1 row groups needs"),
    ],
)
def test_what_one_read_cannot_serve_is_refused_before_there_is_a_folder(
    place: Path, tmp_path: Path, grid: str, message: str
) -> None:
    said = sweep(place, tmp_path / "runs", place / "all.yaml", *settings(), "--grid", grid, code=3)
    assert message in said
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_sweep_killed_at_random_ends_in_the_weights_of_the_unbroken_one(place: Path, tmp_path: Path) -> None:
    """Six kills; runs then stand at different places, since each checkpoint is written by itself."""
    words = [
        "sweep",
        *(place / f"{name}.yaml" for name in RECIPES),
        "--store",
        place / "cache",
        *settings("train.epochs=6"),
    ]
    whole = run(*words, "--runs", tmp_path / "whole")
    random_, runs, kills = random.Random(0), tmp_path / "runs", 0

    def lines() -> int:
        return sum(path.read_bytes().count(b"\n") for path in runs.glob("*/metrics.jsonl"))

    while kills < 6:
        goal = lines() + random_.randint(2, 20)
        process = start(*words, "--runs", runs)
        while process.poll() is None and lines() < goal:
            time.sleep(0.001)
        time.sleep(random_.uniform(0, 0.02))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if process.returncode == 0:
            break
        kills += 1
    assert kills >= 3
    table = run(*words, "--runs", runs)
    for row, other in zip(table["runs"], whole["runs"], strict=True):
        assert row["weights_digest"] == other["weights_digest"]
        assert told(Path(row["run"])) == told(Path(other["run"]))

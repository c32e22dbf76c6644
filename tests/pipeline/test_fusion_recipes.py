"""The shipped recipes whose fusion ends at the head, through the command line on tiny models."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from cli import call
from reviews_csv import write_csv
from safetensors.torch import load_file
from tiny import tiny_bert, tiny_t5
from tiny_pictures import tiny_vit, write_class_folders

SETTINGS = ("--set", "data.batch_examples=16", "--epochs", 1)
RECIPES = ("unipt", "ladder", "res-tuning", "vqt", "side", "head2toe")
TINY: dict[str, tuple[str, ...]] = {
    "ladder": ("--set", "fusion.reduction=2", "--set", "fusion.fisher_examples=8"),
    "head2toe": ("--set", "fusion.steps=50"),
}


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A store of each family with all taps and all weights; float32, so that live and cached scores are the same."""
    root = tmp_path_factory.mktemp("stores")
    data, validation = write_csv(root / "train.csv", 80), write_csv(root / "validation.csv", 40, seed=1)
    found = {}
    for family, make, late in (("bert", tiny_bert, 4), ("t5", tiny_t5, 3)):
        model, store = make(root / f"{family}-model"), root / family
        words = ("--model", model, "--data", data, "--validation", validation, "--store", store)
        call("extract", *words, "--encoding", "float32", "--late", late, "--taps", "every:1")
        found[family] = store
    return found


def check(store: Path, run: Path, recipe: str) -> dict[str, Any]:
    words = ("train", "--store", store, "--run", run, "--config", recipe, *SETTINGS, *TINY.get(recipe, ()))
    trained: dict[str, Any] = call(*words)
    scored = call("eval", "--run", run)
    value = scored.get("label_scoring", scored["value"])
    assert value == pytest.approx(trained["best"], abs=1e-9)
    return trained


FAST = ("ladder", "vqt", "head2toe")


@pytest.mark.parametrize(
    "recipe", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in RECIPES if name not in FAST)]
)
def test_live_and_cached_scores_of_a_run_are_the_same(stores: dict[str, Path], tmp_path: Path, recipe: str) -> None:
    """Oracle: the score of the live model on raw text."""
    check(stores["bert"], tmp_path / "run", recipe)


@pytest.mark.parametrize(
    "recipe", ["ladder", *(pytest.param(name, marks=pytest.mark.slow) for name in RECIPES if name != "ladder")]
)
def test_live_and_cached_scores_of_an_encoder_decoder_are_the_same(
    stores: dict[str, Path], tmp_path: Path, recipe: str
) -> None:
    check(stores["t5"], tmp_path / "run", recipe)


def test_what_a_fusion_prepared_is_kept_and_needs_no_model_again(stores: dict[str, Path], tmp_path: Path) -> None:
    """A run that died before its first checkpoint goes on from the same values, though the model is gone."""
    check(stores["bert"], tmp_path / "run", "ladder")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["prepared"]["seconds"] > 0
    expected = load_file(tmp_path / "run" / "best.safetensors")
    shutil.copytree(tmp_path / "run", tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoints")
    for name in ("result.json", "best.safetensors"):
        (tmp_path / "again" / name).unlink()
    model, away = stores["bert"].parent / "bert-model", tmp_path / "away"
    model.rename(away)
    try:
        words = (
            "--store",
            stores["bert"],
            "--run",
            tmp_path / "again",
            "--config",
            "ladder",
            *SETTINGS,
            *TINY["ladder"],
        )
        call("train", *words)
    finally:
        away.rename(model)
    found = load_file(tmp_path / "again" / "best.safetensors")
    assert found.keys() == expected.keys()
    assert all(found[name].equal(expected[name]) for name in expected)
    (tmp_path / "again" / "result.json").unlink()
    shutil.rmtree(tmp_path / "again" / "checkpoints")
    damaged = tmp_path / "again" / "first_values.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:100])
    assert "first_values.safetensors is damaged" in call("train", *words, code=5)


def test_late_blocks_after_a_fusion_that_ends_at_the_head_are_refused_by_key(
    stores: dict[str, Path], tmp_path: Path
) -> None:
    words = ("--store", stores["bert"], "--run", tmp_path / "run", "--config", "unipt", "--set", "late.blocks=1")
    assert "fusion.name: unipt ends at the head; set late.blocks: 0" in call("train", *words, code=3)
    assert not (tmp_path / "run").exists()


def test_more_weights_than_there_are_layers_are_refused(stores: dict[str, Path], tmp_path: Path) -> None:
    root = stores["bert"].parent
    words = ("--model", root / "bert-model", "--data", root / "train.csv", "--store", tmp_path / "cache", "--late", 5)
    assert "weights of 5 layers: the encoder of this bert model has 4" in call("extract", *words, code=3)


def test_a_sweep_prepares_each_run_as_its_lone_run_does(stores: dict[str, Path], tmp_path: Path) -> None:
    """Oracle: the weights of the lone runs."""
    words = ("--store", stores["bert"], *SETTINGS)
    tiny = ("--set", "fusion.steps=50", "--set", "fusion.keep=0.2")
    swept = call("sweep", "head2toe", *words, *tiny, "--seeds", "0,1", "--runs", tmp_path / "runs")
    for row, seed in zip(swept["runs"], (0, 1), strict=True):
        run = tmp_path / f"lone-{seed}"
        lone = call("train", *words, *tiny, "--run", run, "--config", "head2toe", "--set", f"seed={seed}")
        assert row["weights_digest"] == lone["weights_digest"]
        kept = load_file(run / "best.safetensors")["fusion.blocks.encoder.kept"]
        assert kept.equal(load_file(Path(row["run"]) / "best.safetensors")["fusion.blocks.encoder.kept"])


def test_the_log_of_sherl_says_how_much_each_tap_weighs(stores: dict[str, Path], tmp_path: Path) -> None:
    call("train", "--store", stores["t5"], "--run", tmp_path / "run", *SETTINGS)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    weights = [line["layer_weights"] for line in lines if "loss" in line]
    assert {stream: len(values) for stream, values in weights[0].items()} == {"encoder": 3, "decoder": 2}
    assert all(0 <= value <= 1 for step in weights for values in step.values() for value in values)


def test_fusions_that_end_at_the_head_serve_pictures(tmp_path: Path) -> None:
    """Oracle: the live model on the picture files. Squared gradients need stored token ids, which pictures lack."""
    model = tiny_vit(tmp_path / "model")
    for split, count in (("train", 12), ("validation", 6)):
        write_class_folders(tmp_path / "data" / split, {"a": count, "b": count}, seed=count)
    store = tmp_path / "cache"
    call(
        "extract", "--model", model, "--data", tmp_path / "data", "--store", store, "--encoding", "float32", "--late", 3
    )
    for recipe in ("vqt", "unipt"):
        check(store, tmp_path / recipe, recipe)
    words = ("train", "--store", store, "--run", tmp_path / "ladder", "--config", "ladder", *TINY["ladder"])
    assert "fusion.init: the pretrained model is run on stored token ids" in call(*words, code=3)

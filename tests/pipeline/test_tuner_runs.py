"""Tuners through the command line: what training scored from the store is what the live model scores on raw text."""

from pathlib import Path

import pytest
from cli import call
from reviews_csv import write_csv
from tiny import tiny_t5

from sherl_cache.stages import plugins

SETTINGS = ("--set", "late.mode=null", "--set", "data.batch_examples=16", "--set", "train.learning_rate=3e-2")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("t5")
    data, validation = write_csv(root / "train.csv", 80), write_csv(root / "validation.csv", 40, seed=1)
    given = ("--model", tiny_t5(root / "model"), "--data", data, "--validation", validation)
    call("extract", *given, "--store", root / "cache", "--encoding", "float32", "--late", 2)
    return root / "cache"


@pytest.mark.slow
@pytest.mark.parametrize("name", plugins.names("tuner"))
def test_a_run_with_every_tuner_scores_live_what_it_scored_from_the_store(
    name: str, store: Path, tmp_path: Path
) -> None:
    chosen = ("--config", "last", "--run", tmp_path / "run", "--set", f"tuner.name={name}", *SETTINGS)
    trained = call("train", "--store", store, *chosen, "--epochs", 2)
    assert trained["trained_parameters"] > 0
    live = call("eval", "--run", tmp_path / "run")
    assert live["label_scoring"] == pytest.approx(trained["best"], abs=1e-12)
    answered = call("predict", "--run", tmp_path / "run", "a film that is very good")
    assert len(answered) == 1


def test_a_tuner_over_layers_that_train_is_refused_before_anything_is_written(store: Path, tmp_path: Path) -> None:
    chosen = ("--config", "sherl", "--run", tmp_path / "run", "--set", "late.mode=full", "--set", "tuner.name=lora")
    said = call("train", "--store", store, *chosen, code=3)
    assert "late.mode: full trains the late layers themselves, on which lora wants frozen ones" in said
    said = call(
        "train", "--store", store, *chosen[:-1], "tuner={name: lora, rnak: 3}", "--set", "late.mode=null", code=3
    )
    assert "tuner.rnak: unknown option of lora (did you mean rank?)" in said
    assert not (tmp_path / "run").exists()

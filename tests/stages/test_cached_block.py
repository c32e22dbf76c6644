"""A tuned first late block that is read from the store, against the same block run."""

from pathlib import Path
from typing import Any

import pytest
import torch
from cli import call
from live_oracle import redraw
from model_cases import cached, loaded_model, ragged_batch, stage_two_of
from reviews_csv import write_csv
from tiny import tiny_bert
from torch import Tensor
from tuner_oracle import counting

from sherl_cache.pipeline.recipe import load_recipe
from sherl_cache.pipeline.training import Training
from sherl_cache.stages.build import StageTwoRecipe
from sherl_cache.stages.cached_block import read_first_block
from sherl_cache.stages.model import StageTwo
from sherl_cache.storage import Store

DEPTHS = {"bert": ("encoder", 4), "t5": ("decoder", 3)}


def make(family: str, **recipe: Any) -> StageTwo:
    loaded = loaded_model(family, "float64")
    model = stage_two_of(loaded, StageTwoRecipe(**{"fusion": "last", "tuner": "u_adapter", **recipe}), torch.float64)
    redraw(model, seed=6)
    return model.eval()


def output_and_gradients(family: str, model: StageTwo) -> tuple[Tensor, dict[str, Tensor]]:
    output = model(cached(loaded_model(family, "float64"), model, [ragged_batch(family)]))
    output.square().sum().backward()
    return output.detach(), {name: value.grad for name, value in model.trained_parameters().items()}


@pytest.mark.parametrize("family", ["bert", "t5"])
@pytest.mark.parametrize("late", [1, 2])
@pytest.mark.parametrize(
    ("tuner", "options"),
    [
        ("u_adapter", {}),
        ("u_adapter", {"input": "post"}),
        ("u_prefix", {"ops": ["block"]}),
        ("u_prompt", {"ops": ["block"]}),
    ],
)
def test_a_block_that_is_read_never_runs_and_gives_what_the_block_that_runs_gives(
    family: str, late: int, tuner: str, options: dict[str, Any]
) -> None:
    stream, depth = DEPTHS[family]
    reading, running = (make(family, late=late, tuner=tuner, tuner_options=options) for _ in range(2))
    first = depth - late
    blocks = [model.late.stream(stream).layers[first] for model in (reading, running)]
    assert read_first_block(reading, {stream: range(depth + 1)})
    assert reading.reads[stream] == (first, first + 1)
    with counting(blocks[0]) as ours, counting(blocks[1]) as others:
        found, gradients = output_and_gradients(family, reading)
        expected, wanted = output_and_gradients(family, running)
        assert ours() == 0
        assert others() > 0
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    assert gradients.keys() == wanted.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-9, atol=1e-9, msg=name)
    with reading.without_tuner(), running.without_tuner():
        taps = [cached(loaded_model(family, "float64"), model, [ragged_batch(family)]) for model in (reading, running)]
        torch.testing.assert_close(reading(taps[0]), running(taps[1]), rtol=0, atol=1e-10)
    kept = sum(value.numel() for value in reading.late.parameters())
    assert kept <= sum(value.numel() for value in running.late.parameters()) - sum(
        value.numel() for value in blocks[0].parameters()
    )


@pytest.mark.parametrize(
    ("recipe", "stored"),
    [
        ({}, range(4)),  # the tap is not there
        ({"fusion": "sherl"}, range(5)),
        ({"features_dropout": 0.1}, range(5)),
        ({"late_dropout": True}, range(5)),
        ({"tuner": "lora"}, range(5)),
        ({"tuner": "prompt"}, range(5)),
        ({"tuner": "u_prefix"}, range(5)),
        ({"tuner": None}, range(5)),
        ({"tuner_options": {"ops": ["block", "ffn"]}}, range(5)),
        ({"late": 2, "tuner_options": {"layers": [3]}}, range(5)),
    ],
)
def test_a_block_runs_where_its_output_is_no_tap_of_the_store(recipe: dict[str, Any], stored: range) -> None:
    model = make("bert", **recipe)
    reads = dict(model.reads)
    assert not read_first_block(model, {"encoder": stored})
    assert model.reads == reads
    assert model.cached_block is None


@pytest.mark.slow
def test_training_reads_the_block_and_the_live_model_answers_as_the_store_does(tmp_path: Path) -> None:
    """Oracle: eval on raw text, which runs every block."""
    data, validation = write_csv(tmp_path / "train.csv", 60), write_csv(tmp_path / "validation.csv", 40, seed=1)
    model, store = tiny_bert(tmp_path / "model"), tmp_path / "cache"
    given = ("--model", model, "--data", data, "--validation", validation, "--store", store, "--encoding", "float32")
    call("extract", *given)
    settings = ("tuner={name: u_adapter}", "late.mode=null", "train.learning_rate=3e-2", "train.epochs=2")
    prepared = Training.of(load_recipe("last", settings), Store.open(store))
    assert prepared.model.cached_block is not None
    assert set(prepared.batches.stream.taps["encoder"]) == {3, 4}
    chosen = [word for setting in settings for word in ("--set", setting)]
    trained = call("train", "--store", store, "--config", "last", "--run", tmp_path / "run", *chosen)
    assert call("eval", "--run", tmp_path / "run")["value"] == pytest.approx(trained["best"], abs=1e-12)

"""Every encoding through the command line: extract, train, eval; calibration kept by the store; what it costs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli import call
from reviews_csv import write_csv
from tiny import tiny_bert, tiny_t5

from sherl_cache.stages import calibrate as calibrate_stage
from sherl_cache.stages import prepare as prepare_stage
from sherl_cache.storage import ReadBuffers, Store, decode

SETTINGS = ("--set", "data.batch_examples=16", "--set", "train.learning_rate=3e-3", "--epochs", 2)


@pytest.fixture(scope="module", params=["bert", "t5"])
def job(request, tmp_path_factory) -> dict[str, Any]:
    """A tiny model, its data, and the store of it in float32."""
    root = tmp_path_factory.mktemp(request.param)
    model = {"bert": tiny_bert, "t5": tiny_t5}[request.param](root / "model")
    data, validation = write_csv(root / "train.csv", 120), write_csv(root / "validation.csv", 50, seed=1)
    words = ("--model", model, "--data", data, "--validation", validation)
    call("extract", *words, "--store", root / "float32", "--encoding", "float32")
    return {"root": root, "family": request.param, "words": words}


def rows_of(root: Path, split: str, stream: str, tap: int) -> np.ndarray:
    """Every row of a tap as values, without fill."""
    store = Store.open(root)
    calibration = store.calibration(split, stream)
    channels = None if calibration is None else calibration.tap(tap)
    chunks = [store.chunk(split, stream, tap, group) for group in range(store.split(split).groups)]
    values = decode(np.concatenate(chunks), store.encoding, channels)
    return values[~np.isnan(values[:, 0])]


BOUND = {"int8+zstd:1": 0.03, "float16+bitround:6": 0.01, "bfloat16+zstd:2": 0.005}
"""Largest relative error of a tap: rows of 16 and 32 channels give int8 no outlier channel to spend."""


@pytest.mark.parametrize("encoding", sorted(BOUND))
def test_extract_train_and_eval_stay_near_the_live_model(job, tmp_path, encoding) -> None:
    call("extract", *job["words"], "--store", tmp_path / "cache", "--encoding", encoding)
    assert call("info", "--store", tmp_path / "cache")["encoding"] == encoding
    assert call("verify", "--store", tmp_path / "cache", "--deep")["findings"] == []
    store = Store.open(tmp_path / "cache")
    for stream, taps in store.split("validation").streams.items():
        for tap in taps.taps:
            exact = rows_of(job["root"] / "float32", "validation", stream, tap)
            found = rows_of(tmp_path / "cache", "validation", stream, tap)
            assert np.linalg.norm(found - exact) <= BOUND[encoding] * np.linalg.norm(exact)
    trained = call("train", "--store", tmp_path / "cache", "--run", tmp_path / "run", *SETTINGS)
    live = call("eval", "--run", tmp_path / "run")
    cached = live["label_scoring"] if job["family"] == "t5" else live["value"]
    assert cached == pytest.approx(trained["best"], abs=0.041)  # two of 50 answers may lie that near to the border


def test_an_untrained_model_answers_from_an_int8_store_as_from_float32(job, tmp_path) -> None:
    """The logits of the very same weights, from both stores: near each other, batch by batch."""
    from sherl_cache.pipeline.reading import store_batches
    from sherl_cache.pipeline.recipe import load_recipe
    from sherl_cache.pipeline.training import stage_two

    call("extract", *job["words"], "--store", tmp_path / "cache", "--encoding", "int8")
    logits = []
    for root in (job["root"] / "float32", tmp_path / "cache"):
        store = Store.open(root)
        recipe = load_recipe(None, ("data.window=1000",))
        model = stage_two(recipe, store.producer, lambda name, store=store: store.file(f"weights/{name}")).eval()
        batches = store_batches(recipe, store, model, "validation", torch.device("cpu"), ReadBuffers(1 << 28))
        with torch.no_grad():
            parts = [
                (examples, model(batch.inputs, batch.select, batch.segments)) for examples, batch in batches.indexed()
            ]
        logits.append(torch.cat([output for _, output in parts]))
    exact, found = logits
    assert found.shape == exact.shape
    assert float((found - exact).norm()) <= 0.05 * float(exact.norm())


def test_going_on_takes_the_calibration_from_the_store(job, tmp_path, monkeypatch) -> None:
    """A machine that would fit another calibration still finds its store, and writes the same bytes."""
    words = ("extract", *job["words"], "--store", tmp_path / "cache", "--encoding", "int8")
    first = call(*words)
    for receipt in (tmp_path / "cache" / "sherl" / "receipts").glob("train-*"):
        receipt.unlink()
    for shard in (tmp_path / "cache" / "train").rglob("c/0/0"):
        shard.unlink()
    monkeypatch.setattr(calibrate_stage, "SAMPLE_TOKENS", 50)
    with monkeypatch.context() as known:
        known.setattr(prepare_stage, "survey", None)  # nothing is looked at again
        assert call(*words)["digest"] == first["digest"]
    elsewhere = call(*words[:-3], tmp_path / "other", "--encoding", "int8")
    assert elsewhere["digest"] != first["digest"]


def test_who_loses_the_race_to_begin_a_store_takes_the_winners_calibration(job, tmp_path, monkeypatch) -> None:
    """The plan appears after this process made its own calibration and before it publishes."""
    from sherl_cache.pipeline import extracting

    words = ("extract", *job["words"], "--store", tmp_path / "cache", "--encoding", "int8")
    real, winner = extracting.create_writer, {}

    def late(root: Path, prepared: Any) -> Any:
        monkeypatch.setattr(extracting, "create_writer", real)
        with monkeypatch.context() as other:
            other.setattr(calibrate_stage, "SAMPLE_TOKENS", 50)
            winner.update(call(*words))
        return real(root, prepared)

    monkeypatch.setattr(extracting, "create_writer", late)
    assert call(*words)["digest"] == winner["digest"]


def test_overflow_of_float16_is_found_before_anything_is_written(tmp_path) -> None:
    model = tiny_t5(tmp_path / "model")
    from safetensors.torch import load_file, save_file

    path = model / "model.safetensors"
    weights = load_file(path)
    for name in ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"):
        if name in weights:
            weights[name] *= 1e6
    save_file(weights, path, metadata={"format": "pt"})
    data = write_csv(tmp_path / "train.csv", 30)
    words = ("extract", "--model", model, "--data", data, "--store", tmp_path / "cache")
    said = call(*words, "--encoding", "float16", code=3)
    assert "encoder/h00" in said
    assert "too large" in said
    assert "--encoding bfloat16" in said
    assert not (tmp_path / "cache").exists()
    call(*words, "--encoding", "int8")  # its channels are measured in their own spread


@pytest.mark.parametrize("encoding", ["int8", "int8+zstd", "float32+bitround:5+zstd"])
def test_the_bill_is_exact_or_says_at_most(tmp_path, encoding) -> None:
    data = write_csv(tmp_path / "train.csv", 300)
    model = tiny_bert(tmp_path / "model", hidden_size=64)
    words = ("--model", model, "--data", data, "--store", tmp_path / "cache", "--encoding", encoding)
    bill = call("plan", *words)
    assert not (tmp_path / "cache").exists()
    call("extract", *words)
    files = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    arrays = sum(path.stat().st_size for path in files if "/c/" in path.as_posix())
    planned = sum(bill["bytes_by"]["taps"].values())
    assert bill["files"] == len(files)
    assert bill["at_most"] == ("zstd" in encoding)
    if bill["at_most"]:
        assert arrays < planned
        assert arrays == pytest.approx(planned * bill["compressed_share"], rel=0.1)
    else:
        assert arrays == planned
        assert bill["bytes"] == pytest.approx(sum(path.stat().st_size for path in files), rel=0.05)


def test_a_wrong_encoding_is_refused_with_the_right_one(tmp_path) -> None:
    said = call("extract", "--model", "x", "--data", "y", "--encoding", "bfloat61", code=3)
    assert "extract.encoding" in said
    assert "did you mean bfloat16" in said

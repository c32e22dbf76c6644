"""The store as a torch data set: the training loop's own batches, and the worked example of docs/ecosystem.md."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from cli import call
from reviews_csv import write_csv
from tiny import tiny_bert, tiny_t5
from torch.utils.data import DataLoader

from sherl_cache.pipeline.recipe import load_recipe
from sherl_cache.pipeline.training import Training
from sherl_cache.stages.steps import TrainBatch
from sherl_cache.stages.torch_dataset import StoreDataset
from sherl_cache.storage import Store
from sherl_cache.storage.errors import DataError, InvalidInput

DOCUMENT = Path(__file__).parents[2] / "docs" / "ecosystem.md"
BATCH = 8


@pytest.fixture(scope="module", params=["bert", "t5"])
def store(request, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp(request.param)
    model = {"bert": tiny_bert, "t5": tiny_t5}[request.param](root / "model")
    data = write_csv(root / "train.csv", 60)
    validation = write_csv(root / "validation.csv", 21, seed=1)
    files = ("--data", data, "--validation", validation, "--encoding", "float32")
    # small chunks, so that an epoch has many row groups to shuffle
    call("extract", "--model", model, *files, "--store", root / "cache", "--set", "extract.chunk_bytes=2KiB")
    return root / "cache"


def training(store: Path, **keys: Any) -> Training:
    flags = {"data.batch_examples": BATCH, "data.window": 2, "train.epochs": 2, **keys}
    return Training.of(load_recipe(None, **flags), Store.open(store))


def of_loop(batch: TrainBatch) -> dict[str, Any]:
    """A batch of the loop in memory of its own."""
    return flat(
        {name: getattr(batch, name) for name in ("inputs", "targets", "select", "segments", "examples", "tokens")}
    )


def flat(batch: Mapping[str, Any]) -> dict[str, Any]:
    targets = batch["targets"]
    found = {"select": batch["select"], "segments": batch["segments"], "examples": batch["examples"]}
    found |= {"tokens": batch["tokens"], "gold": targets.gold, "answer": targets.tokens}
    for name, packed in batch["inputs"].items():
        found |= {f"{name}.taps": packed.taps, f"{name}.lengths": packed.lengths, f"{name}.depths": packed.depths}
    return {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in found.items()}


def same(left: Mapping[str, Any], right: Mapping[str, Any]) -> bool:
    return left.keys() == right.keys() and all(
        torch.equal(value, right[key]) if isinstance(value, torch.Tensor) else value == right[key]
        for key, value in left.items()
    )


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_batches_are_those_of_the_loop_in_every_epoch(store, workers) -> None:
    reference = training(store)
    dataset = StoreDataset.for_model(store, reference.model, batch_examples=BATCH, window=2)
    options: dict[str, Any] = {"multiprocessing_context": "spawn"} if workers else {}
    orders = []
    for epoch in range(2 - workers):
        dataset.set_epoch(epoch)
        found = list(DataLoader(dataset, batch_size=None, num_workers=workers, **options))  # all kept at once
        expected = [of_loop(batch) for batch in reference.batches.epoch(epoch)]
        assert len(found) == len(expected) == len(dataset)
        assert all(same(flat(left), right) for left, right in zip(found, expected, strict=True))
        orders.append(torch.cat([flat(item)["encoder.lengths"] for item in found]))
    assert workers or not torch.equal(*orders), "two epochs of one order would show little"


def test_validation_is_read_as_the_loop_scores_it(store) -> None:
    reference = training(store)
    assert reference.validation is not None
    dataset = StoreDataset.for_model(store, reference.model, split="validation", batch_examples=BATCH, window=2)
    expected = [of_loop(batch) for _, batch in reference.validation.indexed()]
    assert all(same(flat(left), right) for left, right in zip(dataset, expected, strict=True))


def test_ranks_together_read_the_global_batches(store) -> None:
    model = training(store).model
    options = {"batch_examples": BATCH, "window": 2}
    whole = [flat(item) for item in StoreDataset.for_model(store, model, **options)]
    parts = [
        [flat(item) for item in StoreDataset.for_model(store, model, rank=rank, ranks=2, **options)] for rank in (0, 1)
    ]
    for together, left, right in zip(whole, *parts, strict=True):
        joined = torch.cat([left["encoder.taps"], right["encoder.taps"]], dim=1)
        assert torch.equal(together["encoder.taps"], joined)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # torch's own, on a machine of one core
def test_more_workers_than_one_are_refused(store) -> None:
    dataset = StoreDataset.for_model(store, training(store).model, batch_examples=BATCH)
    with pytest.raises(InvalidInput, match="num_workers=2"):
        next(iter(DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context="fork")))


def test_a_split_that_is_not_there_is_refused(store) -> None:
    model = training(store).model
    with pytest.raises(DataError, match="no split 'dev'"):
        len(StoreDataset.for_model(store, model, split="dev", batch_examples=BATCH))


class Losses:
    """A recorder of the loop."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def log(self, record: Mapping[str, Any]) -> None:
        if "loss" in record:
            self.losses.append(record["loss"])

    def checkpoint(self, loop: Any) -> None: ...

    def better(self, loop: Any) -> None: ...


def test_trainer_of_transformers_reaches_the_losses_of_the_loop(store, tmp_path) -> None:
    """The block of docs/ecosystem.md, run as it stands."""
    text = DOCUMENT.read_text("utf-8")
    (block,) = re.findall(r"test_torch_dataset.py. -->\n\n```python\n(.*?)```", text, re.DOTALL)
    family = Store.open(store).producer["model"]["model_type"]
    objective = {"bert": "classification", "t5": "token_cross_entropy"}[family]
    names: dict[str, Any] = {"STORE": str(store), "OUTPUT": str(tmp_path), "OBJECTIVE": objective}
    exec(compile(block, str(DOCUMENT), "exec"), names)
    found = [entry["loss"] for entry in names["trainer"].state.log_history if "loss" in entry]

    keys = {"data.batch_examples": 32, "data.window": 16, "train.warmup": 0.0, "train.schedule": "constant"}
    keys |= {"train.learning_rate": 1e-3, "late.learning_rate": 1e-4}
    keys |= {"dropout.features": 0.0, "dropout.late": False, "dropout.head": 0.0}
    reference = training(store, **keys)
    recorder = Losses()
    reference.loop.run(recorder, None)
    assert len(found) == len(recorder.losses) == 4
    assert found == pytest.approx(recorder.losses, rel=1e-5)
    assert recorder.losses[0] != pytest.approx(recorder.losses[-1], rel=1e-3), "losses that stand still show little"
    trained = reference.model.trained_parameters()
    for name, parameter in names["model"].trained_parameters().items():
        torch.testing.assert_close(parameter, trained[name], rtol=0, atol=1e-6)

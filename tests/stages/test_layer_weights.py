"""Weights of the layers over a split: mean and spread over rows, of all and of each class, from one rank or several."""

from pathlib import Path

import numpy as np
import pytest
import torch
from cli import call
from reviews_csv import write_csv
from tiny import tiny_bert, tiny_t5

from sherl_cache.pipeline.recipe import load_recipe
from sherl_cache.pipeline.training import Training
from sherl_cache.stages.data import some_examples
from sherl_cache.stages.evaluate import evaluate
from sherl_cache.stages.layer_weights import MOST_CLASSES, LayerWeights
from sherl_cache.stages.methods.contract import Packed, Targets
from sherl_cache.stages.ranks import ALONE, Ranks
from sherl_cache.stages.steps import TrainBatch
from sherl_cache.storage import Store


def batch_of(lengths: list[int], segments: list[int]) -> TrainBatch:
    packed = Packed(torch.zeros(1, sum(lengths), 2), torch.tensor(lengths), (0,))
    return TrainBatch({"encoder": packed}, Targets(), None, torch.tensor(segments), len(segments), sum(lengths))


class TwoRanks(Ranks):
    """What this rank gives, and beside it what another gave."""

    def __init__(self, other: LayerWeights) -> None:
        super().__init__(0, 2)
        self._other = other

    def gather_json(self, value: object) -> list[object]:
        seen: list[object] = []
        self._other.told(Kept(seen))
        return [value, *seen]


class Kept(Ranks):
    def __init__(self, seen: list[object]) -> None:
        super().__init__()
        self._seen = seen

    def gather_json(self, value: object) -> list[object]:
        self._seen.append(value)
        return [value]


@pytest.mark.parametrize("pooled", [False, True])
def test_moments_are_those_of_the_rows_of_each_class(pooled: bool) -> None:
    """Two candidate answers an example, three examples, one without a class; a row a token, or one a segment."""
    lengths, segments, gold = [2, 3, 1, 4, 2, 2], [2, 2, 2], np.array([1, -1, 0])
    rows = len(lengths) if pooled else sum(lengths)
    weights = torch.rand(rows, 3, generator=torch.Generator().manual_seed(0))
    found = LayerWeights(2, "encoder")
    found.add({"encoder": weights}, batch_of(lengths, segments), gold)
    told = found.told(ALONE)["encoder"]
    of_rows = np.repeat(np.repeat(gold, segments), np.ones(6, int) if pooled else lengths)
    expected = {None: weights.double(), 0: weights[of_rows == 0].double(), 1: weights[of_rows == 1].double()}
    for label, each in [(None, told), *((each["label"], each) for each in told["classes"])]:
        assert each["rows"] == len(expected[label])
        assert each["mean"] == pytest.approx(expected[label].mean(0).tolist())
        assert each["spread"] == pytest.approx(expected[label].std(0, correction=0).tolist(), abs=1e-7)
    assert [each["label"] for each in told["classes"]] == [0, 1]


def test_two_ranks_tell_what_one_would() -> None:
    generator = torch.Generator().manual_seed(1)
    parts = [(torch.rand(5, 2, generator=generator), [2, 3], np.array([0, 1])) for _ in range(2)]
    whole, first, second = (LayerWeights(2, "encoder") for _ in range(3))
    for part, (weights, lengths, gold) in zip((first, second), parts, strict=True):
        for each in (part, whole):
            each.add({"encoder": weights}, batch_of(lengths, [1, 1]), gold)
    assert first.told(TwoRanks(second)) == whole.told(ALONE)
    assert LayerWeights(2, "encoder").told(TwoRanks(second)) == second.told(ALONE)


def test_very_many_classes_are_not_told_apart() -> None:
    found = LayerWeights(MOST_CLASSES + 1, "encoder")
    found.add({"encoder": torch.ones(3, 2)}, batch_of([1, 2], [1, 1]), np.array([0, 1]))
    assert found.told(ALONE)["encoder"] == {"rows": 3, "mean": [1, 1], "spread": [0, 0], "classes": []}


@pytest.mark.parametrize("family", [tiny_bert, tiny_t5])
def test_evaluation_tells_the_weights_and_likelihoods_that_a_lone_forward_gives(family: object, tmp_path: Path) -> None:
    """The oracle runs each example by itself."""
    assert callable(family)
    data, validation = write_csv(tmp_path / "train.csv", 12), write_csv(tmp_path / "validation.csv", 10, seed=1)
    words = ("--data", data, "--validation", validation, "--encoding", "float32")
    call("extract", "--model", family(tmp_path / "model"), *words, "--store", tmp_path / "cache")
    training = Training.of(load_recipe("sherl", ("data.batch_examples=4", "seed=3")), Store.open(tmp_path / "cache"))
    model = training.model
    with torch.no_grad():
        for parameter in model.trained_parameters().values():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(4)) * 0.05)
    found = evaluate(training.evaluator())
    assert training.validation is not None
    model.eval()
    rows: dict[str, dict[int, list[torch.Tensor]]] = {}
    gold, targets = training.validation.targets.gold, training.validation.targets
    for batch in training.validation.stream.epoch(0):
        for place, example in enumerate(batch.examples.tolist()):
            alone = training.validation.convert(some_examples(batch, place, place + 1))
            with torch.no_grad():
                head = model(alone.inputs, alone.select, alone.segments)
            for name, weights in model.fusion.layer_weights().items():
                rows.setdefault(name, {}).setdefault(int(gold[example]), []).append(weights)
            if targets.output == "tokens":
                chosen = torch.log_softmax(head.double(), -1).gather(1, alone.targets.tokens.unsqueeze(1)).squeeze(1)
                counts = [len(ids) for ids in targets.candidates(example)]
                head = torch.stack([part.sum() for part in chosen.split(counts)]).unsqueeze(0)
            likely = torch.softmax(head.double(), 1)[0]
            assert found.predictions[example] == int(likely.argmax())
            assert found.probabilities[example] == pytest.approx(float(likely.max()), rel=1e-4)
    assert set(found.layer_weights) == set(rows) == set(model.reads)
    for name, by_class in rows.items():
        told = found.layer_weights[name]
        for each in told["classes"]:
            expected = torch.cat(by_class[each["label"]])
            assert each["rows"] == len(expected)
            assert each["mean"] == pytest.approx(expected.mean(0).tolist(), abs=1e-5)
        assert told["mean"] == pytest.approx(
            torch.cat([w for ws in by_class.values() for w in ws]).mean(0).tolist(), abs=1e-5
        )
    assert len(told["classes"]) == 2

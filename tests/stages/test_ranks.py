"""Several ranks train as one process does: the same losses, weights and scores, to rounding."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from cli import call
from rank_processes import start_ranks
from rank_training import train_in_ranks, trained
from reviews_csv import write_csv
from safetensors.torch import load_file, save_file
from tiny import tiny_bert, tiny_t5
from torch import Tensor, nn

from sherl_cache.pipeline.together import together
from sherl_cache.stages.coupling import whole_batch
from sherl_cache.stages.methods.contract import Outputs, Packed, Pair, Targets
from sherl_cache.stages.methods.objective.barlow import Barlow
from sherl_cache.stages.methods.objective.contrastive import Contrastive
from sherl_cache.stages.objectives import ObjectiveSum
from sherl_cache.stages.ranks import ALONE, Ranks
from sherl_cache.storage import Store

RECIPES: dict[str, Sequence[str]] = {
    "plain": [],
    "micro": ["train.micro_batch_examples=5", "objective={label_smoothing: 0.1}"],
    "tokens": ["data.batch_examples=null", "data.batch_tokens=500"],
    "barlow": ["objective=[{}, {name: barlow, weight: 0.3}, {name: barlow, form: align}]"],
}
"""97 examples in batches of 24: the last has one, so that a rank has none."""


def make_store(root: Path, family: str, rows: int) -> Path:
    """A store in float64."""
    model = {"bert": tiny_bert, "t5": tiny_t5}[family](root / "model")
    files = ("--data", write_csv(root / "train.csv", rows), "--validation", write_csv(root / "dev.csv", 25, seed=1))
    call(
        *("extract", "--model", model, *files, "--store", root / "cache"),
        *("--encoding", "float64", "--precision", "float64"),
    )
    return root / "cache"


def check_ranks(store: Path, folder: Path, recipes: dict[str, Sequence[str]], ranks: int, epochs: int) -> None:
    """Weights within 1e-9 of the lone run's, bit for bit the same on every rank."""
    started = start_ranks(ranks, folder, train_in_ranks, str(store), str(folder), recipes, epochs, "float64")
    assert started.codes() == [0] * ranks, started.said()
    for name, overrides in recipes.items():
        told, weights = trained(Store.open(store), overrides, epochs, ALONE)
        paths = [folder / f"{name}-{rank}.json" for rank in range(ranks)]
        found = [json.loads(path.read_text()) for path in paths]
        assert len({each["digest"] for each in found}) == 1
        compare(found[0], told, load_file(paths[0].with_suffix(".safetensors")), weights)


def compare(found: Any, told: Any, weights: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert len(found["records"]) == len(told["records"]) >= 5
    for mine, other in zip(found["records"], told["records"], strict=True):
        assert [mine[key] for key in ("step", "examples", "tokens")] == [
            other[key] for key in ("step", "examples", "tokens")
        ]
        for key in ("loss", "gradient_norm", "parts"):
            assert mine[key] == pytest.approx(other[key], rel=1e-9, abs=1e-12), (mine["step"], key)
    for mine, other in zip(found["scores"], told["scores"], strict=True):
        assert mine[1] == pytest.approx(other[1], rel=1e-9)
        assert mine[2] == other[2]
    for name, tensor in expected.items():
        torch.testing.assert_close(weights[name], tensor, rtol=0, atol=1e-9, msg=name)


def test_two_ranks_end_in_the_weights_of_the_lone_run(tmp_path: Path) -> None:
    """BERT; micro-batches, batches by tokens, an objective that couples the batch, and a rank without an example."""
    check_ranks(make_store(tmp_path, "bert", 97), tmp_path / "ranks", RECIPES, ranks=2, epochs=1)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("family", ["bert", "t5"])
def test_ranks_end_in_the_weights_of_the_lone_run_after_50_steps(tmp_path: Path, family: str, ranks: int) -> None:
    recipes = {name: RECIPES[name] for name in ("plain", "barlow")}
    check_ranks(make_store(tmp_path, family, 97), tmp_path / "ranks", recipes, ranks, epochs=10)


# --- objectives that couple the batch, by themselves ---

SLICES = ((3, 4), (0, 0), (2, 5))
"""Pictures and captions of each of three ranks."""


def losses_of(ranks: Ranks, rows: slice, others: slice) -> dict[str, Tensor]:
    """Gradients of a tiny model from a slice of one fixed batch, and the losses; pairs and fused features."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"first": nn.Linear(6, 4), "second": nn.Linear(5, 4)}).double()
    scale = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
    pictures, captions = torch.randn(5, 6).double(), torch.randn(9, 5).double()
    owners = (torch.arange(5), torch.tensor([0, 1, 2, 2, 3, 3, 4, 4, 4]))
    objective = ObjectiveSum(
        {"contrastive": (1.0, Contrastive.from_options({})), "barlow": (0.5, Barlow.from_options({"form": "align"}))}
    )
    groups = owners[0][rows], owners[1][others]
    targets, outputs = Targets(groups=groups), None
    if len(groups[0]):
        pair = Pair(model["first"](pictures[rows]), model["second"](captions[others]), scale)
        lengths = torch.ones(len(groups[0]), dtype=torch.int64)
        taps = Packed(pictures[rows, :4].unsqueeze(0), lengths, (3,))
        outputs = Outputs(
            head=pair, fused={"encoder": Packed(pair.first.unsqueeze(0), lengths, (0,))}, taps={"encoder": taps}
        )
    whole = objective.gathered(outputs, targets, ranks)
    parameters = {**dict(model.named_parameters()), "scale": scale}
    value = torch.zeros((), dtype=torch.float64)
    if outputs is not None:
        losses = objective.losses(outputs, targets, whole)
        value = objective.total(losses, {name: loss.weight for name, loss in losses.items()})
        value.backward()
    named = {name: torch.zeros_like(each) if each.grad is None else each.grad for name, each in parameters.items()}
    return {**named, "value": value.detach()}


def couple_in_ranks(folder: str) -> None:
    with together("cpu") as ranks:
        first, second = (sum(each[side] for each in SLICES[: ranks.rank]) for side in (0, 1))
        own = SLICES[ranks.rank]
        found = losses_of(ranks, slice(first, first + own[0]), slice(second, second + own[1]))
        summed = dict(zip(found, ranks.sums(list(found.values())), strict=True))
        assert ranks.any(ranks.rank == 1)
        assert not ranks.any(False)
        assert ranks.share(bytes([ranks.rank]) * 3) == b"\0\0\0"
        assert ranks.gather_json({"rank": ranks.rank}) == [{"rank": rank} for rank in range(3)]
        assert whole_batch(None, Targets(), ranks, head=True, features=False) is None
        if ranks.first:
            save_file(summed, Path(folder) / "sums.safetensors")


def test_gathered_objectives_have_the_loss_and_gradients_of_the_whole_batch(tmp_path: Path) -> None:
    """InfoNCE with a learnt temperature and Barlow Twins; the second of three ranks has no example."""
    started = start_ranks(3, tmp_path, couple_in_ranks, str(tmp_path))
    assert started.codes() == [0, 0, 0], started.said()
    found = load_file(tmp_path / "sums.safetensors")
    for name, expected in losses_of(ALONE, slice(0, 5), slice(0, 9)).items():
        torch.testing.assert_close(found[name], expected, rtol=1e-12, atol=1e-12, msg=name)
        assert float(expected.abs().max()) > 1e-3

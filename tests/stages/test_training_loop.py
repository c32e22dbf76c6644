"""The loop's options against the plain step: micro-batches, several objectives, bfloat16, a compiled fusion."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cli import call
from reviews_csv import write_csv
from tiny import tiny_bert, tiny_t5

from sherl_cache.pipeline.objectives import choose_objective, label_counts
from sherl_cache.pipeline.reading import store_batches
from sherl_cache.pipeline.recipe import load_recipe
from sherl_cache.pipeline.training import Training, stage_two
from sherl_cache.stages import compute
from sherl_cache.stages.methods.contract import UNLABELLED, Outputs
from sherl_cache.stages.optimization import TrainSettings
from sherl_cache.stages.train import TrainingLoop
from sherl_cache.storage import ReadBuffers, Store
from sherl_cache.storage.errors import RecipeError

CPU = torch.device("cpu")
BALANCED = "objective={class_weights: balanced, label_smoothing: 0.1}"


class Told:
    """Keeps what a loop tells."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def log(self, record: Any) -> None:
        self.records.append(dict(record))

    def checkpoint(self, loop: TrainingLoop) -> None: ...
    def better(self, loop: TrainingLoop) -> None: ...


@pytest.fixture(scope="module", params=["bert", "t5"])
def store(request, tmp_path_factory) -> Store:
    """Unequal label counts, in float64."""
    root = tmp_path_factory.mktemp(request.param)
    model = {"bert": tiny_bert, "t5": tiny_t5}[request.param](root / "model")
    rows = write_csv(root / "all.csv", 90).read_text().splitlines()
    kept = rows[:1] + [row for number, row in enumerate(rows[1:]) if row.endswith("positive") or number % 3 == 0]
    (root / "train.csv").write_text("\n".join(kept) + "\n")
    validation = write_csv(root / "validation.csv", 20, seed=1)
    files = ("--data", root / "train.csv", "--validation", validation, "--store", root / "cache")
    call("extract", "--model", model, *files, "--encoding", "float64", "--precision", "float64")
    return Store.open(root / "cache")


def is_t5(store: Store) -> bool:
    return "decoder" in next(iter(store.plan.splits.values())).streams


def trained(store: Store, overrides: Sequence[str], dtype: torch.dtype = torch.float64, **settings: Any) -> Any:
    """Some steps of a recipe: what was logged, and the weights after it."""
    recipe = load_recipe("sherl", ("dropout={}", "data.batch_examples=24", *overrides))
    model = stage_two(recipe, store.producer, lambda name: store.file(f"weights/{name}")).to(dtype)
    with torch.no_grad():
        for name, parameter in model.trained_parameters().items():
            if "gate" in name:
                parameter.fill_(0.05)
    objective = choose_objective(recipe, model, "classification", label_counts(store))
    batches = store_batches(recipe, store, model, "train", CPU, ReadBuffers(1 << 26))
    plain: dict[str, Any] = {"epochs": 1, "learning_rate": 1e-3, "late_learning_rate": 1e-4}
    told, loop = Told(), TrainingLoop(model, objective, batches, TrainSettings(**plain | settings))
    loop.run(told, None)
    return told.records, model.trainable_state_dict()


def near(found: Any, expected: Any, **tolerances: float) -> None:
    for mine, other in zip(found[0], expected[0], strict=True):
        for key in ("loss", "gradient_norm", "step", "examples", "tokens"):
            assert mine[key] == pytest.approx(other[key], rel=tolerances["rtol"]), key
        assert mine["parts"] == pytest.approx(other["parts"], rel=tolerances["rtol"])
    for name, tensor in expected[1].items():
        torch.testing.assert_close(found[1][name], tensor, **tolerances)


@pytest.mark.parametrize("size", [1, 5])
def test_accumulated_step_equals_the_whole_batch(store: Store, size: int) -> None:
    """Unequal micro-batches (24 = 4 * 5 + 4), whose labels weigh differently."""
    options = ["objective={label_smoothing: 0.1}"] if is_t5(store) else [BALANCED]
    whole = trained(store, options)
    assert len(whole[0]) >= 2
    near(trained(store, [*options, f"train.micro_batch_examples={size}"]), whole, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("store", ["bert"], indirect=True)
def test_a_penalty_joins_the_loss_once_however_the_batch_is_split(store: Store) -> None:
    """Oracle of the first step: the loss without it, and the group norms of the classifier by hand."""
    options = ["late.blocks=0", "head={name: classifier, group_lasso: 0.2}"]
    whole = trained(store, options)
    near(trained(store, [*options, "train.micro_batch_examples=5"]), whole, rtol=1e-9, atol=1e-10)
    plain = trained(store, ["late.blocks=0"])
    recipe = load_recipe("sherl", ("late.blocks=0",))
    model = stage_two(recipe, store.producer, lambda name: store.file(f"weights/{name}")).double()
    expected = 0.2 * float(model.head.linear.weight.detach().norm(dim=0).sum())
    first, without = whole[0][0], plain[0][0]
    assert first["parts"]["head.group_lasso"] == pytest.approx(expected, rel=1e-9)
    assert first["loss"] == pytest.approx(without["loss"] + expected, rel=1e-9)
    assert first["gradient_norm"] != pytest.approx(without["gradient_norm"], rel=1e-3)
    norms = [found[1]["head.linear.weight"].norm(dim=0).sum() for found in (whole, plain)]
    assert norms[0] < norms[1]


def test_micro_batches_hold_no_more_rows_than_they_may(store: Store) -> None:
    recipe = load_recipe("sherl", ("data.batch_examples=24", "train.micro_batch_examples=5"))
    model = stage_two(recipe, store.producer, lambda name: store.file(f"weights/{name}"))
    batches = store_batches(recipe, store, model, "train", CPU, ReadBuffers(1 << 26))
    unsplit = load_recipe("sherl", ("data.batch_examples=24",))
    whole = store_batches(unsplit, store, model, "train", CPU, ReadBuffers(1 << 26))
    for step, batch in zip(batches.steps(0), whole.epoch(0), strict=True):
        parts = list(step.batches())
        assert [part.examples for part in parts[:-1]] == [5] * (len(parts) - 1)
        assert step.examples == batch.examples == sum(part.examples for part in parts)
        assert step.tokens == batch.tokens == sum(part.tokens for part in parts)
        for stream, packed in batch.inputs.items():
            assert torch.equal(torch.cat([part.inputs[stream].taps for part in parts], 1), packed.taps)
            assert torch.equal(torch.cat([part.inputs[stream].lengths for part in parts]), packed.lengths)
        assert torch.equal(torch.cat([part.segments for part in parts]), batch.segments)


def test_a_sum_of_objectives_equals_its_terms_weighted(store: Store) -> None:
    recipe = load_recipe("sherl", ("objective=[{}, {name: barlow, weight: 0.3}, {name: barlow, form: align}]",))
    model = stage_two(recipe, store.producer, lambda name: store.file(f"weights/{name}")).double().eval()
    objective = choose_objective(recipe, model, "classification")
    batch = next(store_batches(recipe, store, model, "train", CPU, ReadBuffers(1 << 26)).epoch(0))
    outputs = model.outputs(batch.inputs, batch.select, batch.segments, features=True)
    losses = objective.losses(outputs, batch.targets)
    first = "token_cross_entropy" if is_t5(store) else "classification"
    assert list(losses) == [first, "barlow", "barlow 2"]
    means = [(loss.sum / loss.weight).detach() for loss in losses.values()]
    weights = {name: loss.weight for name, loss in losses.items()}
    torch.testing.assert_close(objective.total(losses, weights), means[0] + 0.3 * means[1] + means[2])
    assert list(objective.parts(losses, weights)) == [f"{first}.cross_entropy", "barlow.decorrelate", "barlow 2.align"]
    assert objective.parts(losses, weights)["barlow.decorrelate"] == pytest.approx(float(means[1]))
    plain = choose_objective(load_recipe("sherl"), model, "classification")
    assert torch.equal(plain(Outputs(head=outputs.head), batch.targets).sum, losses[first].sum)


@pytest.mark.parametrize("store", ["bert"], indirect=True)
def test_the_redundancy_term_lowers_redundancy(store: Store) -> None:
    """Against the same run in which it is only looked at."""
    listed = "objective=[{}, {name: barlow, weight: %s}]"
    settings = {"epochs": 6, "learning_rate": 3e-2}
    watched = trained(store, [listed % "1.0e-9"], **settings)[0]
    learned = trained(store, [listed % "5.0"], **settings)[0]
    steps = len(learned) // 6

    def redundancy(records: list[dict[str, Any]], epoch: int) -> float:
        return sum(record["parts"]["barlow.decorrelate"] for record in records[epoch * steps :][:steps]) / steps

    assert redundancy(learned, 5) < redundancy(watched, 5)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["objective={name: barlow}"], "nothing teaches the head"),
        (
            ["objective=[{}, {name: barlow}]", "train.micro_batch_examples=4"],
            "needs all of them at once; set it to null",
        ),
        (["objective=[{}, {name: barlow, stream: vision}]"], "no stream 'vision'; there are encoder"),
        (["objective=[{}, {name: regression}]"], "does not read"),
        (["objective={name: contrastive}"], "contrastive does not read"),
        (["objective=[{}, {name: barlow, form: other}]"], "objective.form"),
    ],
)
def test_objectives_that_do_not_fit_are_refused(store: Store, overrides: list[str], message: str) -> None:
    recipe = load_recipe("sherl", tuple(overrides))
    with pytest.raises(RecipeError, match=message):
        Training.of(recipe, store)


def test_class_weights_are_one_a_class_and_balanced_ones_give_every_class_the_same_say(store: Store) -> None:
    if is_t5(store):
        pytest.skip("answers in words")
    counts = label_counts(store)
    assert counts[0] != counts[1]
    recipe = load_recipe("sherl", (BALANCED,))
    model = stage_two(recipe, store.producer, lambda name: store.file(f"weights/{name}"))
    weights = choose_objective(recipe, model, "classification", counts).terms["classification"].class_weights
    assert (weights * torch.tensor(counts)).tolist() == pytest.approx([sum(counts) / 2] * 2)
    with pytest.raises(RecipeError, match="3 weights for 2 classes"):
        Training.of(load_recipe("sherl", ("objective.class_weights=[1, 2, 3]",)), store)


def test_the_vocabulary_product_runs_only_where_a_label_is(store: Store) -> None:
    if not is_t5(store):
        pytest.skip("no vocabulary")
    recipe = load_recipe("sherl")
    model = stage_two(recipe, store.producer, lambda name: store.file(f"weights/{name}")).double().eval()
    objective = choose_objective(recipe, model, "classification")
    batches = store_batches(recipe, store, model, "train", CPU, ReadBuffers(1 << 26))
    batch = next(batches.epoch(0))
    rows: list[int] = []
    model.projection.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    assert batch.targets.tokens is not None
    every = model(batch.inputs, None, batch.segments)
    tokens = batch.targets.tokens.clone()
    tokens[::3] = UNLABELLED
    select = tokens != UNLABELLED
    output = model(batch.inputs, select, batch.segments)
    assert rows == [len(tokens), int(select.sum())]
    found = objective(output, replace(batch.targets, tokens=tokens[select]))
    expected = objective(every, replace(batch.targets, tokens=tokens))
    torch.testing.assert_close(found.sum, expected.sum)
    assert found.weight == expected.weight


def test_bfloat16_steps_are_near_float32_ones_and_weights_stay_float32(store: Store) -> None:
    plain = trained(store, ["train.epochs=1"], torch.float32)
    half = trained(store, ["train.epochs=1"], torch.float32, precision="bfloat16")
    assert all(tensor.dtype == torch.float32 for tensor in half[1].values())
    assert [record["loss"] for record in half[0]] == pytest.approx([record["loss"] for record in plain[0]], rel=0.03)
    assert any(record["loss"] != other["loss"] for record, other in zip(half[0], plain[0], strict=True))


def test_a_device_without_bfloat16_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    with pytest.raises(RecipeError, match=r"train\.precision: cuda:0 does not compute in bfloat16; use float32"):
        compute.require_precision("bfloat16", torch.device("cuda:0"))
    compute.require_precision("bfloat16", CPU)


def test_compile_without_a_compiler_is_refused(store: Store, monkeypatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(RecipeError, match=r"no C\+\+ compiler .* was found on PATH; install one, or set train.compile"):
        Training.of(load_recipe("sherl", ("train.compile=true",)), store)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # torch warns of itself
@pytest.mark.parametrize("fusion", ["sherl", "weighted_sum"])
def test_a_compiled_fusion_gives_the_same_losses_and_gradients(store: Store, fusion: str) -> None:
    """On batches of other sizes. Weights are not compared: where a gradient is zero, as of a scale in front of a norm,
    AdamW makes steps of what rounding leaves of it.
    """
    overrides = ("dropout={}", "data.batch_examples=12", f"fusion={{name: {fusion}}}")
    found = []
    for compiled in (False, True):
        recipe = load_recipe("sherl", overrides)
        model = stage_two(recipe, store.producer, lambda name: store.file(f"weights/{name}")).double()
        objective = choose_objective(recipe, model, "classification")
        if compiled:
            compute.compile_fusion(model.fusion, CPU)
        batches = store_batches(recipe, store, model, "train", CPU, ReadBuffers(1 << 26))
        for batch in batches.epoch(0):
            loss = objective(model(batch.inputs, batch.select, batch.segments), batch.targets)
            (loss.sum / loss.weight).backward()
            found.append(
                (compiled, loss.sum.detach(), {k: p.grad.clone() for k, p in model.trained_parameters().items()})
            )
    plain, made = ([item[1:] for item in found if item[0] == compiled] for compiled in (False, True))
    assert len(plain) >= 3
    for (loss, gradients), (other, others) in zip(made, plain, strict=True):
        torch.testing.assert_close(loss, other, rtol=1e-9, atol=1e-10)
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, others[name], rtol=1e-8, atol=1e-10)


def test_a_list_of_objectives_trains_through_the_command_line_and_logs_each_part(store: Store, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "objective: [{label_smoothing: 0.1}, {name: barlow, weight: 0.05}]\ntrain: {epochs: 1, precision: bfloat16}\n"
    )
    result = call("train", "--store", store.root, "--config", recipe, "--run", tmp_path / "run")
    logged = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    first = "token_cross_entropy" if is_t5(store) else "classification"
    assert set(logged[0]["parts"]) == {f"{first}.cross_entropy", "barlow.decorrelate"}
    total = logged[0]["parts"][f"{first}.cross_entropy"] + 0.05 * logged[0]["parts"]["barlow.decorrelate"]
    assert logged[0]["loss"] == pytest.approx(total, rel=1e-5)
    if not is_t5(store):
        scores = result["history"][0]
        assert scores["loss"] == pytest.approx(scores["loss.classification"] + 0.05 * scores["loss.barlow"])
    assert call("eval", "--run", tmp_path / "run")["examples"] == 20

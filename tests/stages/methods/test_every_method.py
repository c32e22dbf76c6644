"""What every method promises, run over every file of every axis: a new method is tested by existing."""

import json
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from sherl_cache.stages import plugins
from sherl_cache.stages.methods.contract import (
    UNLABELLED,
    Head,
    HeadSpec,
    LateOps,
    Loss,
    Objective,
    Outputs,
    Packed,
    Pair,
    StreamSpec,
    Targets,
)
from sherl_cache.storage.errors import RecipeError

WIDTH, CLASSES, VOCABULARY = 16, 3, 11
LENGTHS = torch.tensor([3, 1, 4])
FUSIONS, HEADS, OBJECTIVES = (plugins.names(axis) for axis in ("fusion", "head", "objective"))
EVERY = [(axis, name) for axis in plugins.AXES for name in plugins.names(axis)]


def spec(name: str, late: int, where: str, encoder_decoder: bool) -> StreamSpec:
    return StreamSpec(name=name, width=WIDTH, depth=4, late=late, exit=where, encoder_decoder=encoder_decoder)


MODELS = {
    "encoder-only": {"encoder": spec("encoder", 1, "late", False)},
    "encoder-decoder": {
        "encoder": spec("encoder", 0, "memory", True),
        "decoder": spec("decoder", 2, "late", True),
    },
    "probe": {"encoder": spec("encoder", 0, "head", False)},
}
every_fusion = pytest.mark.parametrize("name", FUSIONS)
every_head = pytest.mark.parametrize("name", HEADS)
every_objective = pytest.mark.parametrize("name", OBJECTIVES)
every_model = pytest.mark.parametrize("model", MODELS)


def redraw(module: nn.Module, seed: int = 0) -> None:
    """Every trainable away from where it starts; at an initial zero a mistake would not show."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.3 + 0.7 * torch.randn(parameter.shape, generator=random))


def make_head(name: str) -> Head:
    torch.manual_seed(0)
    method = plugins.find("head", name)
    head = method.from_options(
        {},
        HeadSpec(
            width=WIDTH,
            kind=method.kinds[0],
            classes=CLASSES,
            pooling="mean",
            initializer_range=0.02,
            lm=nn.Linear(WIDTH, VOCABULARY, bias=False).requires_grad_(False),
        ),
    )
    redraw(head)
    return head


def make_rows() -> Tensor:
    return torch.randn(int(LENGTHS.sum()), WIDTH, generator=torch.Generator().manual_seed(2))


def ask(head: Head, rows: Tensor, lengths: Tensor) -> Tensor:
    """What a head gives; of a pair head both sets of vectors, scaled, from the same rows: [S, 2, P]."""
    if head.output != "pair":
        return head(rows, lengths)
    pair = head((rows, rows), (lengths, lengths))
    return pair.scale * torch.stack([pair.first, pair.second], 1)


def make_values(output: str, seed: int = 3) -> Tensor:
    shape = {"classes": (6, CLASSES), "score": (6,), "tokens": (6, VOCABULARY), "pair": (6, 2, WIDTH)}
    return torch.randn(shape.get(output, (6, WIDTH)), generator=torch.Generator().manual_seed(seed))


def as_output(output: str, values: Tensor) -> Any:
    """What an objective reads, made of values [6, ...]."""
    if output == "pair":
        return Pair(values[:, 0], values[:, 1], torch.tensor(2.0))
    if output == "features":
        ones = torch.ones(len(values), dtype=torch.int64)
        fused, taps = Packed(values.unsqueeze(0), ones, (1,)), Packed(values.roll(1, 1).unsqueeze(0), ones, (1,))
        return Outputs(head=None, fused={"encoder": fused}, taps={"encoder": taps})
    return values


def make_targets() -> Targets:
    """Rows 1 and 4 of 6 have no label."""
    groups = torch.tensor([0, -1, 1, 2, -1, 3])
    return Targets(
        gold=torch.tensor([0, -1, 2, 1, UNLABELLED, 0]),
        score=torch.tensor([0.5, torch.nan, 2.0, -1.0, torch.nan, 0.25]),
        tokens=torch.tensor([0, UNLABELLED, 10, 4, UNLABELLED, 7]),
        groups=(groups, groups),
    )


UNLABELLED_ROWS, LABELLED_ROWS = [1, 4], [0, 2, 3, 5]


def some_rows(targets: Targets, rows: list[int]) -> Targets:
    groups = tuple(of_side[rows] for of_side in targets.groups)
    return Targets(gold=targets.gold[rows], score=targets.score[rows], tokens=targets.tokens[rows], groups=groups)


def loss_of(objective: Objective, values: Tensor, targets: Targets) -> Loss:
    loss = objective(as_output(objective.output, values), targets)
    assert isinstance(loss, Loss)
    return loss


def make_objective(name: str, *, labels: bool = False, sums: bool = False) -> Objective:
    """From its defaults; skips one without labels, or whose losses of parts do not add up, where a test needs that."""
    objective = plugins.find("objective", name).from_options({})
    if labels and objective.output == "features":
        pytest.skip("reads no labels")
    if sums and objective.couples_batch:
        pytest.skip("couples the batch, and says so")
    return objective


# ---- every axis


@pytest.mark.parametrize(("axis", "name"), EVERY)
def test_a_method_says_what_it_is_and_explains_every_option(axis: str, name: str) -> None:
    described = plugins.describe(axis, name)
    assert described.summary.endswith(".")
    assert described.source
    assert all(option.help.endswith(".") for option in described.options)


@pytest.mark.parametrize(("axis", "name"), EVERY)
def test_a_config_survives_json_and_is_frozen(axis: str, name: str) -> None:
    config_class = plugins.find(axis, name).Config
    config = config_class()
    assert config_class.model_validate(json.loads(config.model_dump_json())) == config
    for key, value in config.model_dump().items():
        with pytest.raises(ValidationError, match="frozen"):
            setattr(config, key, value)


@pytest.mark.parametrize(("axis", "name"), EVERY)
def test_an_unknown_option_is_refused_by_key(axis: str, name: str) -> None:
    method = plugins.find(axis, name)
    make = {
        "fusion": lambda: method.from_options({"no_such": 1}, MODELS["probe"]),
        "tuner": lambda: method.from_options({"no_such": 1}, LateOps(())),
        "head": lambda: method.from_options({"no_such": 1}, head_spec(method)),
        "objective": lambda: method.from_options({"no_such": 1}),
    }
    with pytest.raises(RecipeError, match=rf"{axis}\.no_such: unknown option of {name}"):
        make[axis]()


def head_spec(method: type[Head]) -> HeadSpec:
    return HeadSpec(
        width=WIDTH, kind=method.kinds[0], classes=2, pooling="cls", initializer_range=0.02, lm=nn.Identity()
    )


# ---- head


@every_head
def test_a_head_gives_the_shape_that_it_declares(name: str) -> None:
    head = make_head(name)
    output = ask(head, make_rows(), LENGTHS)
    shapes = {"classes": (3, CLASSES), "score": (3,), "tokens": (8, VOCABULARY), "pair": (3, 2, 256)}
    assert output.shape == shapes[head.output]
    assert output.isfinite().all()


@every_head
def test_gradients_reach_the_rows_and_every_parameter_of_a_head(name: str) -> None:
    head, rows = make_head(name), make_rows().requires_grad_()
    output = ask(head, rows, LENGTHS)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(5))
    (output * weights).square().sum().backward()
    assert (rows.grad.abs().amax(1) > 0).all()
    for key, parameter in head.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().max() > 0, key


@every_head
def test_a_head_ignores_other_segments(name: str) -> None:
    head, rows = make_head(name), make_rows()
    before = ask(head, rows, LENGTHS)
    rows[-4:] = 100
    kept = 4 if head.output == "tokens" else 2
    assert torch.equal(ask(head, rows, LENGTHS)[:kept], before[:kept])
    assert not torch.allclose(ask(head, rows, LENGTHS)[kept:], before[kept:])


@every_head
def test_a_head_is_rebuilt_from_its_state(name: str) -> None:
    head, other = make_head(name), make_head(name)
    redraw(other, seed=5)
    other.load_state_dict(head.state_dict())
    assert torch.equal(ask(other, make_rows(), LENGTHS), ask(head, make_rows(), LENGTHS))


@every_head
def test_a_head_runs_in_bfloat16(name: str) -> None:
    method = plugins.find("head", name)
    head = method.from_options({}, head_spec(method)).bfloat16()
    output = ask(head, make_rows().bfloat16(), LENGTHS)
    assert output.dtype == torch.bfloat16
    assert output.isfinite().all()


@every_head
def test_a_head_refuses_a_kind_of_task_that_it_does_not_answer(name: str) -> None:
    method = plugins.find("head", name)
    with pytest.raises(RecipeError, match=rf"head\.name: {name} answers .*, this task is one of chess"):
        method.from_options({}, HeadSpec(width=4, kind="chess", classes=2, pooling="cls", initializer_range=1))


# ---- objective


@every_objective
def test_some_head_gives_what_an_objective_reads(name: str) -> None:
    objective = make_objective(name, labels=True)
    heads = [plugins.find("head", head) for head in HEADS]
    assert any(head.output == objective.output and set(head.kinds) & set(objective.kinds) for head in heads)


@every_objective
def test_rows_without_label_add_nothing_to_loss_weight_and_gradient(name: str) -> None:
    objective = make_objective(name, labels=True)
    values, targets = make_values(objective.output).requires_grad_(), make_targets()
    loss = loss_of(objective, values, targets)
    alone = loss_of(objective, values[LABELLED_ROWS], some_rows(targets, LABELLED_ROWS))
    torch.testing.assert_close(loss.sum, alone.sum)
    assert loss.sum > 0
    assert loss.weight.item() == alone.weight.item() == len(LABELLED_ROWS)
    loss.sum.backward()
    assert not values.grad[UNLABELLED_ROWS].any()
    assert (values.grad[LABELLED_ROWS].reshape(4, -1).abs().amax(1) > 0).all()


@every_objective
def test_a_batch_without_any_label_is_a_loss_of_zero_over_zero(name: str) -> None:
    objective = make_objective(name, labels=True)
    values = make_values(objective.output)[UNLABELLED_ROWS].requires_grad_()
    loss = loss_of(objective, values, some_rows(make_targets(), UNLABELLED_ROWS))
    loss.sum.backward()
    assert loss.sum.item() == loss.weight.item() == 0
    assert torch.equal(values.grad, torch.zeros_like(values))


@every_objective
def test_losses_of_parts_of_a_batch_add_up_to_that_of_the_batch(name: str) -> None:
    objective = make_objective(name, sums=True)
    values, targets = make_values(objective.output), make_targets()
    whole = loss_of(objective, values, targets)
    halves = [loss_of(objective, values[r], some_rows(targets, r)) for r in ([0, 1, 2], [3, 4, 5])]
    torch.testing.assert_close(whole.sum, halves[0].sum + halves[1].sum)
    assert whole.weight == halves[0].weight + halves[1].weight
    for key, part in whole.parts.items():
        torch.testing.assert_close(part, halves[0].parts[key] + halves[1].parts[key])


@every_objective
def test_one_that_couples_the_batch_does_not_add_up_and_has_no_weight_of_targets(name: str) -> None:
    """The others know the weight of their loss before any forward."""
    objective, targets = make_objective(name), make_targets()
    values = make_values(objective.output)
    whole = loss_of(objective, values, targets)
    if not objective.couples_batch:
        assert objective.weigh(targets) == whole.weight
        return
    halves = [loss_of(objective, values[r], some_rows(targets, r)) for r in ([0, 1, 2], [3, 4, 5])]
    assert not torch.allclose(whole.sum, halves[0].sum + halves[1].sum)
    with pytest.raises(RecipeError, match=rf"micro_batch_examples: the objective {name} needs the whole batch"):
        objective.weigh(targets)


@every_objective
def test_a_loss_is_a_float32_scalar_even_of_bfloat16_and_its_parts_hold_no_graph(name: str) -> None:
    objective = make_objective(name)
    loss = loss_of(objective, make_values(objective.output).bfloat16().requires_grad_(), make_targets())
    assert loss.sum.shape == loss.weight.shape == ()
    assert loss.sum.dtype == torch.float32
    assert loss.sum.requires_grad
    assert loss.parts
    assert not any(part.requires_grad for part in loss.parts.values())


@every_objective
def test_missing_labels_are_refused_by_name(name: str) -> None:
    objective = make_objective(name, labels=True)
    with pytest.raises(RecipeError, match=rf"objective\.name: {name} needs"):
        loss_of(objective, make_values(objective.output), Targets())

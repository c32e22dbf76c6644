"""Late layers that attend to a memory without keys and values of it, against the same layers with them."""

from collections.abc import Callable

import pytest
import torch
from model_cases import cached
from text_models import close, stage_two_of, texts_for, tiny_model
from tiny_configs import TEXT_CONFIGS
from torch import Tensor, nn

from sherl_cache.stages.backbones.contract import all_tables
from sherl_cache.stages.build import StageTwoRecipe
from sherl_cache.stages.folded_memory import FoldedMemory
from sherl_cache.stages.live import LiveModel
from sherl_cache.stages.model import StageTwo

FAMILIES = [name for name in TEXT_CONFIGS if all_tables()[name].encoder_decoder]
every_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Folded whatever it costs: tiny models are too narrow to gain."""
    monkeypatch.setattr(FoldedMemory, "pays", lambda *arguments: True)


def models(family: str, **recipe: object) -> tuple[StageTwo, StageTwo]:
    """The same model twice, every trainable redrawn; the second makes keys and values of every row."""
    loaded = tiny_model(family, "float64")
    pair = [stage_two_of(loaded, StageTwoRecipe(**recipe), "float64").eval() for _ in range(2)]
    pair[1].late.stream("decoder").folded.clear()
    return pair[0], pair[1]


def output_and_gradients(family: str, model: StageTwo) -> tuple[Tensor, dict[str, Tensor | None]]:
    loaded = tiny_model(family, "float64")
    batch = texts_for(loaded)
    output = model(cached(loaded, model, [batch]), LiveModel(loaded, model).select(batch))
    output.square().sum().backward()
    return output.detach(), {name: value.grad for name, value in model.trained_parameters().items()}


def rows_projected(model: StageTwo, run: Callable[[], object]) -> list[int]:
    """Rows that the key projections of cross-attentions see in `run`, call by call."""
    found: list[int] = []
    hooks = [
        folded.key.register_forward_hook(lambda module, args, output: found.append(output.shape[:-1].numel()))
        for folded in model.late.stream("decoder").folded.values()
    ]
    run()
    for hook in hooks:
        hook.remove()
    return found


@every_family
@pytest.mark.parametrize("late", [1, 2])
@pytest.mark.parametrize(
    "tuning",
    [
        {},
        {"mode": "frozen"},
        {"tuner": "lora", "tuner_options": {"ops": ["query", "cross_query", "cross_out"], "rank": 2}},
        {"tuner": "u_adapter", "tuner_options": {"ops": ["cross_attention"]}},
    ],
    ids=["full", "frozen", "lora", "u_adapter"],
)
def test_logits_and_gradients_equal_those_with_keys_and_values(
    always: None, family: str, late: int, tuning: dict[str, object]
) -> None:
    ours, plain = models(family, late=late, **tuning)
    assert len(ours.late.stream("decoder").folded) == late
    found, gradients = output_and_gradients(family, ours)
    expected, others = output_and_gradients(family, plain)
    close(found, expected, "float64")
    assert gradients.keys() == others.keys()
    for name, gradient in gradients.items():
        assert gradient is not None, name
        torch.testing.assert_close(gradient, others[name], rtol=1e-9, atol=1e-9, msg=name)


@every_family
def test_keys_are_made_of_one_row_a_segment(always: None, family: str) -> None:
    model, _ = models(family, late=2)
    seen = rows_projected(model, lambda: output_and_gradients(family, model))
    segments = 2 * len(texts_for(tiny_model(family)))
    assert sum(seen) == 2 * segments  # in each of two layers


@pytest.mark.parametrize(("rows", "queries", "folds"), [(128, 2, True), (20, 2, True), (4, 8, False), (40, 40, False)])
def test_only_few_queries_of_many_rows_are_worth_it(rows: int, queries: int, folds: bool) -> None:
    """T5-base's widths. Oracle: multiplications counted by hand, of which folding must spare half."""
    model, _ = models("t5", late=1)
    (folded,) = model.late.stream("decoder").folded.values()
    folded.key, folded.head_width = nn.Linear(768, 768, bias=False), 64
    with_keys = 2 * rows * 768 * 768 + 2 * queries * rows * 768
    without = 2 * queries * 768 * 768 + 2 * queries * 12 * rows * 768
    assert folded.pays(queries, rows) is folds is (2 * without <= with_keys)


@every_family
@pytest.mark.parametrize("role", ["cross_key", "cross_value"])
def test_a_tuner_of_keys_or_values_keeps_them(family: str, role: str) -> None:
    model, _ = models(family, late=2, tuner="lora", tuner_options={"ops": [role], "rank": 2})
    assert not model.late.stream("decoder").folded


def test_a_tuner_of_the_product_keeps_keys_and_values() -> None:
    model, _ = models("t5", late=2, tuner="prefix", tuner_options={"ops": ["cross_attention"]})
    assert not model.late.stream("decoder").folded


def test_outside_stage_two_the_layers_run_as_ever(always: None) -> None:
    """A live model into which the layers are hung keeps keys and values for the tokens to come."""
    ours, plain = models("t5", late=1)
    layer, other = (
        model.late.stream("decoder").layers[max(model.late.stream("decoder").indices)] for model in (ours, plain)
    )
    state, memory = torch.randn(2, 3, 16, dtype=torch.float64), torch.randn(2, 9, 16, dtype=torch.float64)
    arguments = {"encoder_hidden_states": memory, "position_bias": torch.zeros(1, 1, 3, 3, dtype=torch.float64)}
    assert torch.equal(layer(state, **arguments)[0], other(state, **arguments)[0])


def test_an_error_inside_leaves_the_layer_whole(always: None) -> None:
    model, _ = models("t5", late=1)
    (folded,) = model.late.stream("decoder").folded.values()
    queries, memory = torch.zeros(1, 1, 16), torch.zeros(1, 9, 16)
    with pytest.raises(RuntimeError, match="within"), folded.allowed():
        raise RuntimeError("within")
    assert folded._enter(None, (queries,), {"key_value_states": memory}) is None


@pytest.mark.parametrize("boolean", [True, False])
def test_shares_that_are_dropped_weigh_values_and_their_bias(boolean: bool) -> None:
    """Oracle: attention written out with keys and values, on the same draws. With dropout the shares of a query do not add
    up to one, which a bias of values shows."""
    model, _ = models("bart", late=1)
    (folded,) = model.late.stream("decoder").folded.values()
    module = nn.Module().train()
    query, memory = torch.randn(2, 2, 3, 8, dtype=torch.float64), torch.randn(2, 9, 16, dtype=torch.float64)
    mask = torch.ones(2, 1, 1, 9, dtype=torch.bool)
    mask[1, ..., 5:] = False
    added = torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask, -1e30)
    keys, values = (layer(memory).view(2, 9, 2, 8).transpose(1, 2) for layer in (folded.key, folded.value))
    torch.manual_seed(0)
    shares = nn.functional.dropout((query @ keys.mT * 0.3 + added).softmax(-1), 0.5)
    folded._memory = memory
    torch.manual_seed(0)
    found = folded.attend(module, query, keys, values, mask if boolean else added, scaling=0.3, dropout=0.5)
    assert folded.value.bias.abs().sum() > 0
    close(found, (shares @ values).transpose(1, 2), "float64")


@pytest.mark.parametrize(("longest", "groups"), [(6, 1), (500, 2)])
def test_examples_run_together_unless_one_is_much_longer(always: None, longest: int, groups: int) -> None:
    """A CPU pays for padding, and for each group of examples it reads all weights once more."""
    model, plain = models("t5", late=1)
    memory = torch.tensor([longest, *[5] * 16, *[3] * 8])
    chosen = (torch.zeros(len(memory), 16), torch.ones_like(memory), memory, torch.ones_like(memory))
    assert len(model.late.stream("decoder")._memory_groups(*chosen)) == groups
    assert len(plain.late.stream("decoder")._memory_groups(*chosen)) == 2

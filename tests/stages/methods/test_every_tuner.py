"""What every tuner promises, on every model that late layers come from: a new tuner is tested by existing."""

import copy
import json

import pytest
import torch
from live_oracle import live_decoder, live_encoder, redraw
from model_cases import cached, folder_of, loaded_model, part, ragged_batch, stage_two_of
from torch import Tensor
from transformers.models.t5.modeling_t5 import T5LayerNorm

from sherl_cache.pipeline.recipe import parse_recipe
from sherl_cache.stages import plugins
from sherl_cache.stages.build import StageTwoRecipe
from sherl_cache.stages.late_ops import late_ops
from sherl_cache.stages.live import LiveModel
from sherl_cache.stages.methods.contract import Op, Part
from sherl_cache.stages.model import StageTwo
from sherl_cache.storage.errors import RecipeError

TUNERS = plugins.names("tuner")
FAMILIES = ("bert", "t5")
WIDTHS = {"bert": (32, 64, 32), "t5": (16, 32, 16)}
"""Width d, width f of the FFN, width of keys and values."""
CROSS = {"bert": 0, "t5": 1}
"""Cross-attentions in a layer."""
ORDER = [3, 0, 4, 2, 1]
OPTIONS: dict[str, list[dict[str, object]]] = {
    "lora": [{}, {"ops": ["key", "out", "ffn_in", "ffn_out"], "rank": 3, "alpha": 4.0}],
    "adapter": [{}, {"placement": "pfeiffer", "activation": "relu"}],
    "parallel_adapter": [{}, {"ops": ["attention", "ffn"], "activation": "silu"}],
    "ia3": [{}, {"ops": ["query", "ffn_in", "ffn_out"]}],
    "bitfit": [{}, {"ops": ["query", "ffn_in"]}],
    "prefix": [{}, {"hidden": 5, "length": 3}],
    "u_adapter": [
        {},
        {"input": "post", "activation": "gelu_tanh"},
        {"ops": ["attention", "ffn"], "activation": "tanh"},
    ],
    "u_prefix": [{}, {"ops": ["attention", "ffn", "block"], "input": "post", "heads": 2}, {"ops": ["ffn", "block"]}],
    "u_prompt": [{}, {"joint": True, "length": 3}, {"ops": ["attention", "ffn", "block"], "input": "post"}],
}
"""Beside the defaults, what takes another way through the method."""
CASES = [(name, options) for name in TUNERS for options in OPTIONS.get(name, [{}])]
IDS = [f"{name}-{'-'.join(map(str, options)) or 'default'}" for name, options in CASES]
every_case = pytest.mark.parametrize(("name", "options"), CASES, ids=IDS)
every_case_slow_but_defaults = pytest.mark.parametrize(
    ("name", "options"),
    [pytest.param(name, options, marks=[pytest.mark.slow] if options else []) for name, options in CASES],
    ids=IDS,
)
every_tuner = pytest.mark.parametrize("name", TUNERS)
every_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(autouse=True)
def norms_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """T5's norm takes its mean square in float32 even of float64; both sides get the same formula in float64."""
    own = T5LayerNorm.forward

    def forward(self: T5LayerNorm, states: Tensor) -> Tensor:
        if states.dtype != torch.float64:
            return own(self, states)
        return self.weight * states * torch.rsqrt(states.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)

    monkeypatch.setattr(T5LayerNorm, "forward", forward)


def make(
    family: str,
    name: str,
    options: dict[str, object] | None = None,
    *,
    late: int = 1,
    fusion: str = "last",
    dtype: torch.dtype = torch.float64,
    drawn: bool = True,
) -> StageTwo:
    recipe = StageTwoRecipe(fusion=fusion, late=late, tuner=name, tuner_options=options or {})
    model = stage_two_of(loaded_model(family, "float64" if dtype == torch.float64 else "float32"), recipe, dtype)
    if drawn:
        redraw(model, seed=3)
    return model


def taps_of(family: str, model: StageTwo) -> dict:
    return cached(loaded_model(family, "float64"), model, [ragged_batch(family)])


def weighing(output: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(9)
    return torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output.dtype)


def frozen_of(model: StageTwo) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in model.named_parameters() if not tensor.requires_grad}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@every_family
@every_tuner
def test_the_model_starts_as_the_frozen_one_where_that_is_promised(family: str, name: str) -> None:
    model = make(family, name, drawn=False).eval()
    taps = taps_of(family, model)
    tuned = model(taps)
    with model.without_tuner():
        frozen = model(taps)
    assert torch.equal(tuned, frozen) == model.tuner.starts_as_identity


@every_family
@every_case_slow_but_defaults
def test_cached_logits_and_gradients_equal_live(family: str, name: str, options: dict[str, object]) -> None:
    """Oracle: the transformers model with hooks and an attention written by hand, examples padded further."""
    model = make(family, name, options, late=2, fusion="sherl")
    if model.tuner.leading_rows():
        pytest.skip("its rows are written out by hand in test_prompt_tuners.py")
    batch = part(ragged_batch(family), ORDER)
    loaded = loaded_model(family, "float64")
    found = model(cached(loaded, model, [part(batch, [0]), part(batch, [1, 2]), part(batch, [3, 4])]))
    oracle = live_decoder if family == "t5" else live_encoder
    live = oracle(folder_of(family), model, batch, torch.float64, extra=4)
    torch.testing.assert_close(found, live.output, rtol=0, atol=1e-10)
    (found * weighing(found)).sum().backward()
    (live.output * weighing(found)).sum().backward()
    expected, trained = live.gradients(), model.trained_parameters()
    assert trained.keys() == expected.keys()
    for key, parameter in trained.items():
        torch.testing.assert_close(parameter.grad, expected[key], rtol=0, atol=1e-10, msg=key)


@every_case_slow_but_defaults
def test_a_head_that_reads_one_row_gets_what_all_rows_would_give_it(name: str, options: dict[str, object]) -> None:
    """Oracle: the last layer computed for every row."""
    loaded = loaded_model("bert", "float64")
    recipe = StageTwoRecipe(fusion="last", late=2, tuner=name, tuner_options=options, head_options={"pooling": "cls"})
    model = stage_two_of(loaded, recipe, torch.float64).eval()
    redraw(model, seed=3)
    taps = cached(loaded, model, [ragged_batch("bert")])
    found = model(taps)
    model.late.stream("encoder").selected = None
    torch.testing.assert_close(found, model(taps), rtol=0, atol=1e-10)


@every_family
@every_case_slow_but_defaults
def test_hung_into_the_live_model_it_acts_as_in_stage_two(family: str, name: str, options: dict[str, object]) -> None:
    """Oracle: stage two from taps."""
    model = make(family, name, options, late=2).eval()
    loaded, batch = loaded_model(family, "float64"), ragged_batch(family)
    expected = model(cached(loaded, model, [batch]))
    live = LiveModel(loaded, model)
    torch.testing.assert_close(live.logits(batch), expected.detach(), rtol=0, atol=1e-10)
    with model.without_tuner():
        frozen = live.logits(batch)
    assert not torch.allclose(frozen, expected, atol=1e-3)
    torch.testing.assert_close(live.logits(batch), expected.detach(), rtol=0, atol=1e-10)


@every_tuner
def test_generation_with_a_cache_equals_generation_without(name: str) -> None:
    model = make("t5", name, late=2).eval()
    loaded, batch = loaded_model("t5", "float64"), ragged_batch("t5")
    live = LiveModel(loaded, model)
    if model.tuner.leading_rows():
        with pytest.raises(RecipeError, match=rf"tuner\.name: {name} .*label_scores"):
            live.generate(batch, 4)
        assert live.label_scores(batch).isfinite().all()
        return
    assert live.generate(batch, 6) == live.generate(batch, 6, use_cache=False)


@every_family
@every_case
def test_gradients_reach_every_parameter_and_no_frozen_one(family: str, name: str, options: dict[str, object]) -> None:
    model = make(family, name, options)
    output = model(taps_of(family, model))
    (output * weighing(output)).sum().backward()
    for key, parameter in model.trained_parameters().items():
        silent = name == "bitfit" and key.endswith(("key.bias", "cross_key.bias"))  # the same on every logit of a query
        assert (parameter.grad.abs().max() > 1e-9) != silent, key
    assert all(parameter.grad is None for parameter in frozen_of(model).values())


@every_family
@every_tuner
def test_frozen_weights_are_bit_identical_after_three_steps_and_the_tuner_moved(family: str, name: str) -> None:
    model = make(family, name, drawn=False, dtype=torch.float32)
    taps = taps_of(family, model)
    frozen = {key: tensor.clone() for key, tensor in frozen_of(model).items()}
    begun = {key: tensor.clone() for key, tensor in model.trainable_state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameter_groups(1e-2, 1e-2), weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        output = model(taps)
        (output * weighing(output)).sum().backward()
        optimizer.step()
    for key, tensor in frozen_of(model).items():
        assert torch.equal(tensor, frozen[key]), key
    assert frozen_of(model).keys() == frozen.keys()
    for key, tensor in model.trainable_state_dict().items():
        assert not torch.equal(tensor, begun[key]), key


@every_family
@every_tuner
def test_state_round_trips_into_a_model_of_another_seed(family: str, name: str) -> None:
    model = make(family, name, late=2).eval()
    state = model.trainable_state_dict()
    assert any(key.startswith("tuner.") for key in state)
    other = make(family, name, late=2, drawn=False).eval()
    other.load_trainable_state_dict(copy.deepcopy(state))
    taps = taps_of(family, model)
    assert torch.equal(model(taps), other(taps))


@every_tuner
def test_a_recipe_round_trips_with_every_option_filled_in(name: str) -> None:
    config = plugins.find("tuner", name).Config()
    document = {"tuner": {"name": name, **json.loads(config.model_dump_json())}}
    recipe = parse_recipe(document, where="here")
    again = parse_recipe(json.loads(recipe.model_dump_json()), where="here")
    assert again == recipe
    assert recipe.late_mode == "frozen"
    assert plugins.find("tuner", name).validated(again.tuner.options) == config


FORMULAS = {
    "lora": lambda d, f, k, cross: (1 + cross) * 2 * 8 * (d + k),
    "adapter": lambda d, f, k, cross: 2 * (2 * d * 64 + 64 + d),
    "parallel_adapter": lambda d, f, k, cross: 2 * d * 16 + 16 + d,
    "ia3": lambda d, f, k, cross: (1 + cross) * 2 * k + f,
    "bitfit": lambda d, f, k, cross: (1 + cross) * (3 * k + d) + f + d + (2 + cross) * d,
    "prefix": lambda d, f, k, cross: (1 + cross) * 2 * 16 * k,
    "prompt": lambda d, f, k, cross: 20 * d,
    "u_adapter": lambda d, f, k, cross: 2 * d * 32 + 32 + d,
    "u_prefix": lambda d, f, k, cross: 2 * 16 * k,
    "u_prompt": lambda d, f, k, cross: 16 * d,
}
"""Parameters of one late layer with the default options."""


@every_family
@every_tuner
def test_parameter_count_equals_the_published_formula(family: str, name: str) -> None:
    for late in (1, 2):
        tuner = make(family, name, late=late, drawn=False).tuner
        layers = 1 if name == "prompt" else late
        expected = layers * FORMULAS[name](*WIDTHS[family], CROSS[family])
        assert sum(parameter.numel() for parameter in tuner.parameters()) == expected


@every_family
@every_case
def test_merged_weights_compute_what_the_tuned_layers_compute(
    family: str, name: str, options: dict[str, object]
) -> None:
    """Oracle: the same stage two without any tuner, over the merged weights."""
    model = make(family, name, options, late=2).eval()
    lacks_bias = name == "bitfit" and family == "t5"
    if not model.tuner.mergeable or lacks_bias:
        with pytest.raises(RecipeError, match=r"tuner\.name: .*merged"):
            model.merged_late_state()
        return
    taps = taps_of(family, model)
    merged = model.merged_late_state()
    plain = stage_two_of(
        loaded_model(family, "float64"), StageTwoRecipe(fusion="last", late=2, mode="full"), torch.float64
    ).eval()
    own = {key: tensor for key, tensor in model.trainable_state_dict().items() if not key.startswith("tuner.")}
    plain.load_trainable_state_dict({**own, **merged})
    torch.testing.assert_close(plain(taps), model(taps), rtol=0, atol=1e-10)


@every_family
@every_tuner
def test_it_runs_in_bfloat16_near_its_float32_values(family: str, name: str) -> None:
    exact = make(family, name, dtype=torch.float32).eval()
    half = copy.deepcopy(exact).bfloat16()
    taps = taps_of(family, exact)
    output, expected = half(taps), exact(taps)
    assert output.dtype == torch.bfloat16
    assert (output.float() - expected).norm() < 0.1 * expected.norm()
    output.float().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in half.trained_parameters().values())


@every_family
@every_case_slow_but_defaults
def test_a_part_of_a_tuner_that_mixes_no_rows_ignores_other_rows(
    family: str, name: str, options: dict[str, object]
) -> None:
    tuner = make(family, name, options).tuner
    if tuner.mixes_rows:
        pytest.skip("mixes rows, and says so")
    for op, piece in tuner.placed:
        check_rows(op, piece)


def check_rows(op: Op, piece: Part) -> None:
    x, y = draw(2, 6, op.in_width), draw(2, 6, op.out_width, seed=1)
    changed = [torch.cat([value[:, :3], 9 * value[:, 3:]], dim=1) for value in (x, y)]
    before, after = piece.leave(x, y), piece.leave(*changed)
    torch.testing.assert_close(after[:, :3], before[:, :3], rtol=1e-12, atol=1e-12)
    assert torch.equal(piece.enter(changed[0])[:, :3], piece.enter(x)[:, :3])
    if piece.overrides("attend"):  # a query's answer does not depend on other queries
        query, key, value = (draw(2, 2, 6, op.inside["key"].out_width // 2, seed=seed) for seed in range(3))
        other = torch.cat([query[:, :, :3], 9 * query[:, :, 3:]], dim=2)
        answers = [piece.attend(plain_attention, item, key, value)[:, :3] for item in (query, other)]
        torch.testing.assert_close(*answers, rtol=1e-12, atol=1e-12)


def plain_attention(query: Tensor, key: Tensor, value: Tensor, extra: int = 0) -> Tensor:
    return ((query @ key.transpose(2, 3)).softmax(-1) @ value).transpose(1, 2)


@every_family
@every_tuner
def test_a_copy_of_a_model_has_a_tuner_of_its_own(family: str, name: str) -> None:
    model = make(family, name).eval()
    taps = taps_of(family, model)
    before = model(taps)
    other = copy.deepcopy(model)
    redraw(other, seed=8)
    assert torch.equal(model(taps), before)
    assert not torch.allclose(other(taps), before, atol=1e-3)


@every_family
def test_ops_of_a_table_have_the_widths_that_their_modules_show(family: str) -> None:
    """Oracle: the shape of what leaves each module."""
    model = make(family, "lora").eval()
    tables = {stream.name: stream for stream in model.table.streams}
    ops = late_ops(tables, model.late, model.table.widths(loaded_model(family).config)).ops
    shapes: dict[str, tuple[int, int]] = {}
    for op in ops:
        if op.kind in ("linear", "norm"):
            op.exit.register_forward_hook(
                lambda module, args, output, name=op.name: shapes.update({name: (args[0].shape[-1], output.shape[-1])})
            )
    model(taps_of(family, model))
    assert shapes == {op.name: (op.in_width, op.out_width) for op in ops if op.kind in ("linear", "norm")}


def test_every_tuner_has_a_published_formula() -> None:
    assert set(FORMULAS) == set(TUNERS)

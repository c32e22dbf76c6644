"""Cached equals live: stage two on packed taps against the transformers model's own forward with independent hooks."""

import pytest
import torch
from live_oracle import live_decoder, live_encoder, redraw
from model_cases import ENCODERS, PICTURES, cached, folder_of, loaded_model, part, ragged_batch, stage_two_of
from torch import Tensor
from transformers.models.t5.modeling_t5 import T5LayerNorm

from sherl_cache.stages.build import StageTwoRecipe
from sherl_cache.stages.front import TokenBatch
from sherl_cache.stages.live import LiveModel
from sherl_cache.stages.load import LoadedModel
from sherl_cache.stages.model import StageTwo

FUSIONS = ("sherl", "weighted_sum", "last")
# pictures have no padding that could be longer
ENCODER_CASES = [(family, extra) for extra in (0, 6) for family in ENCODERS if not extra or family not in PICTURES]
ORDER = [3, 0, 4, 2, 1]
DTYPES = {"float64": torch.float64, "float32": torch.float32}


@pytest.fixture(autouse=True)
def norms_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """T5's norm takes its mean square in float32 even of float64, which makes 1e-7 of a difference in the last bit.

    Both sides get the same formula in float64; other number formats run the library's own.
    """
    own = T5LayerNorm.forward

    def forward(self: T5LayerNorm, states: Tensor) -> Tensor:
        if states.dtype != torch.float64:
            return own(self, states)
        return self.weight * states * torch.rsqrt(states.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)

    monkeypatch.setattr(T5LayerNorm, "forward", forward)


def close(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    scale = max(1.0, float(expected.detach().abs().max()))
    bound = 1e-10 if dtype == torch.float64 else 1e-5 * scale
    torch.testing.assert_close(found, expected, rtol=0, atol=bound)


def weighing(output: Tensor) -> Tensor:
    """Fixed weights for a loss that is not symmetric in anything."""
    generator = torch.Generator().manual_seed(9)
    return torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output.dtype)


def prepared(family: str, recipe: StageTwoRecipe, precision: str) -> tuple[LoadedModel, StageTwo]:
    loaded = loaded_model(family, precision)
    stage_two = stage_two_of(loaded, recipe, DTYPES[precision])
    redraw(stage_two, seed=3)
    return loaded, stage_two


def check(family: str, recipe: StageTwoRecipe, precision: str, extra: int) -> None:
    dtype = DTYPES[precision]
    loaded, stage_two = prepared(family, recipe, precision)
    batch = part(ragged_batch(family), ORDER)
    # the cached side ran every example in other company: one alone, two together, two together
    taps = cached(loaded, stage_two, [part(batch, [0]), part(batch, [1, 2]), part(batch, [3, 4])])
    found = stage_two(taps)
    oracle = live_decoder if family == "t5" else live_encoder
    live = oracle(folder_of(family), stage_two, batch, dtype, extra)
    close(found, live.output, dtype)
    close(LiveModel(loaded, stage_two).logits(batch), live.output.detach(), dtype)
    trained = stage_two.trained_parameters()
    if trained:  # `last` with frozen late layers has nothing that trains
        weights = weighing(found)
        (found * weights).sum().backward()
        (live.output * weights).sum().backward()
    expected = live.gradients()
    assert trained.keys() == expected.keys()
    for name, parameter in trained.items():
        close(parameter.grad, expected[name], dtype)


@pytest.mark.parametrize("mode", ["frozen", "full"])
@pytest.mark.parametrize("late", [0, 1, 2])
@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize(("family", "extra"), ENCODER_CASES)
def test_cached_logits_and_gradients_equal_live_encoder(
    family: str, fusion: str, late: int, mode: str, extra: int
) -> None:
    check(family, StageTwoRecipe(fusion=fusion, late=late, mode=mode), "float64", extra)


@pytest.mark.parametrize("extra", [0, 6])
@pytest.mark.parametrize("mode", ["frozen", "full"])
@pytest.mark.parametrize("late", [1, 2])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_cached_logits_and_gradients_equal_live_encoder_decoder(fusion: str, late: int, mode: str, extra: int) -> None:
    check("t5", StageTwoRecipe(fusion=fusion, late=late, mode=mode), "float64", extra)


@pytest.mark.parametrize("family", [*ENCODERS, "t5"])
def test_cached_equals_live_in_float32(family: str) -> None:
    check(family, StageTwoRecipe(), "float32", extra=3)


@pytest.mark.parametrize("fusion", ["sherl", "last"])
@pytest.mark.parametrize("family", [*ENCODERS, "t5"])
def test_cached_logits_and_gradients_equal_live_with_lora_on_the_late_layers(family: str, fusion: str) -> None:
    check(family, StageTwoRecipe(fusion=fusion, late=2, tuner="lora"), "float64", extra=3)


@pytest.mark.parametrize("family", ["bert", "t5"])
def test_live_model_trains_like_stage_two(family: str) -> None:
    """Oracle: gradients of StageTwo; the live model is the single-pass form of the same training."""
    loaded, stage_two = prepared(family, StageTwoRecipe(), "float64")
    batch = ragged_batch(family)
    output = stage_two(cached(loaded, stage_two, [batch]))
    (output * weighing(output)).sum().backward()
    cached_gradients = {name: item.grad.clone() for name, item in stage_two.trained_parameters().items()}
    stage_two.zero_grad()
    output = LiveModel(loaded, stage_two).forward(batch)
    (output * weighing(output)).sum().backward()
    for name, parameter in stage_two.trained_parameters().items():
        close(parameter.grad, cached_gradients[name], torch.float64)


@pytest.mark.parametrize("family", ["bert", "t5"])
def test_live_in_bfloat16_equals_cached_from_bfloat16_taps(family: str) -> None:
    """The early part computes in bfloat16 and all of stage two in float32, on both sides."""
    loaded = loaded_model(family, "bfloat16")
    stage_two = stage_two_of(loaded, StageTwoRecipe())
    redraw(stage_two, seed=3)
    batch = ragged_batch(family)
    found = stage_two.eval()(cached(loaded, stage_two, [batch]))
    assert found.dtype == torch.float32
    close(LiveModel(loaded, stage_two).logits(batch), found, torch.float32)


def test_select_gives_the_same_logits_for_the_chosen_rows() -> None:
    loaded, stage_two = prepared("t5", StageTwoRecipe(), "float64")
    taps = cached(loaded, stage_two, [ragged_batch("t5")])
    everything = stage_two(taps)
    select = torch.arange(len(everything)) % 3 == 0
    close(stage_two(taps, select), everything[select], torch.float64)


def test_examples_may_have_different_numbers_of_answers() -> None:
    """Oracle: each example alone."""
    loaded, stage_two = prepared("t5", StageTwoRecipe(), "float64")
    full = ragged_batch("t5")
    counts = [2, 1, 2, 0, 1]
    batch = TokenBatch(
        full.input_ids, None, [answers[:count] for answers, count in zip(full.targets, counts, strict=True)]
    )
    together = stage_two(cached(loaded, stage_two, [batch]), segments=torch.tensor(counts))
    alone = [
        stage_two(cached(loaded, stage_two, [part(batch, [number])])) for number, count in enumerate(counts) if count
    ]
    close(together, torch.cat(alone), torch.float64)


def test_live_model_leaves_the_pretrained_model_as_it_was() -> None:
    loaded, stage_two = prepared("t5", StageTwoRecipe(), "float32")
    live, batch = LiveModel(loaded, stage_two), ragged_batch("t5")
    before = dict(loaded.model.named_modules())
    live.logits(batch)
    live.generate(batch, max_new_tokens=3)
    with pytest.raises(IndexError):
        live.logits(TokenBatch([[100_000]], None, [[[1]]]))
    assert dict(loaded.model.named_modules()) == before
    for name, module in before.items():
        assert not [*module._forward_hooks, *module._forward_pre_hooks], name

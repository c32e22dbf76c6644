"""Every tuner on a vision transformer: rows are a class token and patches, and every segment has as many."""

import copy
from functools import cache

import pytest
import torch
from live_oracle import redraw, watch
from model_cases import producer_of
from torch import Tensor
from transformers import ViTConfig, ViTModel
from tuner_oracle import hang_in

from sherl_cache.stages import plugins
from sherl_cache.stages.backbones.contract import all_tables, table_for
from sherl_cache.stages.build import StageTwoRecipe, build_stage_two
from sherl_cache.stages.late_weights import late_weights
from sherl_cache.stages.load import LoadedModel, weights_digest
from sherl_cache.stages.methods.contract import Packed
from sherl_cache.stages.model import StageTwo

pytestmark = pytest.mark.skipif("vit" not in all_tables(), reason="there is no table of a vision transformer")
TUNERS = plugins.names("tuner")
PICTURES, SIDE, PATCH, WIDTH, DEPTH = 3, 12, 4, 16, 4
ROWS = 1 + (SIDE // PATCH) ** 2


@cache
def tiny_vit() -> LoadedModel:
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": 2, "intermediate_size": 24}
    config = ViTConfig(**sizes, image_size=SIDE, patch_size=PATCH)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ViTModel._from_config(config, attn_implementation="sdpa", add_pooling_layer=False).double().eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                norm = "layernorm" in name and name.endswith("weight")
                parameter.copy_(0.5 + torch.rand(parameter.shape) if norm else 0.3 * torch.randn(parameter.shape))
    model = model.requires_grad_(False)
    return LoadedModel("vit", model, None, table_for(config), None, weights_digest(model))


def make(name: str, late: int = 2, **options: object) -> StageTwo:
    loaded = tiny_vit()
    recipe = StageTwoRecipe(fusion="last", late=late, tuner=name, tuner_options=options)
    model = build_stage_two(producer_of(loaded), late_weights(loaded, 2).__getitem__, recipe, 0, dtype=torch.float64)
    redraw(model, seed=3)
    return model.eval()


def pixels() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(PICTURES, 3, SIDE, SIDE, generator=generator, dtype=torch.float64)


def taps_of(model: StageTwo) -> dict[str, Packed]:
    """The deepest tap of the model's own forward, as a store gives it."""
    live = copy.deepcopy(tiny_vit().model)
    states = watch(live.get_submodule("layers"))
    live(pixel_values=pixels())
    (tap,) = model.reads["encoder"]
    rows = states[tap].reshape(1, PICTURES * ROWS, WIDTH)
    return {"encoder": Packed(rows, torch.full((PICTURES,), ROWS), (tap,))}


@pytest.mark.parametrize("name", TUNERS)
def test_stage_two_equals_the_vision_transformer_with_the_parts_hung_in_by_hand(name: str) -> None:
    """Oracle: the model's own forward on pixels, with hooks and an attention written in tuner_oracle.py."""
    model = make(name)
    live = copy.deepcopy(tiny_vit().model)
    layers = live.get_submodule("layers")
    tuner = hang_in("vit", model.tuner, layers)
    if leading := tuner.leading_rows():
        rows = leading["encoder"].expand(PICTURES, -1, -1)
        layers[DEPTH - 2].register_forward_pre_hook(lambda module, args: (torch.cat([rows, args[0]], dim=1), *args[1:]))
        layers[-1].register_forward_hook(lambda module, args, output: output[:, rows.shape[1] :])
    output = live(pixel_values=pixels()).last_hidden_state
    expected = copy.deepcopy(model.head).linear(output[:, 0])
    found = model(taps_of(model))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    gradients = dict(tuner.named_parameters())
    for key, parameter in model.tuner.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[key].grad, rtol=0, atol=1e-10, msg=key)
    with model.without_tuner():
        assert not torch.allclose(model(taps_of(model)), found, atol=1e-3)


@pytest.mark.parametrize("name", TUNERS)
def test_the_model_starts_as_the_frozen_one_where_that_is_promised(name: str) -> None:
    loaded = tiny_vit()
    recipe = StageTwoRecipe(fusion="last", tuner=name)
    model = build_stage_two(producer_of(loaded), late_weights(loaded, 2).__getitem__, recipe, 0, dtype=torch.float64)
    taps = taps_of(model.eval())
    tuned = model(taps)
    with model.without_tuner():
        assert torch.equal(model(taps), tuned) == model.tuner.starts_as_identity

"""Tuners on the late layers of every text model: the attention of each as its equation says, with a part inside."""

import copy

import pytest
import torch
from model_cases import cached
from stage_two_oracle import double_precision, layer_list, live_text, live_text_to_text
from text_models import stage_two_of, texts_for, tiny_model
from tiny_configs import TEXT_CONFIGS
from tuner_oracle import attend_by_hand

from sherl_cache.stages import plugins
from sherl_cache.stages.build import StageTwoRecipe
from sherl_cache.stages.live import LiveModel
from sherl_cache.stages.model import StageTwo
from sherl_cache.storage.errors import RecipeError

TUNERS = plugins.names("tuner")
LACKING = {"mpnet": dict.fromkeys(("adapter", "prefix", "u_prefix", "u_prompt"), "attention")}
"""What tuners miss where a layer's attention cannot be reached."""
every_type = pytest.mark.parametrize("model_type", TEXT_CONFIGS)


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    scale = max(1.0, float(expected.detach().abs().max()))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10 * scale)


def tuned(model_type: str, name: str, late: int = 2, **options: object) -> StageTwo:
    loaded = tiny_model(model_type, "float64")
    return stage_two_of(loaded, StageTwoRecipe(late=late, tuner=name, tuner_options=options), "float64").eval()


@every_type
def test_a_prefix_in_the_attention_of_every_model_equals_keys_and_values_put_in_front_by_hand(model_type: str) -> None:
    """Grouped heads, rotary angles, windows, causal masks, capped scores. Oracle: the live model with an attention
    written out."""
    loaded = tiny_model(model_type, "float64")
    (stream,) = loaded.table.late_streams
    if missing := LACKING.get(model_type, {}).get("prefix"):
        with pytest.raises(RecipeError, match=rf"tuner\.ops: this tuner tunes {missing}"):
            tuned(model_type, "prefix")
        return
    batch = texts_for(loaded)
    with double_precision(loaded.model):
        stage_two = tuned(model_type, "prefix", length=3)
        whole = copy.deepcopy(loaded.model)
        stack = whole.get_decoder() if loaded.table.encoder_decoder else whole
        for op, part in stage_two.tuner.placed:
            layer = layer_list(stack)[op.layer]
            attend_by_hand(layer.get_submodule(stream.ops[op.role].entry), part)
        oracle = live_text_to_text if loaded.table.encoder_decoder else live_text
        expected = oracle(whole, stage_two, batch, extra=2).output
        found = stage_two(cached(loaded, stage_two, [batch]))
        close(found, expected)
        with stage_two.without_tuner():
            assert not torch.allclose(stage_two(cached(loaded, stage_two, [batch])), expected, atol=1e-3)


@pytest.mark.slow
@every_type
@pytest.mark.parametrize("name", TUNERS)
def test_every_tuner_on_every_model_acts_live_as_in_stage_two(name: str, model_type: str) -> None:
    loaded = tiny_model(model_type, "float64")
    batch = texts_for(loaded)
    with double_precision(loaded.model):
        if missing := LACKING.get(model_type, {}).get(name):
            with pytest.raises(RecipeError, match=rf"tuner\.ops: this tuner tunes {missing}"):
                tuned(model_type, name)
            return
        stage_two = tuned(model_type, name)
        taps = cached(loaded, stage_two, [batch])
        found = stage_two(taps)
        close(LiveModel(loaded, stage_two).logits(batch), found.detach())
        with stage_two.without_tuner():
            assert not torch.allclose(stage_two(taps), found, atol=1e-4)
    (found * torch.randn_like(found)).sum().backward()
    gradients = [value.grad for key, value in stage_two.trained_parameters().items() if key.startswith("tuner.")]
    assert all(gradient is not None for gradient in gradients)

"""Tiny models of any text table in any number format, their batches, and the comparison of cached with live."""

from functools import cache

import torch
import transformers
from live_oracle import redraw
from model_cases import cached, part, producer_of
from stage_two_oracle import double_precision, live_continuation, live_text, live_text_to_text
from tiny_configs import TEXT_CONFIGS, VOCABULARY
from torch import Tensor
from transformers import AutoConfig

from sherl_cache.stages.backbones.contract import table_for
from sherl_cache.stages.build import StageTwoRecipe, build_stage_two
from sherl_cache.stages.front import TokenBatch
from sherl_cache.stages.late_weights import late_weights
from sherl_cache.stages.live import LiveModel
from sherl_cache.stages.load import LoadedModel, weights_digest
from sherl_cache.stages.model import StageTwo

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}
LATE = 3
LENGTHS = (5, 1, 9, 3, 7)
ORDER = [3, 0, 4, 2, 1]


@cache
def tiny_model(
    model_type: str, precision: str = "float32", answers: str | None = None, **options: object
) -> LoadedModel:
    """A model of that type, every parameter redrawn, so that a forgotten or a swapped one shows."""
    kept = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1}
    kept["decoder_start_token_id"] = 0
    config = AutoConfig.for_model(model_type, **{**kept, **TEXT_CONFIGS[model_type], **options})
    table = table_for(config, answers)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        # built in its number format, as a checkpoint is loaded: a cast would round rotary frequencies too
        auto, dtype = getattr(transformers, table.auto_class), DTYPES[precision]
        model = auto.from_config(config, attn_implementation=table.attention, dtype=dtype, **table.options).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                norm = "norm" in name.lower() or "ln_" in name
                shape = parameter.shape
                parameter.copy_(table.unit_norm - 0.5 + torch.rand(shape) if norm else 0.2 * torch.randn(shape))
            if table.head_bias is not None:
                model.get_buffer(table.head_bias).normal_()
    model = model.requires_grad_(False)
    return LoadedModel(model_type, model, None, table, None, weights_digest(model))


def texts_for(loaded: LoadedModel) -> TokenBatch:
    """Ragged texts; token types where the model has two; two ragged answers each for one that answers in text."""
    generator = torch.Generator().manual_seed(1)

    def ids(length: int) -> list[int]:
        return torch.randint(5, VOCABULARY, (length,), generator=generator).tolist()

    texts = [ids(length) for length in LENGTHS]
    typed = getattr(loaded.config, "type_vocab_size", 1) > 1
    types = [[int(place > length // 2) for place in range(length)] for length in LENGTHS] if typed else None
    answers = [[[*ids(1 + number % 4), 1], [*ids(1), 1]] for number in range(len(LENGTHS))]
    return TokenBatch(texts, types, answers if any(stream.answers for stream in loaded.table.streams) else None)


def stage_two_of(loaded: LoadedModel, recipe: StageTwoRecipe, precision: str) -> StageTwo:
    files = late_weights(loaded, LATE)
    producer = producer_of(loaded, LATE)
    stage_two = build_stage_two(producer, files.__getitem__, recipe, 0, dtype=DTYPES[precision])
    redraw(stage_two, seed=3)
    with torch.no_grad():
        for name, parameter in stage_two.trained_parameters().items():
            if "norm" in name and not name.startswith("fusion."):  # scales of 0.5 to 1.5, whatever the model calls one
                parameter.add_(loaded.table.unit_norm - 1)
    return stage_two


def close(found: Tensor, expected: Tensor, precision: str) -> None:
    scale = max(1.0, float(expected.detach().abs().max()))
    bound = 1e-10 if precision == "float64" else 1e-5 * scale
    torch.testing.assert_close(found, expected, rtol=0, atol=bound)


def check_cached_equals_live(loaded: LoadedModel, recipe: StageTwoRecipe, precision: str, extra: int) -> None:
    with double_precision(loaded.model):
        stage_two = stage_two_of(loaded, recipe, precision)
        batch = part(texts_for(loaded), ORDER)
        # the cached side ran every example in other company: one alone, two together, two together
        taps = cached(loaded, stage_two, [part(batch, [0]), part(batch, [1, 2]), part(batch, [3, 4])])
        found = stage_two(taps, LiveModel(loaded, stage_two).select(batch))
        text_to_text = loaded.table.encoder_decoder and recipe.late
        oracle = live_continuation if loaded.table.text_form == "continuation" else live_text
        live = (live_text_to_text if text_to_text else oracle)(loaded.model, stage_two, batch, extra)
        close(found, live.output, precision)
        close(LiveModel(loaded, stage_two).logits(batch), live.output.detach(), precision)
        trained = stage_two.trained_parameters()
        weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(9), dtype=found.dtype)
        (found * weights).mean().backward()
        (live.output * weights).mean().backward()
        expected = live.gradients()
        assert trained.keys() == expected.keys()
        for name, parameter in trained.items():
            assert parameter.grad is not None
            close(parameter.grad, expected[name], precision)
